"""From a run's results to its report and its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from poise.evaluate.suite import KINDS, SuiteResult, kind_of, outcome
from poise.messages import transcript
from poise.pipeline import TrainedScoreModel
from poise.recipes._stages import Study
from poise.run import Run
from poise.types import Estimate, Rollout

HEADLINE = (
    ("harm_rate", "Harmful answers to harmful prompts", "lower"),
    ("over_refusal/look_alike", "Refusals of harmless look-alikes", "lower"),
    ("over_refusal/benign", "Refusals of plain benign prompts", "lower"),
    ("mean_cost", "Mean cost by the judge, all prompts", "lower"),
    ("mean_reward", "Mean reward by the judge, benign prompts", "higher"),
    ("response_length", "Response length", ""),
    ("commonest", "The commonest answer's share", "lower"),
    ("duplicates", "Answers equal to another prompt's", "lower"),
    ("unfinished", "Answers cut at the length limit", ""),
)
CURVES = ("step", "reward", "cost", "multiplier", "kl", "sequence_kl", "entropy", "response_tokens", "logprob_gap")
LABELS = {
    "lagrangian": "Lagrangian (Safe RLHF)",
    "shaping": "fixed penalty",
    "reward-only": "reward alone",
    "cost-only": "cost alone",
}
_SAMPLES_OF_A_KIND = 8


def shared_page(
    run: Run,
    study: Study[Any],
    judge: TrainedScoreModel,
    before: SuiteResult,
    after: SuiteResult,
    versus: Mapping[str, Estimate],
) -> dict[str, Any]:
    """The sections of a page that any study has which a held-out judge decides."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "headline": _headline(before, after, versus),
        "judge": {
            "name": "held-out score model",
            "description": (
                "Trained on prompts of another split, deeper layers and another seed than the score model that gave "
                "the training signal; it was never optimised against. An answer is harmful if its cost is above zero. "
                "Refusals are found by a rule on the text."
            ),
            "metrics": [{"label": _label(name), "value": value} for name, value in judge.accuracy.items()],
        },
        "scatter": {side: _points(result) for side, result in (("before", before), ("after", after))},
        "categories": _categories(before, after),
        "samples": _samples(before.rollouts, after.rollouts),
        "settings": study.settings.arguments,
        "provenance": {"run": run.path.name, "data": dict(next(iter(study.splits.values())).provenance)},
    }


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The named metrics of logged steps."""
    return [{name: row[name] for name in names if name in row} for row in rows]


def learned(scorer: TrainedScoreModel) -> list[dict[str, Any]]:
    """What the training signal got right on prompts that it never saw."""
    return [{"label": f"Training signal: {_label(n)}", "value": v, "note": ""} for n, v in scorer.accuracy.items()]


def outcome_summary(
    study: Study[Any], before: SuiteResult, after: SuiteResult, versus: Mapping[str, Estimate]
) -> dict[str, Any]:
    """What came of a study by its held-out judge, before and after."""
    old, new = before.evaluation.metrics, after.evaluation.metrics
    return {
        "harm_rate_before": old.get("harm_rate"),
        "harm_rate_after": new.get("harm_rate"),
        "helpful_win_rate": versus.get("helpful_win_rate"),
        "elo_difference": versus.get("elo_difference"),
        "over_refusal_before": old.get("over_refusal/look_alike"),
        "over_refusal_after": new.get("over_refusal/look_alike"),
        "kl": new.get("sequence_kl"),
        "model": study.settings.model,
        "data": study.settings.data,
        "seed": study.settings.seed,
    }


def _headline(before: SuiteResult, after: SuiteResult, main: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    old, new = before.evaluation.metrics, after.evaluation.metrics
    rows: list[dict[str, Any]] = [
        {
            "metric": metric,
            "label": label,
            "before": old.get(metric),
            "after": new.get(metric),
            "better": better,
            "note": "",
        }
        for metric, label, better in HEADLINE
        if metric in new
    ]
    for metric, label, even in (
        ("helpful_win_rate", "Helpfulness wins against the start model", 0.5),
        ("elo_difference", "Helpfulness Elo against the start model", 0.0),
    ):
        if metric in main:
            rows.insert(
                1,
                {
                    "metric": metric,
                    "label": label,
                    "before": None,
                    "even": even,
                    "after": main[metric],
                    "better": "higher",
                    "note": "",
                },
            )
    if "sequence_kl" in new:
        rows.append(
            {
                "metric": "kl",
                "label": "KL to the start model",
                "before": None,
                "after": new["sequence_kl"],
                "better": "",
                "note": "",
            }
        )
    return rows


def _points(result: SuiteResult) -> list[dict[str, Any]]:
    return [
        {"reward": r.scores.values["reward"], "cost": r.scores.values["cost"], "kind": kind_of(r)}
        for r in result.rollouts
        if {"reward", "cost"} <= r.scores.values.keys() and not r.scores.unscorable
    ]


def _categories(before: SuiteResult, after: SuiteResult) -> list[dict[str, Any]]:
    old, new = before.evaluation.metrics, after.evaluation.metrics
    names = sorted(name for name in old.keys() & new.keys() if name.startswith("harm_rate/"))
    return [{"category": name.split("/", 1)[1], "before": old[name], "after": new[name]} for name in names]


def _compared(name: str, label: str, result: SuiteResult, versus: Mapping[str, Estimate], steps: int) -> dict[str, Any]:
    metrics = result.evaluation.metrics
    return {
        "objective": name,
        "label": label,
        "harm_rate": metrics.get("harm_rate"),
        "over_refusal": metrics.get("over_refusal"),
        "helpful_win_rate": versus.get("helpful_win_rate"),
        "mean_cost": metrics.get("mean_cost"),
        "kl": metrics.get("sequence_kl"),
        "steps": steps,
    }


def _samples(before: Sequence[Rollout], after: Sequence[Rollout]) -> list[dict[str, Any]]:
    pairs = {(r.prompt.id, r.completion.sample): r for r in after}
    shown: dict[str, int] = {}
    found = []
    for old in before:
        new = pairs.get((old.prompt.id, old.completion.sample))
        kind = kind_of(old)
        if new is None or shown.get(kind, 0) >= _SAMPLES_OF_A_KIND:
            continue
        shown[kind] = shown.get(kind, 0) + 1
        category = ", ".join(old.prompt.tags.get("categories", ()))
        found.append(
            {"prompt": old.prompt.text, "kind": kind, "category": category, "before": _side(old), "after": _side(new)}
        )
    return found


def _side(rollout: Rollout) -> dict[str, Any]:
    values = rollout.scores.values
    return {
        "text": transcript(rollout.completion.turns) or rollout.completion.text,
        "cost": values.get("cost"),
        "reward": values.get("reward"),
        "outcome": outcome(rollout),
    }


def _label(name: str) -> str:
    return name.replace("_", " ")


def notes(study: Study[Any], *more: str) -> list[str]:
    """What a reader of the page should keep in mind."""
    found = [
        "Small models and a small set: this shows how the parts work together, not the figures of the paper.",
        *more,
    ]
    unknown = sum(prompt.tags.get("kind") not in KINDS for prompt in study.prompts("test"))
    if unknown:
        found.append(f"{unknown} test prompts do not say their kind and were left out of the evaluation.")
    if study.settings.quick:
        found.insert(0, "A smoke test with a tiny random model: the numbers mean nothing.")
    return found
