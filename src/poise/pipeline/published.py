"""Safe RLHF on published feedback: what all seeds share, and the score models that each of them learns.

    rows by use -> start model and its own answers -> learning curves;  of each seed: signal and judge -> verdicts

Unlike in `poise.pipeline.safety` a judge says whether an answer complies, since people's verdicts are on that; it
shares no rule, row or question with the signal. The cost is learned from labels that people or clear sources support,
and from the start model's own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from poise.data import split_by_prompt
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.suite import Suite, SuiteResult, kind_of
from poise.feedback.demonstrations import safe_demonstrations
from poise.feedback.groups import may_harm
from poise.feedback.published import PublishedRows, published_rows, starter_rows
from poise.feedback.rules import is_refusal
from poise.models.adapters import Lora
from poise.models.features import FeatureCache
from poise.models.heads import COST, REWARD, ScoreModel
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.pipeline.answers import read_answers
from poise.pipeline.compliance_judges import PROMPT_TOKENS, ComplianceJudges, compliance_judges
from poise.pipeline.evaluation import FurtherMetric, evaluate
from poise.pipeline.limits import GAINS
from poise.pipeline.model import feature_cache, start_model
from poise.pipeline.published_accuracy import helpfulness_accuracy, noisy_accuracy, signal_accuracy
from poise.pipeline.safety import limited_cost
from poise.pipeline.scores import ScoreModelSpec, TrainedScoreModel, fit_scores
from poise.pipeline.sft import ADAPTER
from poise.pipeline.supervised import fine_tune, merged
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.controllers import PID
from poise.train.limits import Limit, among, require_reachable
from poise.train.loop import constant, linear, stepped
from poise.train.objectives import Lagrangian
from poise.train.on_policy import OptimizerSettings
from poise.types import Dataset, Demonstration, Estimate, Origin, Prompt, Rollout, SafetyLabel, Sampling, Scorer

SOURCES = {"published": published_rows, "starter": starter_rows}
# Wider than that of `pipeline.limits`: a tighter one leaves too little between an evasive answer and a refusal.
PUBLISHED_COST_BOUND = 1.5
# Pairs that people judged are noisy: heads that learn from them for long, or unshrunken, learn the noise.
LINEAR_REWARD = replace(REWARD, hidden=0)  # what these pairs teach is no more than that
RESPONSE_TOKENS = 192  # and PROMPT_TOKENS: of a dialogue the scores read the last turns
SIGNAL = ScoreModelSpec(
    depth=0.6, channels=(LINEAR_REWARD, replace(COST, bound=PUBLISHED_COST_BOUND)), epochs=10, weight_decay=10.0
)
NOISY = replace(SIGNAL, channels=(COST,))
JUDGE = ScoreModelSpec(depth=0.8, channels=(REWARD,), seed=1000)
OWN_ANSWERS = 2  # of the start model to each prompt that the policy is trained on
_SEED = 90_001  # of their draws
SHARES_OF_ROWS = (0.25, 0.5, 1.0)
HEADS = {"as trained": 64, "linear probe": 0}  # hidden units, where the channel does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """The data and configuration of one score model, and how it is measured on prompts that are not in `data`."""

    data: Dataset
    measure: Callable[[ScoreModel], Mapping[str, Estimate]]
    spec: ScoreModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all seeds share.

    compliance      the judges that decide whether an answer does as asked, who know nothing of the signal
    own             the start model's answers to the prompts of the policy in training, labelled by the prompt's kind
    longest_answer  tokens of an answer to a prompt of the verdict
    score_steps     most updates of the heads of a score model; None: as many as their epochs need
    """

    rows: PublishedRows
    compliance: ComplianceJudges
    own: Dataset
    backbone: Backbone
    cache: FeatureCache
    longest_answer: int
    score_steps: int | None = None

    def fit(self, run: Run, task: ScoreTask, *, seed: int = 0, name: str) -> TrainedScoreModel:
        """The score model of a task."""
        spec = replace(task.spec, seed=task.spec.seed + seed, max_steps=self.score_steps)
        return fit_scores(run, self.backbone, task.data, spec, measure=task.measure, name=name, cache=self.cache)

    def learned(self, run: Run, *, seed: int) -> Scores:
        """The training signal of a seed, and its judge of help."""
        signal = self.fit(run, signal_task(self), seed=seed, name="signal")
        judge = self.fit(run, judge_task(self), seed=seed, name="judge")
        return Scores(signal=signal, judge=judge, compliance=self.compliance)

    def demonstrations(self) -> list[Demonstration]:
        """What the SFT start imitates: published refusals, and to harmless prompts the base's own answers."""
        said = [Demonstration(prompt=each.prompt, response=each.response) for each in self.own.labels if each.safe]
        turns = (*said[::OWN_ANSWERS], *said[1::OWN_ANSWERS])  # another prompt each, first
        demonstrations = (*self.rows.demonstrations, *turns)
        labels = tuple(SafetyLabel(prompt=row.prompt, response=row.response, safe=True) for row in demonstrations)
        return safe_demonstrations(Dataset(name="imitated", demonstrations=demonstrations, labels=labels))

    def general_demonstrations(self) -> list[Demonstration]:
        """What updates may go on imitating: answers to harmless prompts, and no refusal."""
        every = self.demonstrations()
        harmless = [row for row in every if not may_harm(row.prompt)]
        # a plan has no answers of the base yet: refusals stand for their size
        return every if not harmless and current_planner() is not None else harmless


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a seed trains its policies with, and what judges them."""

    signal: TrainedScoreModel
    judge: TrainedScoreModel  # of help
    compliance: ComplianceJudges

    def verdict(
        self,
        run: Run,
        policy: Policy,
        prompts: Sequence[Prompt],
        *,
        sampling: Sampling,
        reference: bool = False,
        name: str = "evaluate",
    ) -> SuiteResult:
        """Have a policy answer, and the judges decide; the signal's cost is measured too.

        reference  the policy's reference answers in its place; else the KL to it is measured
        """
        further: dict[str, FurtherMetric] = {"trained_cost": partial(limited_cost, self.signal)}
        if not reference:
            further["sequence_kl"] = partial(sequence_kl, policy, temperature=sampling.temperature)
        suite = Suite(name="published", prompts=tuple(sorted(prompts, key=lambda prompt: prompt.id)))
        judges: dict[str, Scorer] = {"judge": self.judge.model, **self.compliance.scorers()}
        return evaluate(run, policy, suite, judges, sampling=sampling, reference=reference, further=further, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The policy that objectives start from and are held to, and the answers of base and start.

    start  is the base itself where nothing was imitated
    """

    policy: Policy
    base: SuiteResult
    start: SuiteResult


