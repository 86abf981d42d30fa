"""What the recipe `dpo` is made of: its settings, the losses by name, the training stage and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from poise.data import select
from poise.data.batching import epoch_order
from poise.errors import ConfigError, DataError
from poise.evaluate.compare import compare
from poise.evaluate.report import write_report
from poise.evaluate.suite import SuiteResult
from poise.functional.implied_rewards import alpha_reward, forward_kl_reward, jensen_shannon_reward
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import TrainedScoreModel, optimise_preferences
from poise.recipes import _report
from poise.recipes._arms import publish
from poise.recipes._held_out import judges_harm
from poise.recipes._real_report import estimate_text, markdown_table
from poise.recipes._scores import COST_BOUND
from poise.recipes._stages import Study, StudySettings, taken
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.limits import require_reachable
from poise.train.objectives import Limit, ProjectedAscent
from poise.train.preference import evaluate_preferences
from poise.train.preference_feedback import Feedback, PairFeedback
from poise.train.preference_methods import (
    AsJudged,
    ConstrainedLabels,
    Labels,
    PreferenceMethod,
    conservative_dpo,
    dpo,
    graded_by,
    ipo,
    kto,
    mmpo,
    offset_dpo,
    orpo,
    robust_dpo,
    simpo,
    with_supervised,
)
from poise.train.rollout_batch import score_all
from poise.train.spread import spread_engine
from poise.types import Comparison, Dataset, Estimate, SafetyLabel, Sampling, Verdict

CRITERIA = {"helpful": ("helpful",), "safe": ("safe",), "both": ("helpful", "safe")}
CURVES = (
    *("step", "loss", "reward_accuracy", "reward_margin", "chosen_drift", "rejected_drift", "chosen_logprob"),
    *("rejected_logprob", "multiplier", "mean_cost", "baseline"),
)
PAIR_FIGURES = ("reward_accuracy", "reward_margin", "chosen_drift", "rejected_drift")
_COST_PROMPTS = 16  # answered for one look at the mean cost
_COST_LOOKS = 8  # in a run


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings(StudySettings):
    """The resolved arguments of a run of the recipe `dpo`."""

    loss: str
    criterion: str
    beta: float | None
    supervised_weight: float
    limit: float
    steps: int
    prompts_per_step: int
    lr: float

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> PreferenceSettings:
        """Take a recipe's arguments and check them."""
        settings = taken(cls, arguments)
        settings.require(
            at_least_one=("steps", "prompts_per_step", "response_tokens"),
            above_zero=("temperature", "lr") + (() if settings.beta is None else ("beta",)),
            not_negative=("supervised_steps", "supervised_weight"),
        )
        for value, known, name in ((settings.loss, LOSSES, "loss"), (settings.criterion, CRITERIA, "criterion")):
            if value not in known:
                raise ConfigError(f"no {name} {value!r}: choose {', '.join(known)}")
        if LOSSES[settings.loss].labels is under_limit:
            require_reachable(settings.limit, COST_BOUND)
        if settings.supervised_weight > 0 and settings.loss == "kto":
            raise ConfigError(
                "supervised_weight needs a loss of pairs, and kto reads responses one by one: set it to 0"
            )
        return settings

    @property
    def method(self) -> PreferenceMethod:
        """The loss with its beta and its supervised term."""
        choice = LOSSES[self.loss]
        method = choice.make(beta=choice.beta if self.beta is None else self.beta)
        return with_supervised(method, coefficient=self.supervised_weight) if self.supervised_weight > 0 else method


def as_judged(study: Study[PreferenceSettings], policy: Policy, scorer: TrainedScoreModel | None) -> Labels:
    """Labels as people gave them."""
    return AsJudged()


