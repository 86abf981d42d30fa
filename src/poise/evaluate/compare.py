"""Two models on the same prompts: every figure is paired by prompt and sample, so what both share cancels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from poise.errors import DataError
from poise.evaluate.diversity import duplicates, equal_commonest
from poise.evaluate.suite import complies, has_score, is_harmful, is_harmful_by_labels, is_refused, kind_of
from poise.functional.statistics import elo_estimate, paired_difference, ratio_of_sums, share, win_rate
from poise.types import Estimate, Rollout

Pair = tuple[Rollout, Rollout]
T = TypeVar("T")


def compare(before: Sequence[Rollout], after: Sequence[Rollout]) -> dict[str, Estimate]:
    """Compare two models; differences are after minus before, figures without data are left out.

    matched                  share of rows that both sides have; the rest is not compared
    helpful_win_rate         how often the judge's reward is higher after, on benign and look-alike prompts
    elo_difference           the same in Elo points, by the map of its interval
    harm_rate_difference     percentage points, on harmful prompts where both sides are scorable
    harm_rate_by_labels_difference  the same by the second judge of harm, where there is one
    compliance_ratio         rate of compliance with harmful prompts, after over before
    compliance_difference    percentage points, on look-alikes
    over_refusal_difference  percentage points, on benign and look-alike prompts; also of each kind: .../benign
    refusal_difference       percentage points, on harmful prompts
    commonest_difference     percentage points, all answers: those that say the commonest of their side
    duplicates_difference    percentage points, all answers: those that another prompt of their side got as well
    mean_cost_difference     in units of the judge's cost, all prompts
    mean_reward_difference   in units of the judge's reward, benign prompts

    Raises:
        DataError: the two sides share no row, or one of them holds a row twice.
    """
    left, right = _by_key(before, "before"), _by_key(after, "after")
    keys = [key for key in left if key in right]
    if not keys:
        raise DataError(f"compare: {len(left)} rows before and {len(right)} after share no prompt; run the same suite")
    every = left.keys() | right.keys()
    pairs = [(left[key], right[key]) for key in keys]
    metrics = {"matched": share([key in left and key in right for key in every], [key[0] for key in every])}
    wins = _rows(pairs, "reward", ("benign", "look_alike"))
    if wins:
        rate = win_rate(*_columns(wins, _score("reward")), _prompts(wins))
        metrics |= {"helpful_win_rate": rate, "elo_difference": elo_estimate(rate)}
    obeyed = _rows(pairs, "compliance", ("harmful",))
    if any(complies(a) for a, _ in obeyed):
        above, below = _columns(obeyed, lambda r: float(complies(r)))[::-1]
        metrics["compliance_ratio"] = ratio_of_sums(above, below, _prompts(obeyed), unit="ratio")
    differences: dict[str, tuple[list[Pair], Callable[[Rollout], float], str]] = {
        "harm_rate_difference": _flagged(pairs, is_harmful, ("harmful",)),
        "harm_rate_by_labels_difference": _flagged(pairs, is_harmful_by_labels, ("harmful",)),
        "compliance_difference": (_rows(pairs, "compliance", ("look_alike",)), lambda r: float(complies(r)), "share"),
        "over_refusal_difference": _flagged(pairs, is_refused, ("benign", "look_alike")),
        "over_refusal_difference/benign": _flagged(pairs, is_refused, ("benign",)),
        "over_refusal_difference/look_alike": _flagged(pairs, is_refused, ("look_alike",)),
        "refusal_difference": _flagged(pairs, is_refused, ("harmful",)),
        "mean_cost_difference": (_rows(pairs, "cost"), _score("cost"), "cost"),
        "mean_reward_difference": (_rows(pairs, "reward", ("benign",)), _score("reward"), "reward"),
    }
    for name, (rows, value, unit) in differences.items():
        if rows:
            metrics[name] = paired_difference(*_columns(rows, value), _prompts(rows), unit=unit)
    return metrics | _said_alike([pair for pair in pairs if not any(r.completion.unfit for r in pair)])


def _said_alike(pairs: Sequence[Pair]) -> dict[str, Estimate]:
    """How much more often answers say what others say; each side has a commonest answer of its own."""
    if not pairs:
        return {}
    prompts = _prompts(pairs)
    texts = _columns(pairs, lambda r: r.completion.text)
    flags: dict[str, list[list[bool]]] = {
        "commonest_difference": [equal_commonest(side) for side in texts],
        "duplicates_difference": [duplicates(side, prompts) for side in texts],
    }
    return {name: paired_difference(old, new, prompts, unit="share") for name, (old, new) in flags.items()}


def _by_key(rollouts: Sequence[Rollout], side: str) -> dict[tuple[str, int], Rollout]:
    rows = {(r.prompt.id, r.completion.sample): r for r in rollouts}
    if len(rows) < len(rollouts):
        raise DataError(
            f"compare: {len(rollouts) - len(rows)} rows {side} repeat a prompt and sample number; keep one of each"
        )
    return rows


def _rows(pairs: Sequence[Pair], name: str, kinds: Sequence[str] | None = None) -> list[Pair]:
    """Keep the pairs of these kinds in which both sides have a score on the channel."""
    return [
        pair for pair in pairs if (kinds is None or kind_of(pair[0]) in kinds) and all(has_score(r, name) for r in pair)
    ]


def _flagged(
    pairs: Sequence[Pair], flag: Callable[[Rollout], bool | None], kinds: Sequence[str]
) -> tuple[list[Pair], Callable[[Rollout], float], str]:
    """The pairs of these kinds of which both sides have a flag, and how a share counts them."""
    known = [pair for pair in pairs if kind_of(pair[0]) in kinds and all(flag(r) is not None for r in pair)]
    return known, lambda rollout: float(bool(flag(rollout))), "share"


def _columns(pairs: Sequence[Pair], value: Callable[[Rollout], T]) -> tuple[list[T], list[T]]:
    return [value(a) for a, _ in pairs], [value(b) for _, b in pairs]


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    return [a.prompt.id for a, _ in pairs]


def _score(name: str) -> Callable[[Rollout], float]:
    return lambda rollout: rollout.scores.values[name]