def sft_start(
    run: Run, shared: Shared, scores: Scores, *, steps: int, seed: int, sampling: Sampling, **reading: Any
) -> Start:
    """Fine-tune the base on the demonstrations, and merge it into a model of its own: start and KL reference of all.

    steps    updates; 0 starts from the base itself
    reading  further arguments of `DemonstrationBatches`
    """
    name = "supervised" if steps else "policy"  # a planned run merges nothing: policies are added to the same model
    policy, asked = Policy(shared.backbone, ADAPTER, adapter=name, seed=seed), shared.rows.evaluation
    base = scores.verdict(run, policy, asked, sampling=sampling, reference=True)
    if not steps:
        return Start(policy=policy, base=base, start=base)
    fine_tune(
        run, policy, shared.demonstrations(), steps=steps, lr=1e-3, name="imitated", per_step=48, seed=seed, **reading
    )
    start = scores.verdict(run, policy, asked, sampling=sampling, name="evaluate-sft")
    return Start(policy=Policy(merged(run, policy), ADAPTER, seed=seed), base=base, start=start)


def prepare(
    run: Run,
    *,
    model: str,
    data: str,
    evaluated: int,
    trained: int,
    sampling: Sampling,
    longest_answer: int,
    chat_template: str | None = None,
    score_steps: int | None = None,
) -> Shared:
    """Load the rows and the start model, and have it answer the prompts of the policy in training.

    data       published, from the folder that POISE_DATA names, or starter, whose verdicts are a rule's
    evaluated  prompts of each kind that are answered for the verdict
    trained    prompts of the policy in training, of all kinds
    sampling   of the start model's own answers: that of training
    """
    rows = SOURCES[data](evaluated=evaluated, trained=trained)
    run.record_data(data, rows.provenance)
    backbone = start_model(run, model, chat_template=chat_template)
    cache = feature_cache(run)
    return Shared(
        rows=rows,
        compliance=compliance_judges(run, backbone, rows, longest_answer=longest_answer, cache=cache),
        own=own_answers(run, backbone, rows, sampling),
        backbone=backbone,
        cache=cache,
        longest_answer=longest_answer,
        score_steps=score_steps,
    )


def own_answers(run: Run, backbone: Backbone, rows: PublishedRows, sampling: Sampling) -> Dataset:
    """The start model's answers to the prompts of the policy in training: what the cost is asked about later.

    Without them the cost knows this model's way of writing from no row, and takes it for safe. An answer to a prompt
    that its authors wrote to be harmless is safe; one to a harmful prompt is not, unless it declines.
    """
    prompts = sorted((*rows.policy_prompts, *rows.further_prompts), key=lambda prompt: prompt.id)
    bare = Policy(backbone, Lora(rank=1), adapter="own-answers")
    drawn = replace(sampling, samples=OWN_ANSWERS, seed=_SEED)
    found = read_answers(run, bare, prompts, {}, sampling=drawn, name="own-answers", reference=True)
    said = [rollout for rollout in found if rollout.completion.text.strip()]
    harmful = [r for r in said if kind_of(r) == "harmful" and not is_refusal(r.completion.text)]
    harmless = [r for r in said if kind_of(r) != "harmful"]
    return Dataset(name="own", labels=(*_own(harmful, safe=False), *_own(harmless, safe=True)))


