"""Sums by cluster, and what they say of a ratio of totals: its variance, its skewness and how much they can carry.

Samples of one prompt are not independent, so that the prompt is the unit: rows with the same label are summed first.
A mean is a ratio of totals too, with the number of rows below.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import DataError

Array = NDArray[np.float64]
Clusters = Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """Numerators and denominators by cluster, both [G]."""

    above: Array
    below: Array

    @property
    def ratio(self) -> float:
        """The ratio of the totals."""
        return float(self.above.sum() / self.below.sum())

    def pulls(self) -> Array:
        """What each cluster adds to the error of the ratio [G], enlarged as leaving the cluster out would show it.

        u_g = (above_g - ratio below_g) / (below (1 - w_g)),   w_g = below_g / below
        """
        weights = self.below / self.below.sum()
        return (self.above - self.ratio * self.below) / (self.below.sum() * np.maximum(1 - weights, 1e-9))

    def degrees_of_freedom(self) -> float:
        """Satterthwaite's, if whole clusters are the unit: G - 1 for clusters of one size, fewer for unequal ones.

        Source: Bell and McCaffrey (2002), "Bias reduction in standard errors for linear regression with multi-stage
        samples", for a mean under full dependence within clusters and the jackknife's variance.
        """
        weights = self.below / self.below.sum()
        if len(weights) < 2 or weights.max() > 1 - 1e-9:
            return 0.0
        squares = float((weights**2).sum())
        scaled = (weights / (1 - weights)) ** 2
        mean = float((scaled * (1 - 2 * weights + squares)).sum())
        zeroth, first, second = (float((scaled * weights**power).sum()) for power in range(3))
        crossed = squares**2 * zeroth**2 + 2 * second * zeroth - 4 * squares * first * zeroth + 2 * first**2
        crossed += float((scaled**2 * (1 + 2 * (squares - 2 * weights))).sum())
        return min(len(weights) - 1.0, mean**2 / crossed)


def cluster_sums(above: Array, below: Array, clusters: Clusters | None) -> ClusterSums:
    """Add up numerators and denominators [N] by cluster; without clusters every row is its own.

    Clusters that add nothing to either are left out.

    Raises DataError unless there is one label per value.

    >>> cluster_sums(np.array([1.0, 0.0, 1.0]), np.ones(3), ["a", "a", "b"]).below.tolist()
    [2.0, 1.0]
    """
    if clusters is None:
        sums = ClusterSums(above, below)
    else:
        if len(clusters) != len(above):
            raise DataError(f"{len(clusters)} cluster labels for {len(above)} values: give one per row")
        number: dict[Hashable, int] = {}
        place = np.array([number.setdefault(label, len(number)) for label in clusters])
        sums = ClusterSums(*(np.bincount(place, part).astype(np.float64) for part in (above, below)))
    used = (sums.above != 0) | (sums.below != 0)
    return sums if used.all() else ClusterSums(sums.above[used], sums.below[used])


def jackknife_variance(pulls: Array) -> float:
    """Give the variance of an estimate from the pulls of its clusters [G]: (G - 1) / G sum_g u_g^2.

    >>> jackknife_variance(np.array([1.0, -1.0]))
    1.0
    """
    return float((len(pulls) - 1) / len(pulls) * (pulls**2).sum())


def effective_number(amounts: Array) -> float:
    """Kish's number of equal parts that amounts [N] >= 0 are worth: (sum a)^2 / sum a^2, 0 if all are 0.

    >>> effective_number(np.array([1.0, 1.0, 0.0])), effective_number(np.array([3.0, 1.0]))
    (2.0, 1.6)
    """
    squares = float((amounts**2).sum())
    return float(amounts.sum()) ** 2 / squares if squares > 0 else 0.0


def finite_vector(values: ArrayLike) -> Array:
    """Check that values [N] are a flat list of at least one finite number, and return them as float64.

    Raises DataError for anything else.

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

    Raises DataError if the lengths differ.

    >>> paired_vector([3.0, 2.0], [1.0, 2.0]).tolist()
    [2.0, 0.0]
    """
    first, second = finite_vector(high), finite_vector(low)
    if first.shape != second.shape:
        raise DataError(
            f"paired rows: got {len(second)} before and {len(first)} after; match them by prompt and sample"
        )
    return first - second


def exact_ends(successes: float, n: float, level: float) -> tuple[float, float]:
    """Clopper and Pearson's ends for a share; the numbers may be effective ones, and so not whole.

    >>> [round(end, 3) for end in exact_ends(1, 4, 0.95)]
    [0.006, 0.806]
    """
    from scipy.special import betaincinv

    tail, failures = (1 - level) / 2, max(n - successes, 0.0)
    low = float(betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return low, high


def effective_rows(
    share: float, variance: float, freedom: float, *, least: float, most: float, level: float = 0.95
) -> float:
    """How many independent rows a share is worth whose variance is known with so many degrees of freedom.

        n = share (1 - share) / variance * (z / t_freedom)^2,   within [least, most]

    `least` is the number of clusters: however much rows depend on each other, whole clusters do not. A variance of 0
    says that nothing was seen of how rows vary, and gives `least`.
    Source: Korn and Graubard (1998), "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data".

    >>> round(effective_rows(0.5, 0.0125, 1e9, least=5, most=40), 3)
    20.0
    """
    from scipy.special import ndtri, stdtrit

    if variance <= 1e-12 * share * (1 - share) or not 0 < share < 1:
        return least
    shrink = float(ndtri(0.5 + level / 2)) / float(stdtrit(max(1.0, freedom), 0.5 + level / 2))
    return min(max(share * (1 - share) / variance * shrink * shrink, least), most)


def widened_ends(value: float, pulls: Array, freedom: float, level: float) -> tuple[float, float] | None:
    """Student's ends for a mean, widened where few or skewed clusters would make them miss; None if nothing varies.

        value -+ se (t + max(0, -+ 2.5 g (1 + 2 t^2) / 6)),   g = sum u^3 / (sum u^2)^1.5

    t has half of the degrees of freedom and g, Johnson's correction, is enlarged and only ever widens: with less, the
    mean of five lognormal values is missed too often.
    Source: Johnson (1978), "Modified t tests and confidence intervals for asymmetrical populations".

    >>> widened_ends(1.0, np.zeros(3), 2.0, 0.95) is None
    True
    """
    from scipy.special import stdtrit

    squares = float((pulls**2).sum())
    if squares <= (1e-12 * abs(value)) ** 2:
        return None
    skewness = float((pulls**3).sum()) / squares**1.5
    t = float(stdtrit(freedom / 2, 0.5 + level / 2))
    error, shift = math.sqrt(jackknife_variance(pulls)), 2.5 * skewness * (1 + 2 * t * t) / 6
    return value - error * (t + max(0.0, -shift)), value + error * (t + max(0.0, shift))