def under_limit(study: Study[PreferenceSettings], policy: Policy, scorer: TrainedScoreModel | None) -> Labels:
    """Labels by reward less the price of cost; the price moves by answers of the policy to some training prompts."""
    assert scorer is not None
    model, settings, prompts = scorer.model, study.settings, study.prompts("train")
    engine, count = spread_engine(NativeEngine(policy)), min(_COST_PROMPTS, len(prompts))

    def mean_cost(index: int) -> float:
        asked = [prompts[i] for i in epoch_order(len(prompts), count, index, seed=settings.seed)]
        sampling = Sampling(max_tokens=settings.response_tokens, temperature=settings.temperature, seed=index)
        found = score_all([model], asked, engine.generate(asked, sampling), 1)
        return sum(rollout.scores.values["cost"] for rollout in found) / len(found)

    controller = ProjectedAscent(multiplier=2.0, rate=1.0)
    every = max(1, settings.steps // _COST_LOOKS)
    return ConstrainedLabels(Limit(at_most=settings.limit), controller, mean_cost, every=every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A loss that the command line can name."""

    make: Callable[..., PreferenceMethod]
    beta: float = 0.1
    is_scored: bool = False  # it asks a score model about the pairs
    labels: Callable[[Study[PreferenceSettings], Policy, TrainedScoreModel | None], Labels] = field(default=as_judged)


def _graded(make: Callable[..., PreferenceMethod]) -> Callable[..., PreferenceMethod]:
    return lambda *, beta: graded_by(make(beta=beta), "reward")


LOSSES = {
    "dpo": Choice(make=dpo),
    "cdpo": Choice(make=conservative_dpo),
    "rdpo": Choice(make=robust_dpo),
    "ipo": Choice(make=ipo),
    "simpo": Choice(make=simpo, beta=2.0),
    "orpo": Choice(make=orpo),
    "kto": Choice(make=kto),
    "forward-kl": Choice(make=partial(dpo, implied_reward=forward_kl_reward)),
    "jensen-shannon": Choice(make=partial(dpo, implied_reward=jensen_shannon_reward)),
    "alpha": Choice(make=partial(dpo, implied_reward=partial(alpha_reward, alpha=0.5))),
    "mmpo": Choice(make=_graded(mmpo), is_scored=True),
    "odpo": Choice(make=_graded(partial(offset_dpo, scaling=lambda margin: margin)), is_scored=True),
    "constrained": Choice(make=dpo, is_scored=True, labels=under_limit),
}


def learn_preferences(run: Run, study: Study[PreferenceSettings], scorer: TrainedScoreModel | None) -> Policy:
    """Train a fresh adapter on the comparisons of the training split."""
    settings = study.settings
    policy = Policy(study.backbone, Lora(top=0.5), adapter="policy", seed=settings.seed)
    return optimise_preferences(
        run,
        policy,
        settings.method,
        _feedback(study, policy, study.splits["train"], CRITERIA[settings.criterion], scorer),
        labels=LOSSES[settings.loss].labels(study, policy, scorer),
        steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
        lr=settings.lr,
        seed=settings.seed,
    )


def measure_pairs(
    run: Run, study: Study[PreferenceSettings], policy: Policy, scorer: TrainedScoreModel | None
) -> dict[str, dict[str, Estimate]]:
    """The method's own view of held-out feedback: of what it was trained for, and of each criterion alone."""
    settings, stage, test = study.settings, run.stage("held-out-pairs"), study.splits["test"]
    if not stage.finished:
        found = {}
        for name in (settings.criterion, *(n for n in ("helpful", "safe") if n != settings.criterion)):
            rows = Rows.of(test, CRITERIA[name], settings.method)
            if rows.comparisons or (name == settings.criterion and rows.num_prompts > 1):
                feedback = _feedback(study, policy, test, CRITERIA[name], scorer)
                found[name] = evaluate_preferences(policy, settings.method, feedback)
        stage.finish(found)
    return {name: {key: Estimate(**value) for key, value in row.items()} for name, row in stage.result.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a method can learn from in a data set under some criteria."""

    comparisons: tuple[Comparison, ...]
    labels: tuple[SafetyLabel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, data: Dataset, criteria: tuple[str, ...], method: PreferenceMethod) -> Rows:
        """Comparisons; for a method of single responses verdicts, and safety labels where there are no comparisons."""
        comparisons = select(data, criterion=criteria).comparisons
        if method.feedback is PairFeedback:
            return cls(comparisons=comparisons)
        labels = () if data.comparisons or "safe" not in criteria else data.labels
        return cls(comparisons=comparisons, labels=labels, verdicts=data.verdicts)

    @property
    def num_prompts(self) -> int:
        """Prompts with any of them."""
        prompts = [row.prompt for row in self.comparisons] + [row.prompt for row in self.labels]
        return len({prompt.id for prompt in prompts + [row.prompt for row in self.verdicts]})


def _feedback(
    study: Study[PreferenceSettings],
    policy: Policy,
    data: Dataset,
    criteria: tuple[str, ...],
    scorer: TrainedScoreModel | None,
) -> Feedback:
    """What the method reads of the data, as its feedback."""
    method = study.settings.method
    rows = Rows.of(data, criteria, method)
    if not rows.num_prompts:
        alone = len(data.verdicts) + len(data.labels)
        hint = f"; {alone} responses are judged one by one there, which --loss kto learns from" if alone else ""
        raise DataError(
            f"{study.settings.data}: no comparisons under {' or '.join(criteria)} in {data.name!r}"
            + (hint if method.feedback is PairFeedback else "")
        )
    model = None if scorer is None else scorer.model
    return method.feedback(policy, rows.comparisons, rows.labels, rows.verdicts, scorer=model)


def require_scorable(settings: PreferenceSettings, data: Dataset) -> None:
    """Raise DataError if a loss asks a score model that has nothing to learn from."""
    if LOSSES[settings.loss].is_scored and not any(each.criterion == "helpful" for each in data.comparisons):
        raise DataError(f"--loss {settings.loss} needs comparisons under helpful, and {settings.data} has none")
    if LOSSES[settings.loss].labels is under_limit and not judges_harm(data):
        raise DataError(
            f"--loss {settings.loss} needs comparisons under safe or safety labels, and {settings.data} has neither"
        )


def report(
    run: Run,
    study: Study[PreferenceSettings],
    judge: TrainedScoreModel,
    scorer: TrainedScoreModel | None,
    before: SuiteResult,
    after: SuiteResult,
    pairs: Mapping[str, Mapping[str, Estimate]],
    *,
    target: str = "",
) -> dict[str, Any]:
    """Write report.html, report.json, dpo.md and summary.json; the summary is printed as the last line.

    `target` is a second place for dpo.md.
    """
    settings = study.settings
    versus = compare(before.rollouts, after.rollouts)
    publish(run, page_text(settings, judge, before, after, versus, pairs), run.path / "dpo.md", target)
    page = _report.shared_page(run, study, judge, before, after, versus) | {
        "title": "Preference optimisation",
        "subtitle": f"{settings.model} on {settings.data}, loss {settings.loss}, seed {settings.seed}",
        "curves": _report.curves(run.metrics("policy"), CURVES),
        "learned": accuracy_rows(pairs) + ([] if scorer is None else _report.learned(scorer)),
        "notes": _report.notes(
            study, "Drifts are log-ratios to the start model; where both fall, the policy moves to other text."
        ),
    }
    write_report(run.path, page)
    return run.finish(pair_summary(run, settings, pairs) | _report.outcome_summary(study, before, after, versus))


def pair_summary(run: Run, settings: PreferenceSettings, pairs: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """What the method says of held-out feedback, and where the last update stood."""
    main = pairs.get(settings.criterion, {})
    trends = {f"held_out_{name}": main.get(name) for name in ("reward_margin", "chosen_drift", "rejected_drift")}
    accuracies = {
        f"reward_accuracy_{name}": pairs[name].get("reward_accuracy") for name in ("helpful", "safe") if name in pairs
    }
    last = run.metrics("policy")[-1]
    trained = {
        f"trained_{name}": last[name] for name in ("chosen_drift", "rejected_drift", "multiplier") if name in last
    }
    accuracy = main.get("reward_accuracy")
    return (
        {"loss": settings.loss, "criterion": settings.criterion, "reward_accuracy": accuracy}
        | accuracies
        | trends
        | trained
    )


def accuracy_rows(pairs: Mapping[str, Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    """The accuracy on held-out feedback, for the page."""
    return [
        {"label": f"Reward accuracy, held-out {name} pairs", "value": row["reward_accuracy"], "note": ""}
        for name, row in pairs.items()
        if "reward_accuracy" in row
    ]


def held_out_table(pairs: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The figures on held-out feedback as Markdown."""
    rows = [
        [
            criterion,
            *(estimate_text(found[name]) if name in found else "–" for name in PAIR_FIGURES),
            str(found["loss"].n),
        ]
        for criterion, found in pairs.items()
    ]
    return markdown_table(["criterion", *(name.replace("_", " ") for name in PAIR_FIGURES), "n"], rows)


def page_text(
    settings: PreferenceSettings,
    judge: TrainedScoreModel,
    before: SuiteResult,
    after: SuiteResult,
    versus: Mapping[str, Estimate],
    pairs: Mapping[str, Mapping[str, Estimate]],
) -> str:
    """What the run found, as Markdown: the judge's verdicts before and after, held-out pairs, and the judge's worth."""
    old, new = before.evaluation.metrics, after.evaluation.metrics
    verdicts = [
        [label, estimate_text(old[name]), estimate_text(new[name]), str(new[name].n)]
        for name, label, _ in _report.HEADLINE
        if name in old and name in new
    ]
    against = [
        [name.replace("_", " "), estimate_text(value), str(value.n)]
        for name, value in {**versus, "KL, nats a sequence": new["sequence_kl"]}.items()
    ]
    blocks = [
        "# Preference optimisation on decoupled comparisons",
        f"{settings.model} on {settings.data}: loss {settings.loss}, criterion {settings.criterion}, {settings.steps} "
        f"steps of {settings.prompts_per_step} prompts, seed {settings.seed}. In brackets 95 % intervals over prompts.",
        *(["A smoke test with a tiny random model: the numbers mean nothing."] if settings.quick else []),
        markdown_table(["by the held-out judge, test prompts", "before", "after", "n"], verdicts),
        markdown_table(["against the start model", "value", "n"], against),
        "## Held-out pairs\n\nRewards are those that the loss implies; drifts are log-ratios to the start in nats.",
        held_out_table(pairs),
        "## What the judge is worth",
        markdown_table(["on prompts that it never saw", "value", "n"], [
            [name.replace("_", " "), estimate_text(value), str(value.n)] for name, value in judge.accuracy.items()
        ]),
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"