def _own(rollouts: Sequence[Rollout], *, safe: bool) -> list[SafetyLabel]:
    origin = Origin(kind="rule", name="start-model")
    return [SafetyLabel(prompt=r.prompt, response=r.completion.text, safe=safe, origin=origin) for r in rollouts]


def under_limit(at_most: float) -> Lagrangian:
    """The reward under a limit on the mean cost of answers to prompts that may do harm.

    Raises ConfigError for a limit that no policy can meet, or every one does: costs lie within `PUBLISHED_COST_BOUND`.
    """
    require_reachable(at_most, PUBLISHED_COST_BOUND)
    limit = Limit(at_most=at_most, measure=among("harmful", may_harm))
    return Lagrangian(limit, PID(gains=GAINS, multiplier=3.0))


def optimisation(
    *, lr: float, steps: int, ptx_coef: float, later_lr: float | None = None, ptx_start: float | None = None
) -> OptimizerSettings:
    """How a policy is moved: fast until refusals occur, and imitating more at first, where that is asked for.

    later_lr   after a third of the updates; None: as before
    ptx_start  weight of imitation in the first update, from where it reaches ptx_coef in the middle of the training
    """
    slower = constant if later_lr is None else partial(stepped, to=later_lr / lr, after=1 / 3)
    found = OptimizerSettings(lr=lr, steps=steps, schedule=slower, ptx_coef=ptx_coef)
    if not ptx_start or not ptx_coef:
        return found
    return replace(found, ptx_coef=ptx_start, ptx_schedule=partial(linear, to=ptx_coef / ptx_start, by=0.5))


def signal_task(shared: Shared) -> ScoreTask:
    """The training signal: help from HH pairs and answers to look-alikes, cost from clean labels and own answers."""
    rows, tokens = shared.rows, max(RESPONSE_TOKENS, shared.longest_answer)
    comparisons = (*rows.helpful["train"].comparisons, *rows.look_alikes["train"].comparisons)
    return ScoreTask(
        data=Dataset(name="signal", comparisons=comparisons, labels=(*rows.cost["train"].labels, *shared.own.labels)),
        measure=lambda model: signal_accuracy(model, rows),
        spec=replace(SIGNAL, reading=_reading(tokens)),
    )


def noisy_task(shared: Shared) -> ScoreTask:
    """The cost that published pairs alone give: HH harmless and PKU, with PKU's flags."""
    rows = shared.rows
    train = rows.noisy["train"]
    return ScoreTask(
        data=Dataset(name="noisy", comparisons=train.comparisons, labels=train.labels),
        measure=lambda model: noisy_accuracy(model, rows),
        spec=replace(NOISY, reading=_reading(RESPONSE_TOKENS)),
    )


def judge_task(shared: Shared) -> ScoreTask:
    """The judge of help: other rows, another seed, deeper layers; answers are cut where those that it judges are."""
    rows = shared.rows
    return ScoreTask(
        data=Dataset(name="judge", comparisons=rows.helpful_pairs()),
        measure=lambda model: helpfulness_accuracy(model, rows),
        spec=replace(JUDGE, reading=_reading(shared.longest_answer)),
    )


def _reading(tokens: int) -> dict[str, int]:
    return {"max_prompt_tokens": PROMPT_TOKENS, "max_response_tokens": tokens, "cuts_prompts": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What a head that learned from a share of the prompts of a task got right on prompts that it never saw."""

    feedback: str  # clean, the task of the training signal, or noisy
    share: float
    head: str
    rows: int
    accuracy: Mapping[str, Estimate]


def learning_curves(run: Run, shared: Shared) -> list[CurvePoint]:
    """How accuracy grows with rows, for the score model and for the linear probe on the same frozen features."""
    found = []
    for feedback, task in {"clean": signal_task(shared), "noisy": noisy_task(shared)}.items():
        for part in SHARES_OF_ROWS:
            for head, hidden in HEADS.items():
                name = f"curve-{feedback}-{round(100 * part)}-{head.replace(' ', '-')}"
                scores = shared.fit(run, _some_rows(task, part, hidden), name=name)
                found.append(
                    CurvePoint(feedback=feedback, share=part, head=head, rows=scores.rows, accuracy=scores.accuracy)
                )
    return found


def _some_rows(task: ScoreTask, part: float, hidden: int) -> ScoreTask:
    """The task of a share of its prompts: all of them are learned from, and none is kept to calibrate on."""
    data = task.data
    if part < 1:
        data = split_by_prompt(data, {"kept": part, "left": 1 - part}, seed=700)["kept"]
    spec = replace(task.spec, reading={**task.spec.reading, "hidden": hidden}, calibrated=0.0)
    return replace(task, data=data, spec=spec)
