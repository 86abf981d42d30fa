"""How far two raters agree beyond chance, with an interval over prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from poise.errors import DataError
from poise.functional.cluster_sums import Clusters
from poise.functional.intervals import pulled_estimate
from poise.types import Estimate


def kappa(
    first: Sequence[Hashable], second: Sequence[Hashable], clusters: Clusters | None = None, *, level: float = 0.95
) -> Estimate:
    """Estimate Cohen's kappa of two raters of the same rows.

        kappa = (p_observed - p_chance) / (1 - p_chance)

    The interval is Student's over prompts, from the kappas that leave one of them out, widened as that of a mean is.
    There is none where the raters never differ, or where a rater without a choice leaves nothing to chance.
    Source: Cohen (1960); the jackknife over clusters as for means (docs/intervals.md).

    first, second  [N] labels
    clusters       [N] labels of the prompts; by default every row is its own

    >>> kappa(["a", "b", "a", "b"], ["a", "b", "b", "b"]).value
    0.5
    """
    if not first or len(first) != len(second):
        raise DataError(f"agreement needs rows that both rated, got {len(first)} and {len(second)}")
    names = list(range(len(first))) if clusters is None else list(clusters)
    labels = {label: n for n, label in enumerate(dict.fromkeys((*first, *second)))}
    groups = {name: n for n, name in enumerate(dict.fromkeys(names))}
    counts = np.zeros((len(groups), len(labels), len(labels)))  # rows of each prompt, by what either rater said
    for name, one, other in zip(names, first, second, strict=True):
        counts[groups[name], labels[one], labels[other]] += 1
    total = counts.sum(0)
    value = _kappa_of(total)
    if value is None:
        return Estimate(value=1.0, n=len(names), level=level, method="no interval: all rows have the same label")
    left = [_kappa_of(total - own) for own in counts] if len(groups) > 1 else []
    pulls = np.array([value - (value if each is None else each) for each in left])
    method = f"jackknife t over {len(groups)} {'rows' if clusters is None else 'prompts'}"
    found = pulled_estimate(value, pulls, len(groups) - 1.0, n=len(names), level=level, unit="", method=method)
    if found.low is None or found.high is None:
        return found
    ends = max(found.low, -1.0), min(found.high, 1.0)
    return Estimate(value=value, n=len(names), low=ends[0], high=ends[1], level=level, method=method)


def _kappa_of(counts: np.ndarray) -> float | None:
    """Kappa of a table of counts; None where chance alone would always agree."""
    n = counts.sum()
    if n == 0:
        return None
    chance = float(counts.sum(0) @ counts.sum(1)) / n**2
    return None if chance > 1 - 1e-12 else float((np.trace(counts) / n - chance) / (1 - chance))
