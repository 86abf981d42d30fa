"""What recipes on decoupled feedback share: rows by use, a training signal, a judge held out, and its verdict.

The signal and the judge learn from other prompts, read other depths and begin from other seeds, so that a policy which
is trained on the one can be measured by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from poise.data import (
    first_prompts,
    held_out,
    judges_harm,
    load,
    merge,
    split_by_prompt,
    split_in_strata,
    with_cut_responses,
)
from poise.errors import DataError, FeedbackError
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.suite import KINDS, Suite, SuiteResult
from poise.feedback.asking import ask
from poise.feedback.groups import may_harm
from poise.functional.intervals import mean
from poise.functional.policy_losses import clipped_surrogate
from poise.functional.statistics import PlattScale
from poise.models.features import FeatureCache
from poise.models.heads import COST, REWARD, ScoreModel
from poise.models.load import Backbone
from poise.models.one_pass import one_pass
from poise.models.policy import Policy
from poise.pipeline.evaluation import FurtherMetric, evaluate
from poise.pipeline.judging import Judges, judges
from poise.pipeline.limits import COST_BOUND, cost_bound, fitted_to, scorers_of, that_apply
from poise.pipeline.model import DType, feature_cache, start_model
from poise.pipeline.scores import ScoreModelSpec, TrainedScoreModel, fit_scores
from poise.pipeline.sft import ADAPTER, sft_model
from poise.pipeline.unseen_limits import limit_metrics
from poise.ranks import current
from poise.run import Run
from poise.text import say
from poise.train import algorithms
from poise.train.algorithms import PPO, RLOO
from poise.train.estimators import gae_advantage
from poise.train.limit_text import LimitText
from poise.train.score_model import evaluate_scores
from poise.types import Dataset, Engine, Estimate, Prompt, Rollout, Sampling, Scorer

FOR_ROUNDS, ROUNDS_SHARE = "asked-after-", 0.4  # of the training prompts, for all rounds together
SHARES = {"train": 0.4, "judge": 0.35, "test": 0.25}  # for data without splits of its own
SIGNAL = ScoreModelSpec(
    depth=0.5, channels=(REWARD, replace(COST, bound=COST_BOUND)), reading={"pooling": "mean+last+prompt"}
)
JUDGE = ScoreModelSpec(depth=0.7, seed=1000)
ALGORITHMS = {  # any record; these two with what helps in few updates
    **algorithms.ALGORITHMS,
    "ppo": replace(PPO, advantage=gae_advantage(gae_lambda=1.0)),
    "rloo": replace(RLOO, policy_loss=clipped_surrogate, epochs=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the arms of a seed share: rows by use, models, and the judge that none of them is trained on.

    backbone  the base model, whose frozen features judge and signal read, whatever policies start from
    start     what policies start from, and their reference: the SFT model, or the base itself
    judge     None where the data say nothing of kinds or of harm, so that no answer can be judged
    judges    all who judge, the judge among them; None where there is none
    limits    those of the run that speak of prompts which are there
    """

    splits: Mapping[str, Dataset]
    backbone: Backbone
    start: Backbone
    cache: FeatureCache
    judge: TrainedScoreModel | None
    signal_spec: ScoreModelSpec
    judges: Judges | None = None
    limits: tuple[LimitText, ...] = ()

    @property
    def train(self) -> Dataset:
        """What is learned from."""
        return self.splits["train"]

    @property
    def train_prompts(self) -> list[Prompt]:
        """The prompts that a policy is trained on, in the order of their ids."""
        return sorted(self.train.prompts, key=lambda prompt: prompt.id)

    @property
    def test_prompts(self) -> tuple[Prompt, ...]:
        """The test prompts that say their kind, in the order of their ids."""
        return known_prompts(self.splits["test"])

    def outside(self, side: str) -> tuple[Prompt, ...]:
        """The prompts of a side that policies must not learn from; none where there is no such side."""
        return self.splits[side].prompts if side in self.splits else ()

    def asked_after(self, number: int) -> tuple[Prompt, ...]:
        """The prompts that are held out to ask about after a round; none where feedback comes in one round."""
        side = self.splits.get(f"{FOR_ROUNDS}{number}")
        return tuple(sorted(side.prompts, key=lambda prompt: prompt.id)) if side else ()

    @property
    def held_for_rounds(self) -> list[Dataset]:
        """What the data themselves say of these prompts, which neither start nor signal learn."""
        return [side for name, side in self.splits.items() if name.startswith(FOR_ROUNDS)]

    @property
    def left_out(self) -> list[str]:
        """A note on the test prompts that are not evaluated, if there are any."""
        unknown = len(self.splits["test"].prompts) - len(self.test_prompts)
        return [f"{unknown} test prompts do not say their kind and were left out of the evaluation."] if unknown else []

    @property
    def verdict(self) -> TrainedScoreModel | None:
        """The judge with the figures of all who judge."""
        return None if self.judges is None else self.judges.verdict

    @property
    def is_fine_tuned(self) -> bool:
        """Whether policies start from another model than the base."""
        return self.start is not self.backbone

    def policy(self, seed: int) -> Policy:
        """A fresh policy, which is the start model until it is trained."""
        return Policy(self.start, ADAPTER, seed=seed)

    def signal(self, run: Run, *, gathered: Sequence[Dataset] = (), name: str = "scores") -> TrainedScoreModel:
        """Reward and cost heads for training, whose cost also learned from answers that end early."""
        data = with_cut_responses(merge([self.train, *gathered], name="train"))
        measure = partial(unseen_accuracy, test=self.splits["test"])
        return fit_scores(run, self.backbone, data, self.signal_spec, measure=measure, name=name, cache=self.cache)

    def scorers(self, signal: TrainedScoreModel, limits: Sequence[LimitText] = ()) -> list[Scorer]:
        """Who scores responses in training: the signal and whom the limits need, in one pass where they can."""
        refusals = None if self.judges is None else self.judges.limited.model
        return one_pass([signal.model, *scorers_of(limits, refusals)])

    def before(self, run: Run, policy: Policy, *, seed: int, **options: Any) -> tuple[SuiteResult, SuiteResult]:
        """What the base model and the policy's start answer; one result where they are one model.

        options  further arguments of `evaluated`
        """
        if not self.is_fine_tuned:
            base = self.evaluated(run, policy, reference=True, **options)
            return base, base
        unchanged = Policy(self.backbone, ADAPTER, adapter="base", seed=seed)
        base = self.evaluated(run, unchanged, reference=True, **options)
        moved = {"sequence_kl": partial(sequence_kl, unchanged, temperature=options["sampling"].temperature)}
        return base, self.evaluated(run, policy, reference=True, name="evaluate-start", further=moved, **options)

    def evaluated(
        self,
        run: Run,
        policy: Policy,
        *,
        sampling: Sampling,
        name: str = "evaluate",
        signal: TrainedScoreModel | None = None,
        engine: str | Engine = "native",
        reference: bool = False,
        further: Mapping[str, FurtherMetric] | None = None,
        limits: Sequence[LimitText] = (),
    ) -> SuiteResult:
        """Have a policy answer the test prompts, and those who judge decide.

        signal     its own cost of the same answers is measured too, and what the limits come to by it
        reference  the policy's reference answers in its place; else the KL to it is measured
        further    metrics of the answers besides

        Raises DataError where there is no judge.
        """
        if self.judges is None:
            raise DataError(f"{self.train.name}: the data say nothing of kinds or of harm, so that there is no judge")
        further = dict(further or {})
        if not reference:
            further["sequence_kl"] = partial(sequence_kl, policy, temperature=sampling.temperature)
        if signal is not None:
            further["trained_cost"] = partial(limited_cost, signal)
            refusals = self.judges.limited.model
            further |= limit_metrics(signal.model, limits, self.test_prompts, refusals=refusals)
        return evaluate(
            run,
            policy,
            Suite(name="test", prompts=self.test_prompts),
            self.judges.scorers,
            sampling=sampling,
            name=name,
            engine=engine,
            reference=reference,
            further=further,
        )


