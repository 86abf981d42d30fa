"""What studies of safety report: a table over prompts, a page for each policy, and the summary of a run.

A held-out judge decides of every answer; all differences are paired with the answers of the same start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from poise.evaluate.report import write_report
from poise.evaluate.stages import JudgedStage
from poise.evaluate.suite import SuiteResult, has_score, is_harmful, is_harmful_by_labels, is_refused, kind_of
from poise.evaluate.verdict import LimitFinding
from poise.experiment.again import what_it_takes
from poise.experiment.results import Results
from poise.experiment.safety_page import compared_rows, label_of, page_of, smoke_warning
from poise.experiment.safety_seeds import ALIKE, alike, answers_of, over_seeds_of, told_of
from poise.experiment.study import Metric, Trial
from poise.files import read_json
from poise.functional.ratings import elo_estimate
from poise.pipeline import TrainedScoreModel
from poise.pipeline.limits import cost_limit
from poise.run import Run
from poise.train.limit_text import LimitText
from poise.types import Estimate, Rollout

_WORTH = "What the judge and the signal are worth, on prompts that they never saw"
_PAIRED = (
    "What changed, answer by answer to the same prompts: against the start of the same stage, and against the base"
)
_SHARES = {
    "harm": "harm",
    "labels_harm": "harm by the data's labels",
    "look_alikes": "look-alikes refused",
    "plain": "plain prompts refused",
}
OVER_REFUSAL = Metric(name="over_refusal", label="harmless prompts refused", unit="share", over="prompts")
STARTS = tuple(  # for studies in which the start has no row of its own
    Metric(name=f"{name}_start", label=f"{label}, before", unit="share", over="prompts")
    for name, label in _SHARES.items()
)
METRICS = (
    Metric(name="harm", label="harm", unit="share", over="prompts"),
    Metric(name="labels_harm", label="harm by the data's labels", unit="share", over="prompts"),
    Metric(name="look_alikes", label="look-alikes refused", unit="share", over="prompts"),
    Metric(name="plain", label="plain prompts refused", unit="share", over="prompts"),
    Metric(name="wins", label="helpful wins against the start", unit="share", over="prompts"),
    Metric(name="wins_base", label="helpful wins against the base", unit="share", over="prompts"),
    Metric(name="trained_cost", label="mean cost by the training signal", unit="sd"),
    Metric(name="sequence_kl", label="KL to the start", unit="nats/sequence"),
    *(
        Metric(
            name=f"{name}_less_{side}",
            label=f"{label}, less the {side}'s",
            unit="share",
            over="prompts",
            table=_PAIRED,
            change=(name, f"{name}_{side}"),
        )
        for name, label in _SHARES.items()
        for side in ("start", "base")
    ),
    *(
        Metric(name=f"{who} {figure}", label=f"{who} {figure}", unit="share", over="facts", table=_WORTH)
        for who in ("judge:", "signal:")
        for figure in (
            "reward pair accuracy",
            "cost pair accuracy",
            "cost sign accuracy",
            "cost sign accuracy on model answers",
        )
    ),
    Metric(
        name="signal: cost calibration error",
        label="signal: error of the probability of harm, calibrated",
        over="facts",
        summary="largest",
        table=_WORTH,
    ),
    *ALIKE,
)
LABELS = {
    "lagrangian": "Lagrangian (Safe RLHF)",
    "base": "base model",
    "sft": "SFT start: demonstrations alone, where every objective starts",
}
NOTES = (
    "Small models and a small set: this shows how the parts work together, not the figures of the paper.",
    "Stages: the base model; the SFT start, fine-tuned on demonstrations; the policy, which starts from it and is held "
    "to it. A difference is paired with the start of the same stage: the SFT start's with the base, a policy's with "
    "the SFT start.",
    "The kept policy is an average of the weights over updates: the best one that meets every limit on prompts that "
    "neither policy nor signal learn from, or the one that misses them least.",
)
CURVES = ("step", "reward", "cost", "multiplier", "kl", "sequence_kl", "entropy", "response_tokens", "logprob_gap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What one policy is judged by: the answers of its start and its own, and what the judge and the signal are worth.

    start                 of the same stage: the model that it was trained from
    base                  the model before all stages, where it is another
    learned               rows of the page, on what was learned
    settings, provenance  what the page shows of the run
    curves                logged steps of its training, in the page's names
    held                  what the limits came to on prompts that training never saw
    """

    start: SuiteResult
    final: SuiteResult
    base: SuiteResult | None = None
    judge: TrainedScoreModel | None = None
    signal: TrainedScoreModel | None = None
    curves: Sequence[Mapping[str, Any]] = ()
    learned: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    limit: float | None = None
    held: Sequence[LimitFinding] = ()

    @property
    def stages(self) -> list[JudgedStage]:
        """The stages that it went through, each once, the policy itself as the last."""
        has_base = self.base is not None and self.base is not self.start
        if self.final is self.start:
            return [
                JudgedStage(name="final", label="start model" if self.base is None else "base model", result=self.final)
            ]
        first = "SFT start" if has_base else "start model" if self.base is None else "base model"
        found = [
            JudgedStage(name="start", label=first, result=self.start),
            JudgedStage(name="final", label="final policy", result=self.final),
        ]
        return (
            [JudgedStage(name="base", label="base model", result=self.base), *found]
            if self.base and has_base
            else found
        )


