"""The statistics of an evaluation in one place: intervals and ratings, and below calibration, agreement and diversity.

Intervals live in `intervals`, Elo, Bradley-Terry and the arena in `ratings`; all are public here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import DataError
from poise.functional.agreement import kappa
from poise.functional.cluster_sums import (
    Array,
    Clusters,
    cluster_sums,
    effective_number,
    effective_rows,
    exact_ends,
    finite_vector,
)
from poise.functional.intervals import (
    clopper_pearson,
    mean,
    paired_difference,
    ratio_of_sums,
    share,
    student_mean,
    win_rate,
)
from poise.functional.ratings import (
    ArenaTable,
    arena_table,
    bradley_terry_ratings,
    elo_difference,
    elo_estimate,
    elo_expected,
    ladder_ratings,
)
from poise.types import Estimate

__all__ = [
    "ArenaTable",
    "PlattScale",
    "ReliabilityBin",
    "area_under_curve",
    "arena_table",
    "bradley_terry_ratings",
    "clopper_pearson",
    "distinct_n",
    "elo_difference",
    "elo_estimate",
    "elo_expected",
    "expected_calibration_error",
    "f1",
    "fit_platt",
    "kappa",
    "ladder_ratings",
    "mean",
    "ngrams",
    "paired_difference",
    "ratio_of_sums",
    "reliability_bins",
    "share",
    "student_mean",
    "win_rate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Probabilities in (low, high] against what happened."""

    low: float
    high: float
    n: int
    probability: float  # mean of the probabilities in the bin
    observed: float  # share of outcomes that are true
    rows: tuple[int, ...]  # which of the N they are


