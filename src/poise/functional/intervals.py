"""Shares, means and paired differences with their confidence intervals.

Every interval is two-sided at `level`. Samples of one prompt are not independent: where a prompt has several rows, give
their `clusters` (one hashable label per row, such as the prompt id) and whole prompts are resampled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import DataError
from poise.types import Estimate

Array = NDArray[np.float64]
Clusters = Sequence[Hashable]

RESAMPLES_AT_ONCE = 256  # bounds the memory of a bootstrap over many prompts


def wilson(successes: float, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share with Wilson's score interval, sound for small n and at 0 and 1.

        centre = (p + z^2/2n) / (1 + z^2/n),   half = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> str(wilson(5, 40))
    '12.5 % [5.5, 26.1] (n=40)'
    """
    from scipy.special import ndtri

    _check_counts(successes, n)
    share, z = successes / n, float(ndtri(0.5 + level / 2))
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
    return Estimate(value=share, n=n, unit="share", low=low, high=high, level=level, method="Wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share with the exact (conservative) binomial interval.

        low = Beta(a/2; k, n-k+1),   high = Beta(1-a/2; k+1, n-k),   a = 1 - level

    Source: Clopper and Pearson (1934), "The use of confidence or fiducial limits".

    >>> str(clopper_pearson(0, 20))
    '0.0 % [0.0, 16.8] (n=20)'
    """
    from scipy.special import betaincinv

    _check_counts(successes, n)
    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Estimate(value=successes / n, n=n, unit="share", low=low, high=high, level=level, method="Clopper-Pearson")


def share(flags: Sequence[bool], clusters: Clusters | None = None, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Estimate how often a flag is set: Wilson where every row is its own prompt, else a bootstrap over prompts.

    >>> share([True, False, False, False]).method
    'Wilson'
    """
    if clusters is None or len(set(clusters)) == len(flags):
        return wilson(sum(flags), len(flags), level)
    return bootstrap_mean([float(flag) for flag in flags], clusters=clusters, level=level, seed=seed, unit="share")


def bootstrap_mean(
    values: ArrayLike,
    *,
    clusters: Clusters | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Estimate a mean with a bootstrap interval: BCa over rows, percentile over clusters where `clusters` are given.

    Values that do not vary give no bootstrap interval: a share then gets Wilson's over the clusters, the rest none.
    Source: Efron (1987), "Better bootstrap confidence intervals"; scipy.stats.bootstrap.

    values    [N] finite, in `unit`
    clusters  [N] labels; rows with the same label are resampled together

    >>> bootstrap_mean([1.0, 1.0, 4.0, 4.0], clusters=["a", "a", "b", "b"]).method
    'percentile bootstrap over 2 prompts'
    """
    array = finite_vector(values)
    sums, counts = _cluster_sums(array, clusters)
    groups, mean = len(sums), float(array.mean())
    low: float | None = None
    high: float | None = None
    if np.ptp(sums / counts) < 1e-12 * max(1.0, abs(mean)):
        method = f"no variation over {groups} prompts" if clusters is not None else "no variation"
        if unit == "share":
            flat = wilson(mean * groups, groups, level)
            low, high, method = (
                flat.low,
                flat.high,
                f"Wilson over {groups} prompts" if clusters is not None else "Wilson",
            )
    elif groups == len(array):
        low, high = _bca(array, level, resamples, seed)
        method = "BCa bootstrap"
    else:
        means = _resampled_means(sums, counts, resamples, seed)
        low, high = (float(edge) for edge in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
        method = f"percentile bootstrap over {groups} prompts"
    return Estimate(value=mean, n=len(array), unit=unit, low=low, high=high, level=level, method=method)


def student_mean(values: ArrayLike, *, level: float = 0.95, unit: str = "") -> Estimate:
    """Estimate a mean of a few independent values, such as one of each seed, by Student's distribution.

        mean +- t_{n-1} s / sqrt(n)

    Of five values a bootstrap interval would be too narrow. One value alone has no interval.
    Source: Student (1908), "The probable error of a mean".

    values  [N] finite, in `unit`

    >>> str(student_mean([1.0, 2.0, 3.0]))
    '2.00 [-0.48, 4.48] (n=3)'
    """
    from scipy.special import stdtrit

    array = finite_vector(values)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Estimate(value=mean, n=1, unit=unit, level=level, method="one value")
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(value=mean, n=n, unit=unit, low=mean - half, high=mean + half, level=level, method="Student")


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Estimate mean(after - before) over rows that belong together; for shares the unit becomes percentage points.

    before, after  [N] in `unit`

    >>> paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0]).value
    1.0
    """
    difference = paired_vector(after, before)
    if unit == "share":
        difference, unit = 100 * difference, "percentage points"
    return bootstrap_mean(difference, clusters=clusters, level=level, resamples=resamples, seed=seed, unit=unit)


def win_rate(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Estimate how often `after` is higher than `before`; a tie counts one half.

    before, after  [N] scores, higher is better

    >>> win_rate([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 5.0]).value
    0.625
    """
    points = (np.sign(paired_vector(after, before)) + 1) / 2
    return bootstrap_mean(points, clusters=clusters, level=level, resamples=resamples, seed=seed, unit="share")


def ratio_of_sums(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    unit: str = "share",
) -> Estimate:
    """Estimate a ratio of two totals over the same rows, with a percentile bootstrap over rows or clusters.

        sum_i numerator_i / sum_i denominator_i

    A mean over a part of the rows, F1 and the ratio of two rates are of this kind. A bootstrap sample whose
    denominators are all 0 is left out.

    numerators, denominators  [N] denominators >= 0 with a sum above 0
    clusters                  [N] labels; rows with the same label are resampled together

    >>> ratio_of_sums([1.0, 0.0, 1.0], [1.0, 1.0, 2.0]).value
    0.5
    """
    above, below = finite_vector(numerators), finite_vector(denominators)
    if above.shape != below.shape or below.min() < 0 or below.sum() <= 0:
        raise DataError(
            f"a ratio needs denominators >= 0 that do not all vanish, one per numerator; got {len(above)} numerators "
            f"and {len(below)} denominators with the sum {below.sum()}"
        )
    (tops, _), (bottoms, _) = _cluster_sums(above, clusters), _cluster_sums(below, clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled_means(tops, bottoms, resamples, seed)
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - level) / 2, (1 + level) / 2])
    method = f"percentile bootstrap over {len(tops)} {'rows' if clusters is None else 'prompts'}"
    value = float(above.sum() / below.sum())
    return Estimate(value=value, n=len(above), unit=unit, low=float(low), high=float(high), level=level, method=method)


def _check_counts(successes: float, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}; leave the metric out")


def finite_vector(values: ArrayLike) -> Array:
    """Check that values [N] are a flat list of at least one finite number, and return them as float64.

    >>> finite_vector([1, 2]).tolist()
    [1.0, 2.0]
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(
            f"needs at least one finite number in a flat list, got shape {array.shape}; drop unscored rows first"
        )
    return array


def paired_vector(high: ArrayLike, low: ArrayLike) -> Array:
    """Subtract row by row: high - low, both [N].

    >>> paired_vector([3.0, 2.0], [1.0, 2.0]).tolist()
    [2.0, 0.0]
    """
    first, second = finite_vector(high), finite_vector(low)
    if first.shape != second.shape:
        raise DataError(
            f"paired rows: got {len(second)} before and {len(first)} after; match them by prompt and sample"
        )
    return first - second


def _cluster_sums(values: Array, clusters: Clusters | None) -> tuple[Array, Array]:
    """Sum and count the values of every cluster; without clusters every value is its own."""
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise DataError(f"bootstrap: {len(clusters)} cluster labels for {len(values)} values")
    index = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    place = np.array([index[label] for label in clusters])
    return np.bincount(place, weights=values).astype(np.float64), np.bincount(place).astype(np.float64)


def _resampled_means(sums: Array, counts: Array, resamples: int, seed: int) -> Array:
    """Means of `resamples` sets of clusters drawn with replacement."""
    random, means = np.random.default_rng(seed), []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        draw = random.integers(len(sums), size=(min(RESAMPLES_AT_ONCE, resamples - start), len(sums)))
        means.append(sums[draw].sum(axis=1) / counts[draw].sum(axis=1))
    return np.concatenate(means)


def _bca(values: Array, level: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate jackknife warns; the percentile interval below takes over
        result = bootstrap(
            (values,), np.mean, confidence_level=level, n_resamples=resamples, batch=RESAMPLES_AT_ONCE, vectorized=True,
            method="BCa", rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    low, high = np.quantile(result.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