def safety_trial(
    part: Run,
    title: str,
    verdicts: Verdicts,
    *,
    sections: Mapping[str, Any] | None = None,
    further: Trial | None = None,
    **paths: str,
) -> Trial:
    """A trial's figures by prompt, after its page has been written into its part of the run as report.html.

    sections, further  of the page and of the trial: what a method adds to what all have
    """
    start, final, stages = verdicts.start.rollouts, verdicts.final.rollouts, verdicts.stages
    page = page_of(title, stages, limits=verdicts.held, judge=_accuracy(verdicts.judge)) | {
        "subtitle": part.path.name,
        "banner": smoke_warning(part.arguments, final),
        "curves": verdicts.curves,
        "learned": [*verdicts.learned, *(learned(verdicts.signal) if verdicts.signal else [])],
        "settings": verdicts.settings,
        "provenance": {"run": part.path.parent.name, **verdicts.provenance},
        "notes": verdicts.notes,
        **(sections or {}),
    }
    write_report(part.path, page | ({} if verdicts.limit is None else {"limit": verdicts.limit}))
    found, by_prompt, more = verdicts.final.evaluation.metrics, shares("", final), further or Trial()
    if len(stages) > 1:
        by_prompt |= shares("_start", start) | {"wins": wins_by_prompt(start, final)}
    if len(stages) > 1 and verdicts.base is not None:
        base = verdicts.base.rollouts
        by_prompt |= shares("_base", base) | {"wins_base": wins_by_prompt(base, final)}
    return Trial(
        metrics={name: found[name].value for name in ("trained_cost", "sequence_kl") if name in found}
        | alike(stages)
        | dict(more.metrics),
        by_prompt={name: values for name, values in (by_prompt | dict(more.by_prompt)).items() if values},
        facts={
            f"{who} {label_of(name)}": value
            for who, scores in (("judge:", verdicts.judge), ("signal:", verdicts.signal))
            for name, value in _accuracy(scores).items()
        }
        | dict(more.facts),
        paths={"report": f"{part.path.name}/report.html", **answers_of(part.path.parent, stages), **paths},
    )


def safety_report(
    run: Run, results: Results, *, main: str, limits: Sequence[LimitText] = (), **facts: Any
) -> dict[str, Any]:
    """Write report.html: the page of the main arm's first seed, beside all arms of that seed; returns the summary.

    Of several seeds the sentence and the table of stages speak of all.
    """
    understood = [each.record() for each in limits]
    run.record_reading("limits", understood)
    main = main if main in results.trials else next(iter(results.trials))
    folders = {arm: run.path / f"{arm}-seed-{results.seeds[0]}" for arm in results.trials}
    pages = {arm: read_json(folder / "report.json") for arm, folder in folders.items()}
    page = pages[main] | over_seeds_of(run, results, main)
    if len(pages) > 1:
        labels = {arm: results.study.label(arm) for arm in pages}
        page["comparison"] = compared_rows(pages, labels, main)
    page["banner"] = smoke_warning(run.arguments) or page["banner"]
    write_report(run.path, page | {"again": what_it_takes(run)})
    told = {"rounds": page["rounds"]} if page.get("rounds") else {}
    return {"objective": main, **_figures(page), "limits": understood, **facts, **told, **told_of(page)}


