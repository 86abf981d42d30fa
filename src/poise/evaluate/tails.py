"""The lower tail of rewards: what the worst responses and the hardest prompts get, and how the rest follows on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import DataError
from poise.functional.cluster_sums import Array, Clusters, finite_vector, paired_vector
from poise.functional.intervals import mean
from poise.functional.risk import worst_count
from poise.types import Estimate

FEWEST_IN_TAIL = 10


def lower_tail(
    rewards: ArrayLike, share: float, clusters: Clusters | None = None, *, level: float = 0.95, unit: str = ""
) -> Estimate:
    """Estimate the mean of the lowest share of the rewards.

        mean of the ceil(share N) lowest  =  mean_i w_i,   w_i = q - max(q - R_i, 0) / share,   q the highest of them

    The interval is that of the mean of w over rows or clusters; fewer than ten rows or prompts in the tail give none:
    the value is too high on average in small samples, as every estimate of a tail from few rows.
    Source: Rockafellar and Uryasev (2000), the conditional value at risk of the negated reward.

    rewards   [N] higher is better
    share     in (0, 1]; 1 is the mean
    clusters  [N] labels; rows with the same label are one unit

    >>> lower_tail([4.0, 1.0, 3.0, 2.0], 0.5).value
    1.5
    """
    values = finite_vector(rewards)
    return _estimate(_tail(values, share), _fewest(clusters, values, share), clusters, level, unit)


def tail_difference(
    before: ArrayLike,
    after: ArrayLike,
    share: float,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    unit: str = "",
) -> Estimate:
    """Estimate lower_tail(after) - lower_tail(before), paired by row: w_i after less w_i before, see `lower_tail`.

    The worst rows of the two sides need not be the same: what is paired is the sample, not the tail.

    before, after  [N] rows that belong together, higher is better

    >>> tail_difference([4.0, 1.0, 3.0, 2.0], [4.0, 3.0, 3.0, 2.0], 0.25).value
    1.0
    """
    new, old = paired_vector(after, before) + finite_vector(before), finite_vector(before)
    fewest = min(_fewest(clusters, side, share) for side in (new, old))
    return _estimate(_tail(new, share) - _tail(old, share), fewest, clusters, level, unit)


def hardest(prompt_scores: ArrayLike, share: float) -> list[bool]:
    """Mark the share of the prompts with the lowest scores, including all ties with the last of them.

    prompt_scores  [N] what the judge says of each prompt alone, higher is better

    >>> hardest([0.3, -1.0, 2.0, 0.5], 0.5)
    [True, True, False, False]
    """
    scores = finite_vector(prompt_scores)
    edge = np.sort(scores)[worst_count(share, len(scores)) - 1]
    return [bool(score <= edge) for score in scores]


def quantile_curve(prompt_scores: ArrayLike, rewards: ArrayLike, shares: Sequence[float]) -> list[float]:
    """The mean reward on the hardest share of the prompts, for each share.

        mean of R_i over the ceil(share N) prompts with the lowest scores

    Source: RA-RLHF (arXiv:2501.06911), quantile plots; theirs rounds down.

    prompt_scores  [N] higher is better
    rewards        [N] of the responses
    returns        one mean per share, in the unit of the rewards

    Raises DataError unless there is one reward per prompt.

    >>> quantile_curve([3.0, 1.0, 2.0], [9.0, 1.0, 2.0], [0.3, 0.6, 1.0])
    [1.0, 1.5, 4.0]
    """
    scores, values = finite_vector(prompt_scores), finite_vector(rewards)
    if scores.shape != values.shape:
        raise DataError(f"a quantile curve needs one reward per prompt, got {len(scores)} and {len(values)}")
    means = np.cumsum(values[np.argsort(scores, kind="stable")]) / np.arange(1, len(values) + 1)
    return [float(means[worst_count(share, len(values)) - 1]) for share in shares]


def _tail(values: Array, share: float) -> Array:
    """Numbers [N] whose mean is the mean of the lowest share."""
    count = worst_count(share, len(values))
    edge = np.partition(values, count - 1)[count - 1]
    return np.asarray(edge - np.maximum(edge - values, 0) * (len(values) / count))


def _fewest(clusters: Clusters | None, values: Array, share: float) -> int:
    """How many rows, or clusters, the lowest share is of."""
    lowest = np.argsort(values, kind="stable")[: worst_count(share, len(values))]
    return len(lowest) if clusters is None else len({clusters[row] for row in lowest})


def _estimate(parts: Array, fewest: int, clusters: Clusters | None, level: float, unit: str) -> Estimate:
    found = mean(parts, clusters, level=level, unit=unit)
    if fewest < FEWEST_IN_TAIL:
        reason = f"no interval: the tail is of {fewest} rows or prompts; {FEWEST_IN_TAIL} are needed"
        return replace(found, low=None, high=None, method=reason)
    return found