def reliability_bins(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Sort probabilities into `bins` equal intervals (0 falls into the first); empty bins are left out.

    probabilities  [N] in [0, 1]
    outcomes       [N] 0 or 1

    Raises DataError for probabilities outside [0, 1], or if the lengths differ.

    >>> [(row.low, row.n, row.observed) for row in reliability_bins([0.2, 0.5, 0.9], [0, 1, 1], bins=2)]
    [(0.0, 2, 0.5), (0.5, 1, 1.0)]
    """
    chance, truth = finite_vector(probabilities), finite_vector(outcomes)
    if chance.shape != truth.shape or chance.min() < 0 or chance.max() > 1:
        raise DataError(
            f"reliability: needs probabilities in [0, 1], one per outcome; got {len(chance)} and {len(truth)}"
        )
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, chance, side="left") - 1, 0, bins - 1)
    return tuple(
        ReliabilityBin(
            low=float(edges[i]), high=float(edges[i + 1]), n=int((place == i).sum()),
            probability=float(chance[place == i].mean()), observed=float(truth[place == i].mean()),
            rows=tuple(np.flatnonzero(place == i).tolist()),
        )
        for i in np.unique(place)
    )  # fmt: skip


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """Average the gap between what was promised and what happened, weighted by the size of each bin.

        ECE = sum_b n_b / N |mean probability_b - observed_b|

    Source: Guo et al. (arXiv:1706.04599). It is biased upwards in small samples.

    probabilities  [N] in [0, 1]
    outcomes       [N] 0 or 1

    >>> expected_calibration_error([0.5, 0.5], [1, 0])
    0.0
    """
    table = reliability_bins(probabilities, outcomes, bins)
    return sum(row.n * abs(row.probability - row.observed) for row in table) / sum(row.n for row in table)


def f1(predictions: Sequence[bool], labels: Sequence[bool]) -> float | None:
    """Give 2 TP / (2 TP + FP + FN); None where neither side holds a positive.

    >>> f1([True, True, False], [True, False, False]) == 2 / 3
    True
    """
    pairs = Counter(zip((bool(p) for p in predictions), (bool(y) for y in labels), strict=True))
    hits, errors = pairs[True, True], pairs[True, False] + pairs[False, True]
    return 2 * hits / (2 * hits + errors) if hits + errors else None


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """List the word n-grams of a text, words being what white space separates.

    >>> ngrams("boil the eggs", 2)
    [('boil', 'the'), ('the', 'eggs')]
    """
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Give the share of distinct word n-grams among all n-grams of the texts, pooled; 0 when there are none.

    It falls as texts get longer or more, so compare only sets of the same size.
    Source: Li et al. (arXiv:1510.03055).

    >>> distinct_n(["i am going", "i am going", "lets go i i"], 1)
    0.5
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlattScale:
    """A map from a score to a probability: sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def probability(self, scores: ArrayLike) -> Array:
        """Map scores [N] to probabilities [N]."""
        from scipy.special import expit

        return np.asarray(expit(self.slope * np.asarray(scores, dtype=float) + self.offset))


def fit_platt(scores: ArrayLike, labels: ArrayLike, *, ridge: float = 1e-3) -> PlattScale:
    """Fit a Platt scale by maximum likelihood.

        min  sum_i softplus(z_i) - y_i z_i + ridge/2 slope^2,   z = slope * score + offset

    The ridge keeps the slope finite where a threshold parts the labels perfectly.
    Source: Platt (1999), "Probabilistic outputs for support vector machines", without his target smoothing.

    scores  [N] unbounded
    labels  [N] 0 or 1, both present

    Raises DataError unless there is one label per score and both labels occur.

    >>> scale = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 1, 0, 1])
    >>> scale.slope > 0, abs(scale.offset) < 1e-4
    (True, True)
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    x, y = finite_vector(scores), finite_vector(labels)
    if x.shape != y.shape or set(np.unique(y)) != {0.0, 1.0}:
        raise DataError(
            f"fit_platt: needs one label per score and both labels, got {len(x)} scores and {set(y.tolist())}"
        )

    def loss(theta: Array) -> tuple[float, Array]:
        z = theta[0] * x + theta[1]
        residual = expit(z) - y
        value = float(np.logaddexp(0, z).sum() - (y * z).sum() + ridge / 2 * theta[0] ** 2)
        return value, np.array([(residual * x).sum() + ridge * theta[0], residual.sum()])

    best = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-6 * len(x)})
    return PlattScale(slope=float(best.x[0]), offset=float(best.x[1]))


def area_under_curve(
    scores: ArrayLike, labels: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95
) -> Estimate:
    """Estimate the probability that a row with label 1 has a higher score than one with label 0; ties count one half.

        AUC = mean over label 1 of V_i,   V_i = share of the rows with label 0 whose score is lower

    The interval is that of a share, at the number of rows that DeLong's variance says the curve is worth: at least the
    rows, or prompts, of the rarer label.
    Source: DeLong et al. (1988) for the variance; Obuchowski (1997) for clusters; see `effective_rows`.

    scores    [N] higher for label 1
    labels    [N] 0 or 1, both present
    clusters  [N] labels of the prompts; by default every row is its own

    Raises DataError unless there is one label per score and both labels occur.

    >>> str(area_under_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]))
    '0.75 [0.06, 1.00] (n=4)'
    """
    values, truth = finite_vector(scores), finite_vector(labels)
    if values.shape != truth.shape or set(np.unique(truth)) != {0.0, 1.0}:
        raise DataError(
            f"area_under_curve: needs one label per score and both labels, got {len(values)} scores and "
            f"{set(truth.tolist())}"
        )
    placed = _placements(values, truth == 1)
    names = list(range(len(values))) if clusters is None else list(clusters)
    sides = [cluster_sums(np.where(truth == label, placed, 0.0), (truth == label) * 1.0, names) for label in (1, 0)]
    area = sides[0].ratio
    pulls: dict[Hashable, float] = dict.fromkeys(names, 0.0)
    for label, side in zip((1, 0), sides, strict=True):
        scale = math.sqrt(len(side.below) / max(len(side.below) - 1, 1)) / side.below.sum()
        for name, own, place in zip(names, truth == label, placed, strict=True):
            pulls[name] += scale * (place - area) * own
    counts = [effective_number(side.below) for side in sides]
    freedom = min(
        *(count - 1 for count in counts),
        *(effective_number(part) for side in sides for part in (side.above, side.below - side.above)),
    )
    variance = float(sum(pull * pull for pull in pulls.values()))
    effective = effective_rows(area, variance, freedom, least=min(counts), most=len(values), level=level)
    low, high = exact_ends(area * effective, effective, level)
    return Estimate(
        value=area, n=len(values), low=min(low, area), high=max(high, area), level=level,
        method=f"AUC, Clopper-Pearson at {effective:.1f} effective rows",
    )  # fmt: skip


def _placements(values: Array, is_high: NDArray[np.bool_]) -> Array:
    """For each row the share of rows of the other label on the right side of it [N]; ties count one half."""
    placed = np.empty_like(values)
    for own in (is_high, ~is_high):
        others = np.sort(values[~own])
        below = np.searchsorted(others, values[own], "left") + np.searchsorted(others, values[own], "right")
        placed[own] = below / (2 * len(others))
    placed[~is_high] = 1 - placed[~is_high]
    return placed
