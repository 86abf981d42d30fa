"""Which answers a reader should see: remaining harms, false refusals, wins and losses, each on a prompt of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poise.evaluate.stages import JudgedStage
from poise.evaluate.suite import has_score, is_refused, kind_of, outcome
from poise.messages import transcript
from poise.types import Rollout

SHOWN = 6  # of a group
Row = Mapping[str, Rollout]  # stage -> its answer to one prompt, of one sample

GROUPS: Mapping[str, str] = {
    "harms": "Remaining harms, the worst first",
    "refused": "Harmless prompts refused",
    "losses": "Losses against its own start, the largest first",
    "wins": "Wins against its own start, the largest first",
    "safe": "Harmful prompts answered without harm",
}


def chosen_samples(stages: Sequence[JudgedStage], *, shown: int = SHOWN) -> list[dict[str, Any]]:
    """Samples by group, with the answers of every stage; no prompt stands twice, in whichever group.

    What went wrong is chosen first, so that a prompt which would also show something good shows what is bad.
    """
    rows, names = _rows(stages), [stage.name for stage in stages]
    last, start = names[-1], names[-2]
    orders: dict[str, Callable[[Row], float | None]] = {
        "harms": lambda row: _cost(row[last]) if _may_harm(row[last]) and outcome(row[last]) == "harm" else None,
        "refused": lambda row: 0.0 if _is_refused(row[last]) else None,
        "losses": lambda row: _gain(row, start, last, sign=-1.0),
        "wins": lambda row: _gain(row, start, last, sign=1.0),
        "safe": lambda row: 0.0 if kind_of(row[last]) == "harmful" and outcome(row[last]) == "safe" else None,
    }
    used: set[str] = set()
    found: list[dict[str, Any]] = []
    for group, order in orders.items():
        ranked = [(value, row) for row in rows if (value := order(row)) is not None]
        for _, row in sorted(ranked, key=lambda each: -each[0]):
            prompt = row[last].prompt
            if prompt.id not in used and sum(sample["group"] == group for sample in found) < shown:
                used.add(prompt.id)
                found.append(_sample(group, row, names))
    return found


def _rows(stages: Sequence[JudgedStage]) -> list[Row]:
    """The answers of all stages to one prompt, in the order of the last stage's; a stage may lack one."""
    keyed = {stage.name: {(r.prompt.id, r.completion.sample): r for r in stage.rollouts} for stage in stages}
    order = keyed[stages[-1].name]
    return [{name: answers[key] for name, answers in keyed.items() if key in answers} for key in order]


def _may_harm(rollout: Rollout) -> bool:
    return kind_of(rollout) not in ("benign", "look_alike")


def _is_refused(rollout: Rollout) -> bool:
    return not _may_harm(rollout) and bool(is_refused(rollout))


def _cost(rollout: Rollout) -> float:
    return rollout.scores.values["cost"]


def _gain(row: Row, start: str, last: str, *, sign: float) -> float | None:
    """By how much the judge's reward rose on a harmless prompt; None where it did not, or on one that is harmful."""
    sides = [row[name] for name in (start, last) if name in row]
    if len(sides) < 2 or kind_of(row[last]) == "harmful" or not all(has_score(side, "reward") for side in sides):
        return None
    gain = sign * (sides[1].scores.values["reward"] - sides[0].scores.values["reward"])
    return gain if gain > 0 else None


def _sample(group: str, row: Row, names: Sequence[str]) -> dict[str, Any]:
    prompt = row[names[-1]].prompt
    return {
        "group": group,
        "prompt": prompt.text,
        "kind": str(prompt.tags.get("kind", "")),
        "category": ", ".join(prompt.tags.get("categories", ())),
        "answers": {name: _side(row[name]) for name in names if name in row},
    }


def _side(rollout: Rollout) -> dict[str, Any]:
    values = rollout.scores.values
    return {
        "text": transcript(rollout.completion.turns) or rollout.completion.text,
        "cost": values.get("cost"),
        "reward": values.get("reward"),
        "outcome": outcome(rollout),
        "refused": values.get("refusal", 0.0) > 0.5,
    }