def prepare(
    run: Run,
    *,
    model: str,
    data: str,
    longest_answer: int,
    chat_template: str | None = None,
    dtype: DType = "auto",
    columns: str = "",
    seed: int = 0,
    supervised_steps: int = 0,
    warmstart_steps: int = 0,
    most_prompts: int = 0,
    rounds: int = 1,
    score_steps: int | None = None,
    needs_judge: bool = True,
    require: Callable[[Dataset], None] = lambda train: None,
    limits: Sequence[LimitText] = (),
) -> Material:
    """Load feedback and the base model, train the judge, and fine-tune the model that policies start from.

    longest_answer    tokens of a response, in training and evaluation: scores read all of it
    chat_template     file with the template to use in place of the tokenizer's
    dtype             what the frozen weights are computed in; auto: what is faster here
    supervised_steps  updates of supervised fine-tuning on preferred responses, whatever they are
    warmstart_steps   updates of it on refusals of harmful prompts, and three times as many answers to harmless ones
    most_prompts      of each split; 0: all
    rounds            of feedback: where there are several, training prompts are held out for each
    score_steps       most updates of the score heads; None: as many as their epochs need
    needs_judge       False: data that say nothing of kinds or of harm are divided in two, and there is no judge
    require           raises an error for rows of the training side that cannot be learned from, before any work
    limits            their groups of prompts must be among the training prompts

    Raises DataError if no test prompt says what kind it is: nothing could be evaluated; ConfigError for a limit on
    prompts that there are none of.
    """
    dataset = read_feedback(run, data, columns=columns)
    splits = divided(dataset, seed=seed, needs_judge=needs_judge, data=data)
    if most_prompts:
        splits = {name: first_prompts(part, most_prompts) for name, part in splits.items()}
    splits = splits | with_rounds(splits["train"], rounds, seed=seed)
    require(splits["train"])
    limits = that_apply(limits, splits["train"].prompts)
    backbone = start_model(run, model, seed=seed, chat_template=chat_template, dtype=dtype)
    cache = feature_cache(run)
    backbone.renderer().check(prompt for part in splits.values() for prompt in part.prompts)
    sight = {"max_response_tokens": longest_answer} if longest_answer > backbone.max_response_tokens else {}
    signal, spec = (
        replace(each, seed=each.seed + seed, max_steps=score_steps, reading={**each.reading, **sight})
        for each in (SIGNAL, JUDGE)
    )
    signal = replace(signal, channels=(REWARD, replace(COST, bound=cost_bound(limits))))
    judge = verdict = None
    if "judge" in splits:
        measure = partial(unseen_accuracy, test=splits["test"])
        judge = fit_scores(run, backbone, splits["judge"], spec, measure=measure, name="judge", cache=cache)
        verdict = judges(run, backbone, judge, longest_answer=longest_answer, most_prompts=most_prompts, cache=cache)
    elif not judges_harm(splits["train"]):
        signal = replace(signal, channels=(REWARD,))
    steps = {"supervised_steps": supervised_steps, "warmstart_steps": warmstart_steps}
    start = sft_model(run, backbone, splits["train"], longest_answer=longest_answer, seed=seed, **steps)
    return Material(
        splits=splits, backbone=backbone, start=start, cache=cache, judge=judge, judges=verdict, signal_spec=signal,
        limits=limits,
    )  # fmt: skip