def _figures(page: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of the policy and of its own start."""
    rows, stages = {row["metric"]: row["values"] for row in page["headline"]}, page["stages"]
    first, before, after = (stages[at]["name"] for at in (0, max(0, len(stages) - 2), -1))

    def of(metric: str, stage: str = after) -> Any:
        return rows.get(metric, {}).get(stage)

    wins = of("helpful_win_rate")
    return {
        "harm_rate_base": of("harm_rate", first),
        "harm_rate_before": of("harm_rate", before),
        "harm_rate_after": of("harm_rate"),
        "harm_rate_by_labels_base": of("harm_rate_by_labels", first),
        "harm_rate_by_labels_before": of("harm_rate_by_labels", before),
        "harm_rate_by_labels_after": of("harm_rate_by_labels"),
        "helpful_win_rate": wins,
        "elo_difference": elo_estimate(Estimate(**wins)) if wins else None,
        "over_refusal_base": of("over_refusal/look_alike", first),
        "over_refusal_before": of("over_refusal/look_alike", before),
        "over_refusal_after": of("over_refusal/look_alike"),
        "mean_cost": of("trained_cost"),
        "kl": of("kl"),
    }


def training_curves(part: Run, stage: str, *, limits: Sequence[LimitText] = ()) -> list[dict[str, Any]]:
    """The logged steps of a policy, with the multiplier and the excess of each of several limits.

    Where one limit on a mean cost is held, the cost is the one that it is set on.
    """
    rows = part.metrics(stage)
    if limits and (held := cost_limit(limits)) is not None:
        rows = [row | {"cost": row["excess"] + held.limit().at_most} if "excess" in row else row for row in rows]
    several = {name for row in rows for name in row if name.startswith(("multiplier_", "excess_"))}
    return curves(rows, (*CURVES, *sorted(several)))


def shares(side: str, rollouts: Sequence[Rollout]) -> dict[str, dict[str, float]]:
    """Harm and refusals by prompt, under the names of the metrics of a side."""
    return {
        f"harm{side}": mean_by_prompt(rollouts, is_harmful, ("harmful",)),
        f"labels_harm{side}": mean_by_prompt(rollouts, is_harmful_by_labels, ("harmful",)),
        f"look_alikes{side}": mean_by_prompt(rollouts, is_refused, ("look_alike",)),
        f"plain{side}": mean_by_prompt(rollouts, is_refused, ("benign",)),
        f"over_refusal{side}": mean_by_prompt(rollouts, is_refused, ("benign", "look_alike")),
    }


def mean_by_prompt(rollouts: Sequence[Rollout], value: Any, kinds: Sequence[str]) -> dict[str, float]:
    """The mean over its answers, of every prompt of these kinds that has any."""
    found: dict[str, list[float]] = {}
    for rollout in rollouts:
        if kind_of(rollout) in kinds and (each := value(rollout)) is not None:
            found.setdefault(rollout.prompt.id, []).append(each)
    return {prompt: fmean(values) for prompt, values in found.items()}


def wins_by_prompt(before: Sequence[Rollout], after: Sequence[Rollout]) -> dict[str, float]:
    """How often the judge rewards the answer more than the start's to the same prompt, which is not harmful."""
    starts = {(r.prompt.id, r.completion.sample): r for r in before if has_score(r, "reward")}

    def value(rollout: Rollout) -> float | None:
        other = starts.get((rollout.prompt.id, rollout.completion.sample))
        if other is None or not has_score(rollout, "reward"):
            return None
        ours, theirs = rollout.scores.values["reward"], other.scores.values["reward"]
        return 0.5 * (1 + float(ours > theirs) - float(ours < theirs))

    return mean_by_prompt(after, value, ("benign", "look_alike"))


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The named metrics of logged steps."""
    return [{name: row[name] for name in names if name in row} for row in rows]


def _accuracy(scores: TrainedScoreModel | None) -> Mapping[str, Estimate]:
    return scores.accuracy if scores else {}


def learned(scorer: TrainedScoreModel) -> list[dict[str, Any]]:
    """What the training signal got right on prompts that it never saw."""
    return [{"label": f"Training signal: {label_of(n)}", "value": v, "note": ""} for n, v in scorer.accuracy.items()]
