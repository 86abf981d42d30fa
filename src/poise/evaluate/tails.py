"""The lower tail of rewards: what the worst responses and the hardest prompts get, and how the rest follows on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import DataError
from poise.functional.intervals import Array, finite_vector, paired_vector
from poise.functional.risk import worst_count
from poise.types import Estimate

Clusters = Sequence[Hashable]


def lower_tail(
    rewards: ArrayLike,
    share: float,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Estimate the mean of the lowest share of the rewards, with a percentile bootstrap over rows or clusters.

        mean of the ceil(share N) lowest

    It is too high on average in small samples, as every estimate of a tail from few rows.
    Source: Rockafellar and Uryasev (2000), the conditional value at risk of the negated reward.

    rewards   [N] higher is better
    share     in (0, 1]; 1 is the mean
    clusters  [N] labels; rows with the same label are resampled together

    >>> lower_tail([4.0, 1.0, 3.0, 2.0], 0.5).value
    1.5
    """
    values = finite_vector(rewards)
    draws = [_tail(values[rows], share) for rows in _resampled(len(values), clusters, resamples, seed)]
    return _estimate(_tail(values, share), draws, len(values), level, unit, clusters)


def tail_difference(
    before: ArrayLike,
    after: ArrayLike,
    share: float,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Estimate lower_tail(after) - lower_tail(before); each resample takes the same rows, or clusters, of both.

    The worst rows of the two sides need not be the same: what is paired is the sample, not the tail.

    before, after  [N] rows that belong together, higher is better

    >>> tail_difference([4.0, 1.0, 3.0, 2.0], [4.0, 3.0, 3.0, 2.0], 0.25).value
    1.0
    """
    new, old = paired_vector(after, before) + finite_vector(before), finite_vector(before)
    resampled = _resampled(len(old), clusters, resamples, seed)
    draws = [_tail(new[rows], share) - _tail(old[rows], share) for rows in resampled]
    return _estimate(_tail(new, share) - _tail(old, share), draws, len(old), level, unit, clusters)


def hardest(prompt_scores: ArrayLike, share: float) -> list[bool]:
    """Mark the prompts with the lowest scores, with all that tie with the last of them.

    prompt_scores  [N] what the judge says of each prompt alone, higher is better

    >>> hardest([0.3, -1.0, 2.0, 0.5], 0.5)
    [True, True, False, False]
    """
    scores = finite_vector(prompt_scores)
    edge = np.sort(scores)[worst_count(share, len(scores)) - 1]
    return [bool(score <= edge) for score in scores]


def quantile_curve(prompt_scores: ArrayLike, rewards: ArrayLike, shares: Sequence[float]) -> list[float]:
    """Give the mean reward on the hardest share of the prompts, for each share.

        mean of R_i over the ceil(share N) prompts with the lowest scores

    Source: RA-RLHF (arXiv:2501.06911), quantile plots; theirs rounds down.

    prompt_scores  [N] higher is better
    rewards        [N] of the responses

    >>> quantile_curve([3.0, 1.0, 2.0], [9.0, 1.0, 2.0], [0.3, 0.6, 1.0])
    [1.0, 1.5, 4.0]
    """
    scores, values = finite_vector(prompt_scores), finite_vector(rewards)
    if scores.shape != values.shape:
        raise DataError(f"a quantile curve needs a reward for each prompt, got {len(scores)} and {len(values)}")
    means = np.cumsum(values[np.argsort(scores, kind="stable")]) / np.arange(1, len(values) + 1)
    return [float(means[worst_count(share, len(values)) - 1]) for share in shares]


def _tail(values: Array, share: float) -> float:
    count = worst_count(share, len(values))
    return float(np.partition(values, count - 1)[:count].mean())


def _resampled(size: int, clusters: Clusters | None, resamples: int, seed: int) -> list[Array]:
    """Row numbers of each bootstrap sample."""
    groups: dict[Hashable, list[int]] = {}
    for row, label in enumerate(range(size) if clusters is None else clusters):
        groups.setdefault(label, []).append(row)
    members = [np.array(rows) for rows in groups.values()]
    random = np.random.default_rng(seed)
    return [
        np.concatenate([members[i] for i in random.integers(len(members), size=len(members))]) for _ in range(resamples)
    ]


def _estimate(
    value: float, draws: Sequence[float], n: int, level: float, unit: str, clusters: Clusters | None
) -> Estimate:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    method = f"percentile bootstrap over {'rows' if clusters is None else f'{len(set(clusters))} prompts'}"
    return Estimate(
        value=value,
        n=n,
        unit=unit,
        low=min(float(low), value),
        high=max(float(high), value),
        level=level,
        method=method,
    )
