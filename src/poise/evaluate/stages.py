"""The stages that a policy went through, base to final: their figures side by side, and what each changed.

Every stage is compared with the one that it started from, and with the first; differences are paired by prompt and
sample, so that what both sides share cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poise.errors import DataError
from poise.evaluate.compare import compare
from poise.evaluate.diversity import commonest_answer, equal_commonest
from poise.evaluate.suite import KINDS, SuiteResult, kind_of
from poise.evaluate.verdict import EVEN, Change, wins_above_even
from poise.types import Estimate, Rollout

Better = Literal["lower", "higher", ""]
WINS = "helpful_win_rate"
KL = "sequence_kl"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedStage:
    """One stage of a policy, and how its answers to the suite were judged.

    name   what keys are made of: base, sft, final
    label  what tables call it
    """

    name: str
    label: str
    result: SuiteResult

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Its judged answers."""
        return self.result.rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure that stages are told apart by.

    metric      its name in an evaluation
    difference  its name among the paired differences of `compare`; "" where there is none
    speaks      stands in the sentence on what got better and worse
    """

    metric: str
    label: str
    better: Better
    difference: str = ""
    speaks: str = ""


FIGURES = (
    Figure(metric="harm_rate", label="Harmful answers to harmful prompts", better="lower",
           difference="harm_rate_difference", speaks="harmful answers"),
    Figure(metric="harm_rate_by_labels", label="Harmful answers, by the judge that learned from the data's labels",
           better="lower", difference="harm_rate_by_labels_difference", speaks="harmful by the data's labels"),
    Figure(metric="over_refusal/look_alike", label="Refusals of harmless look-alikes", better="lower",
           difference="over_refusal_difference/look_alike", speaks="look-alikes refused"),
    Figure(metric="over_refusal/benign", label="Refusals of plain benign prompts", better="lower",
           difference="over_refusal_difference/benign", speaks="plain prompts refused"),
    Figure(metric="refusal/harmful", label="Refusals of harmful prompts", better="", difference="refusal_difference"),
    Figure(metric="mean_cost", label="Mean cost by the judge, all prompts", better="lower",
           difference="mean_cost_difference"),
    Figure(metric="mean_reward", label="Mean reward by the judge, benign prompts", better="higher",
           difference="mean_reward_difference"),
    Figure(metric="commonest", label="Answers that say the commonest", better="lower",
           difference="commonest_difference", speaks="answers that say the commonest"),
    Figure(metric="duplicates", label="Answers equal to another prompt's", better="lower",
           difference="duplicates_difference"),
    Figure(metric="response_length", label="Response length", better=""),
    Figure(metric="unfinished", label="Answers cut at the length limit", better=""),
    Figure(metric="trained_cost", label="Mean cost by the training signal, prompts that may do harm", better="lower"),
)  # fmt: skip
SHORT = {  # the table that comes first, and last on the screen
    "harm_rate": "harmful answers",
    "harm_rate_by_labels": "harmful, by the data's labels",
    "over_refusal/look_alike": "look-alikes refused",
    "over_refusal/benign": "plain prompts refused",
    WINS: "helpful wins (even: 50 %)",
    KL: "KL to the reference",
}
SAID = ("commonest", "duplicates", "distinct_2", "response_length")


def require_stages(stages: Sequence[JudgedStage], *, least: int = 1) -> None:
    """Raise DataError unless there are so many stages, each with a name of its own."""
    names = [stage.name for stage in stages]
    if len(names) < least or len(set(names)) < len(names):
        raise DataError(f"stages {', '.join(names) or 'none'}: give {least} or more, each with a name of its own")


def headline(stages: Sequence[JudgedStage]) -> list[dict[str, Any]]:
    """The figures of all stages, and the differences of the last to its own start and to the first, as rows.

    Each has `values` and `differences` by the name of a stage; wins also have `against`, the rates themselves.
    """
    require_stages(stages)
    last = stages[-1]
    versus = {stage.name: compare(stage.rollouts, last.rollouts) for stage in reversed(_starts(stages))}
    rows = []
    for figure in FIGURES:
        values = {stage.name: _metric(stage, figure.metric) for stage in stages}
        if values[last.name] is not None:
            differences = {name: found.get(figure.difference) for name, found in versus.items()}
            rows.append(_row(figure.metric, figure.label, figure.better, values, differences))
    wins = {name: found[WINS] for name, found in versus.items() if WINS in found}
    if wins:
        above = {name: wins_above_even(rate) for name, rate in wins.items()}
        rate = next(iter(wins.values()))  # against its own start
        row = _row(WINS, "Helpful wins against its own start", "higher", {last.name: rate}, above)
        place = sum(each["metric"].startswith("harm_rate") for each in rows)
        rows.insert(place, row | {"even": EVEN, "against": wins})
    if (kl := _metric(last, KL)) is not None:
        values = {stage.name: _metric(stage, KL) for stage in stages}
        rows.append(_row("kl", "KL to the reference", "", values | {last.name: kl}, {}))
    return rows


def changes(stages: Sequence[JudgedStage], against: str = "") -> list[Change]:
    """What the sentence speaks of: the last stage against the one named, by default its own start."""
    require_stages(stages, least=2)
    last = stages[-1]
    start = next(stage for stage in stages if stage.name == (against or stages[-2].name))
    return changes_between(start.result.evaluation.metrics, last.result.evaluation.metrics,
                           compare(start.rollouts, last.rollouts))  # fmt: skip


def changes_between(
    before: Mapping[str, Estimate], after: Mapping[str, Estimate], versus: Mapping[str, Estimate]
) -> list[Change]:
    """The changes of the figures that speak, from the figures of two sides and their paired differences."""
    found = [
        Change(name=f.metric, label=f.speaks, before=before[f.metric], after=after[f.metric],
               difference=versus[f.difference], better=f.better)
        for f in FIGURES
        if f.speaks and f.difference in versus and f.metric in before and f.metric in after
    ]  # fmt: skip
    if WINS in versus:
        rate = versus[WINS]
        wins = Change(name=WINS, label="helpful wins (even: 50 %)", after=rate, difference=wins_above_even(rate),
                      better="higher")  # fmt: skip
        found.insert(sum(change.name.startswith("harm_rate") for change in found), wins)
    return found


def stage_table(stages: Sequence[JudgedStage]) -> dict[str, Any]:
    """The short table: a row for each stage, its wins against the stage that it started from."""
    require_stages(stages)
    rows: list[dict[str, Any]] = []
    for before, stage in zip((None, *stages), stages, strict=False):
        values = {name: _metric(stage, name) for name in SHORT}
        if before is not None:
            values[WINS] = compare(before.rollouts, stage.rollouts).get(WINS)
        rows.append({"name": stage.name, "label": stage.label, "values": values})
    columns = {name: label for name, label in SHORT.items() if any(row["values"][name] for row in rows)}
    for row in rows:
        row["values"] = {name: row["values"][name] for name in columns}
    return {"columns": columns, "rows": rows}


def said_alike(stages: Sequence[JudgedStage]) -> list[dict[str, Any]]:
    """Whether answers collapsed: for each kind of prompt and each stage how often the commonest is said, and which."""
    found = []
    for kind in KINDS:
        for stage in stages:
            texts = [r.completion.text for r in stage.rollouts if kind_of(r) == kind and not r.completion.unfit]
            if texts:
                row: dict[str, Any] = {"kind": kind, "stage": stage.name, "label": stage.label, "answers": len(texts)}
                row |= {name: _metric(stage, f"{name}/{kind}") for name in SAID}
                found.append(row | {"text": commonest_answer(texts), "times": sum(equal_commonest(texts))})
    return found


def categories(stages: Sequence[JudgedStage]) -> list[dict[str, Any]]:
    """The harm rate of every category that all stages have."""
    names = set.intersection(*({n for n in s.result.evaluation.metrics if n.startswith("harm_rate/")} for s in stages))
    return [
        {"category": name.split("/", 1)[1], "values": {stage.name: _metric(stage, name) for stage in stages}}
        for name in sorted(names)
    ]


def _starts(stages: Sequence[JudgedStage]) -> list[JudgedStage]:
    """The first stage and the one before the last, which may be the same; none where there is no other."""
    before = stages[:-1]
    return [before[0], before[-1]][-len(before) :] if before else []


def _metric(stage: JudgedStage, name: str) -> Estimate | None:
    return stage.result.evaluation.metrics.get(name)


def _row(
    metric: str,
    label: str,
    better: Better,
    values: Mapping[str, Estimate | None],
    differences: Mapping[str, Estimate | None],
) -> dict[str, Any]:
    return {"metric": metric, "label": label, "better": better, "note": "", "values": dict(values),
            "differences": {name: each for name, each in differences.items() if each}}  # fmt: skip
