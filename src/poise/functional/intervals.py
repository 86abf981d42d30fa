"""Shares, means, ratios and paired differences with their confidence intervals, and the rule that chooses them.

Every interval is two-sided at `level`. Samples of one prompt are not independent: where a prompt has several rows, give
their `clusters` (one hashable label per row, such as the prompt id), and whole prompts are the unit.

    a share, or values in [0, 1]        exact (Clopper-Pearson), at the number of rows that the clusters are worth
    a mean of unbounded values          Student's t over clusters, widened for few and for skewed ones
    a difference of shares, paired      square-and-add of the share gained and the share lost
    a ratio of two shares               the ends of the one over the opposite ends of the other
    a few values, such as one a seed    Student's t

`method` names what was used, or why there is no interval. docs/intervals.md has the coverage of each in simulations.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import DataError
from poise.functional.cluster_sums import (
    Array,
    Clusters,
    ClusterSums,
    cluster_sums,
    effective_number,
    effective_rows,
    exact_ends,
    finite_vector,
    jackknife_variance,
    paired_vector,
    widened_ends,
)
from poise.types import Estimate

FEWEST_DEGREES = 1.2  # of freedom that a mean over clusters needs: three clusters of like size, or more


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Estimate a share of independent rows with the exact (conservative) binomial interval, that of scipy's binomtest.

        low = Beta(a/2; k, n-k+1),   high = Beta(1-a/2; k+1, n-k),   a = 1 - level

    Source: Clopper and Pearson (1934), "The use of confidence or fiducial limits".

    Raises DataError unless 0 <= successes <= n and n >= 1.

    >>> str(clopper_pearson(0, 20))
    '0.0 % [0.0, 16.8] (n=20)'
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}; leave the metric out")
    low, high = exact_ends(successes, n, level)
    value = successes / n
    return Estimate(value=value, n=n, unit="share", low=low, high=high, level=level, method="Clopper-Pearson")


def share(
    flags: ArrayLike, clusters: Clusters | None = None, *, weights: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """Estimate how often a flag is set, or the mean of values in [0, 1].

    The interval is Clopper and Pearson's at an effective number of rows: between the number of prompts, which is right
    if all rows of a prompt are alike, and the number of rows. What lies between is estimated, with as many degrees of
    freedom as prompts bear on the rarer outcome.
    Source: Korn and Graubard (1998); see `effective_rows`.

    flags     [N] bool, or numbers in [0, 1]
    clusters  [N] labels of the prompts; by default every row is its own
    weights   [N] >= 0, of the rows; by default all alike

    Raises DataError for values outside [0, 1], or weights that are negative or all 0.

    >>> str(share([True, False, False, False]))
    '25.0 % [0.6, 80.6] (n=4)'
    >>> share([True, True, False, False] * 2, ["a", "a", "b", "b", "c", "c", "d", "d"]).method
    'Clopper-Pearson at 4.0 effective of 8 rows, over 4 prompts'
    """
    values = finite_vector(flags)
    below = np.ones_like(values) if weights is None else finite_vector(weights)
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"a share needs values in [0, 1], got {values.min():g} to {values.max():g}")
    if below.shape != values.shape or below.min() < 0 or below.sum() <= 0:
        raise DataError(f"a share needs a weight >= 0 for each of its {len(values)} rows, and one above 0")
    sums, rows = cluster_sums(values * below, below, clusters), effective_number(below)
    value, n = min(sums.ratio, 1.0), int((below > 0).sum())
    if len(sums.below) == n:
        effective, method = rows, "Clopper-Pearson"
    else:
        effective = _effective(sums, rows, level)
        method = f"Clopper-Pearson at {effective:.1f} effective of {n} rows, over {len(sums.below)} prompts"
    low, high = exact_ends(value * effective, effective, level)
    low, high = min(low, value), max(high, value)
    return Estimate(value=value, n=n, unit="share", low=low, high=high, level=level, method=method)


def _effective(sums: ClusterSums, rows: float, level: float) -> float:
    freedom = min(sums.degrees_of_freedom(), effective_number(sums.above), effective_number(sums.below - sums.above))
    variance = jackknife_variance(sums.pulls())
    return effective_rows(sums.ratio, variance, freedom, least=effective_number(sums.below), most=rows, level=level)


def mean(values: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95, unit: str = "") -> Estimate:
    """Estimate a mean: Student's t over clusters, widened for few and for skewed ones; a share by the rule for shares.

    Values that do not vary give no interval, nor do fewer than three prompts. See `widened_ends`.

    values    [N] finite, in `unit`
    clusters  [N] labels; rows with the same label are one unit

    >>> mean([1.0, 1.0, 4.0, 4.0, 2.0], ["a", "a", "b", "b", "c"]).method
    't over 3 prompts, widened for few and skewed ones'
    """
    array = finite_vector(values)
    if unit == "share":
        return share(array, clusters, level=level)
    return linear_estimate(array, np.ones_like(array), clusters, level=level, unit=unit)


def linear_estimate(
    above: Array, below: Array, clusters: Clusters | None, *, level: float = 0.95, unit: str = ""
) -> Estimate:
    """Estimate sum(above) / sum(below), both [N], as a mean over clusters; `mean` and `ratio_of_sums` are of this kind.

    >>> linear_estimate(np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]), None).value
    2.5
    """
    sums = cluster_sums(above, below, clusters)
    method = f"t over {len(sums.below)} {'rows' if clusters is None else 'prompts'}, widened for few and skewed ones"
    return pulled_estimate(
        sums.ratio, sums.pulls(), sums.degrees_of_freedom(), n=len(above), level=level, unit=unit, method=method
    )


def pulled_estimate(
    value: float, pulls: Array, freedom: float, *, n: int, level: float, unit: str, method: str
) -> Estimate:
    """Give a value its widened t interval from the pulls of its clusters [G], or say why there is none.

    >>> pulled_estimate(1.0, np.zeros(9), 8.0, n=9, level=0.95, unit="", method="t").method
    'no interval: nothing varies'
    """
    if freedom < FEWEST_DEGREES:
        reason = f"no interval: {len(pulls)} independent values are too few, or one outweighs the rest"
        return Estimate(value=value, n=n, unit=unit, level=level, method=reason)
    ends = widened_ends(value, pulls, freedom, level)
    if ends is None:
        return Estimate(value=value, n=n, unit=unit, level=level, method="no interval: nothing varies")
    return Estimate(value=value, n=n, unit=unit, low=ends[0], high=ends[1], level=level, method=method)


def student_mean(values: ArrayLike, *, level: float = 0.95, unit: str = "") -> Estimate:
    """Estimate a mean of a few independent values, such as one of each seed, by Student's distribution.

        mean +- t_{n-1} s / sqrt(n)

    One value alone has no interval, nor have values that do not vary. The ends of a share stay within [0, 1].
    Source: Student (1908), "The probable error of a mean".

    values  [N] finite, in `unit`; each about normal, as the mean of many rows is

    >>> str(student_mean([1.0, 2.0, 3.0]))
    '2.00 [-0.48, 4.48] (n=3)'
    """
    from scipy.special import stdtrit

    array = finite_vector(values)
    n, centre = len(array), float(array.mean())
    if n == 1 or np.ptp(array) <= 1e-12 * abs(centre):
        method = f"no interval: {'one value' if n == 1 else 'nothing varies'}"
        return Estimate(value=centre, n=n, unit=unit, level=level, method=method)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    low, high = centre - half, centre + half
    if unit == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(value=centre, n=n, unit=unit, low=low, high=high, level=level, method="Student")


def paired_difference(
    before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95, unit: str = ""
) -> Estimate:
    """Estimate mean(after - before) over rows that belong together; for shares the unit becomes percentage points.

    A difference of shares is the share gained less the share lost, each with its own interval; their ends are squared
    and added, with the correlation of the two.
    Source: Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on
    paired data"; Zou and Donner (2008) for the squaring and adding.

    before, after  [N] in `unit`

    >>> paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0]).value
    1.0
    >>> str(paired_difference([1.0] * 30, [0.0] * 30, unit="share"))
    '-100.0 percentage points [-100.0, -76.9] (n=30)'
    """
    difference = paired_vector(after, before)
    if unit != "share":
        return mean(difference, clusters, level=level, unit=unit)
    gained = share(np.maximum(difference, 0), clusters, level=level)
    lost = share(np.maximum(-difference, 0), clusters, level=level)
    value = float(difference.mean())
    if gained.low is None or gained.high is None or lost.low is None or lost.high is None:
        return Estimate(value=100 * value, n=gained.n, unit="percentage points", level=level, method=gained.method)
    together = _correlation(difference, clusters)
    low = value - _added(gained.value - gained.low, lost.high - lost.value, together)
    high = value + _added(gained.high - gained.value, lost.value - lost.low, together)
    return Estimate(
        value=100 * value, n=gained.n, unit="percentage points", low=100 * max(low, -1.0), high=100 * min(high, 1.0),
        level=level, method=f"gained less lost, each {gained.method}",
    )  # fmt: skip


def _added(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first * first + second * second - 2 * correlation * first * second))


def _correlation(difference: Array, clusters: Clusters | None) -> float:
    """Of the shares gained and lost: that of rows which do one thing of three, or of clusters where it is lower."""
    gained, lost, n = np.maximum(difference, 0), np.maximum(-difference, 0), len(difference)
    if float((gained + lost).sum()) > n - 1e-9:
        return -1.0  # no row stayed as it was: what is not gained is lost
    up, down = (float(part.sum() + 0.5) / (n + 1.5) for part in (gained, lost))
    found = -math.sqrt(up * down / ((1 - up) * (1 - down)))
    ones = np.ones(n)
    pulls = [cluster_sums(part + 1, ones, clusters).pulls() for part in (gained, lost)]  # + 1: no cluster is left out
    norm = math.sqrt(float((pulls[0] ** 2).sum() * (pulls[1] ** 2).sum()))
    return max(-1.0, min(found, float((pulls[0] * pulls[1]).sum()) / norm if norm > 1e-12 else 0.0))


def win_rate(before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95) -> Estimate:
    """Estimate how often `after` is higher than `before`; a tie counts one half. No difference is a rate of 1/2.

    before, after  [N] scores, higher is better

    >>> win_rate([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 5.0]).value
    0.625
    """
    return share((np.sign(paired_vector(after, before)) + 1) / 2, clusters, level=level)


def ratio_of_sums(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    unit: str = "share",
) -> Estimate:
    """Estimate a ratio of two totals over the same rows.

        sum_i numerator_i / sum_i denominator_i

    With the unit "share" the numerators are parts of the denominators, as in precision and F1: a share of weighted
    rows. In any other unit, rows of [0, 1] are two shares, whose ratio has no upper end where the one below may be 0;
    the rest is a mean over clusters.

    numerators, denominators  [N] denominators >= 0 with a sum above 0
    clusters                  [N] labels; rows with the same label are one unit

    Raises DataError for denominators that are negative or all 0, or a share above 1.

    >>> ratio_of_sums([1.0, 0.0, 1.0], [1.0, 1.0, 2.0]).value
    0.5
    """
    above, below = finite_vector(numerators), finite_vector(denominators)
    if above.shape != below.shape or below.min() < 0 or below.sum() <= 0:
        raise DataError(
            f"a ratio needs denominators >= 0 that do not all vanish, one per numerator; got {len(above)} numerators "
            f"and {len(below)} denominators with the sum {below.sum()}"
        )
    if unit == "share":
        if (above < 0).any() or (above > below).any():
            raise DataError("a share needs numerators between 0 and their denominators; name another unit for a ratio")
        parts = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return share(parts, clusters, weights=below, level=level)
    if min(above.min(), below.min()) >= 0 and max(above.max(), below.max()) <= 1:
        return _ratio_of_shares(above, below, clusters, level, unit)
    return linear_estimate(above, below, clusters, level=level, unit=unit)


def _ratio_of_shares(above: Array, below: Array, clusters: Clusters | None, level: float, unit: str) -> Estimate:
    top, bottom = share(above, clusters, level=level), share(below, clusters, level=level)
    value = top.value / bottom.value
    if top.low is None or top.high is None or bottom.low is None or bottom.high is None:
        return Estimate(value=value, n=len(above), unit=unit, level=level, method=top.method)
    high = top.high / bottom.low if bottom.low > 0 else None
    return Estimate(
        value=value, n=len(above), unit=unit, low=top.low / bottom.high, high=high, level=level,
        method=f"ratio of two shares, each {top.method}",
    )  # fmt: skip