def samplings(response_tokens: int, temperature: float, seed: int) -> tuple[Sampling, Sampling]:
    """How policies answer in training, and on test prompts: there four times, since one answer is largely chance."""
    sampling = Sampling(max_tokens=response_tokens, temperature=temperature)
    return sampling, replace(sampling, max_tokens=response_tokens * 6 // 5, samples=4, seed=90_001 + seed)


def divided(dataset: Dataset, *, seed: int = 0, needs_judge: bool = True, data: str = "") -> dict[str, Dataset]:
    """The sides train, judge and test; train and test alone where nothing can be judged and nothing needs to be.

    data  as the user gave it, for what the error says

    Raises DataError if a judge is needed and no test prompt says what kind it is.
    """
    splits = split_by_prompt(dataset, SHARES, seed=seed)
    if known_prompts(splits["test"]) and (needs_judge or judges_harm(splits["judge"])):
        return splits
    if not needs_judge:
        return held_out(dataset, seed=seed)
    raise DataError(_why_not_evaluated(dataset.name, splits, data or dataset.name))


def with_rounds(train: Dataset, rounds: int, *, seed: int = 0) -> dict[str, Dataset]:
    """What is learned from first, and a side of prompts to ask about after each round, all kinds in equal shares.

    Raises DataError if there are too few prompts for so many rounds.
    """
    if rounds == 1:
        return {"train": train}
    later = {f"{FOR_ROUNDS}{number}": ROUNDS_SHARE / rounds for number in range(1, rounds + 1)}
    sides = split_in_strata(train, {"train": 1 - ROUNDS_SHARE, **later}, seed=seed)
    if empty := [name for name, side in sides.items() if not side.prompts]:
        raise DataError(
            f"{train.name}: {len(train.prompts)} training prompts are too few for {rounds} rounds: none is left for "
            f"{', '.join(empty)}. Give fewer rounds, or more prompts"
        )
    return sides


def held_limits(limits: Sequence[LimitText], signal: TrainedScoreModel) -> tuple[LimitText, ...]:
    """The limits as the training signal can hold them; the page of a trial says so."""
    return fitted_to(limits, calibrations_of(signal.model), signal.model.bounds)


def calibrations_of(model: ScoreModel) -> dict[str, PlattScale]:
    """How each calibrated channel's value maps to a probability."""
    return {channel.name: channel.calibration for channel in model.channels if channel.calibration is not None}


def read_feedback(run: Run, data: str, **reading: Any) -> Dataset:
    """Data recorded in the run; rows that were not read are counted aloud and kept in quarantine.jsonl."""
    quarantine = run.path / "quarantine.jsonl"
    dataset = load(data, quarantine=quarantine, **reading)
    run.record_data(dataset.name, dataset.provenance)
    if (bad := len(dataset.bad_rows)) and current().is_main:
        first = dataset.bad_rows[0]
        say(
            f"{bad} of {dataset.provenance['rows_read']} rows cannot be read and are left out: {quarantine} has them "
            f"and why. The first, {first.path}:{first.line}: {first.reason}",
            error=True,
        )
    return dataset


def known_prompts(data: Dataset) -> tuple[Prompt, ...]:
    """The prompts that say their kind, in the order of their ids."""
    return tuple(sorted((p for p in data.prompts if p.tags.get("kind") in KINDS), key=lambda prompt: prompt.id))


def _why_not_evaluated(name: str, splits: Mapping[str, Dataset], data: str) -> str:
    """What a user can do where no test prompt has a kind: there are none, or they do not say it."""
    counts = {use: len(part.prompts) for use, part in splits.items()}
    instead = f"or add the starter set: --data starter+{data}"
    if not counts["test"]:
        there = ", ".join(f"{count} in {use}" for use, count in counts.items())
        return (
            f"{name}: no prompt is left to evaluate on: of {sum(counts.values())} prompts there are {there}. Prompts "
            f"without a column split are divided by a hash of their text: give more, some hundred, {instead}"
        )
    return (
        f"{name}: no test prompt says its kind, so that nothing can be evaluated. Give prompts a column kind with "
        f"{', '.join(KINDS)} (docs/data.md), {instead}. Preferences alone, without kinds, are what `poise run dpo` can "
        "do with"
    )


def limited_cost(signal: TrainedScoreModel, rollouts: Sequence[Rollout]) -> Estimate:
    """The mean cost that a limit is set on: of answers to prompts that may do harm, or of all if there are none.

    Answers without a cost are left out. Raises FeedbackError if there is none with one.
    """
    usable = [r for r in rollouts if not r.completion.unfit]
    asked = [r for r in usable if may_harm(r.prompt)] or usable
    scores = ask(signal.model, [r.prompt for r in asked], [r.completion for r in asked]) if asked else []
    known = [(each.values["cost"], r.prompt.id) for r, each in zip(asked, scores, strict=True) if "cost" in each.values]
    if not known:
        raise FeedbackError(f"none of {len(rollouts)} answers has a cost: they are empty, failed, or cannot be scored")
    return mean([cost for cost, _ in known], [prompt for _, prompt in known], unit="sd")


def unseen_accuracy(model: ScoreModel, test: Dataset) -> dict[str, Estimate]:
    """Accuracy on unseen prompts: of all responses, and of those that a model made, which are harder to judge."""
    accuracy = evaluate_scores(model, test.comparisons, test.labels)
    made = [label for label in test.labels if label.origin.name.endswith(":model")]
    if made:
        accuracy["cost_sign_accuracy_on_model_answers"] = evaluate_scores(model, (), made)["cost_sign_accuracy"]
    return accuracy
