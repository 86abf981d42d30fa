"""Shares that a judge found, corrected for the error of the judge as people's labels show it, with one joint interval.

A judge that calls 5 % of all answers harmful may have missed as many again. Two corrections are to be had:

    from elsewhere    its sensitivity and false alarms on other labelled answers   `corrected_share`
    from the answers  people's labels of a random part of the very answers         `prediction_powered_share`

The first holds only if the judge errs on these answers as it did on those; the second assumes nothing of the judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import DataError
from poise.functional.cluster_sums import Clusters, finite_vector
from poise.functional.intervals import paired_difference, share
from poise.types import Estimate


def corrected_share(called: Estimate, sensitivity: Estimate, false_alarms: Estimate) -> Estimate:
    """Estimate the true share from the share that a judge calls, its sensitivity and its rate of false alarms.

        true = (called - false_alarms) / (sensitivity - false_alarms),   within [0, 1]

    Each of the three is moved to either end of its own interval, and the distances that this makes are squared and
    added, so that the interval allows for the sampling of all three.
    Source: Rogan and Gladen (1978), "Estimating prevalence from the results of a screening test"; Zou and Donner
    (2008), "Construction of confidence limits about effect measures", for the squaring and adding.

    called        share of the answers that the judge calls harmful
    sensitivity   share of harmful answers that it calls harmful, on labelled answers
    false_alarms  share of harmless answers that it calls harmful, on labelled answers

    The three come from different answers, each with an interval at one level. There is no interval where sensitivity
    and false alarms cannot be told apart: such a judge says nothing, and `method` says so.

    Raises DataError for figures without intervals, or at different levels.

    >>> from poise.functional.intervals import clopper_pearson
    >>> found = corrected_share(clopper_pearson(5, 100), clopper_pearson(40, 50), clopper_pearson(1, 50))
    >>> str(found)
    '3.8 % [0.0, 12.3] (n=100)'
    >>> corrected_share(clopper_pearson(5, 100), clopper_pearson(3, 5), clopper_pearson(1, 5)).high is None
    True
    """
    (low, high), (least, most), (fewest, largest) = (_ends(each) for each in (called, sensitivity, false_alarms))
    n, level = called.n, _one_level([called, sensitivity, false_alarms])
    centre = _rogan_gladen(called.value, sensitivity.value, false_alarms.value)
    if least <= largest or centre is None:
        told = f"sensitivity {sensitivity:bare} is not told from false alarms {false_alarms:bare}"
        value = called.value if centre is None else min(max(centre, 0.0), 1.0)
        return Estimate(value=value, n=n, unit="share", level=level, method=f"no interval: the judge's {told}")
    moved = [
        [_rogan_gladen(end, sensitivity.value, false_alarms.value) for end in (low, high)],
        [_rogan_gladen(called.value, end, false_alarms.value) for end in (least, most)],
        [_rogan_gladen(called.value, sensitivity.value, end) for end in (fewest, largest)],
    ]
    changes = np.array(moved, dtype=float) - centre  # [3, 2]
    below, above = np.minimum(changes, 0).min(1), np.maximum(changes, 0).max(1)
    return _within(
        centre,
        centre - float(np.linalg.norm(below)),
        centre + float(np.linalg.norm(above)),
        n=n,
        level=level,
        method=f"Rogan-Gladen, from n={sensitivity.n} harmful and n={false_alarms.n} harmless labelled answers",
    )


def prediction_powered_share(
    called: ArrayLike,
    labelled: Sequence[int],
    labels: ArrayLike,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """Estimate the true share of answers all of which a judge saw and a random part of which people labelled.

        true = u mean(called of the unlabelled) + mean(label - u called of the labelled),   within [0, 1]

    u is the unlabelled share of the answers: the mean of what the judge called of all, and its error on the labelled.
    The judge narrows the interval as far as it is right, and cannot bias it. The two means have no answer in common;
    the distances to the ends of their intervals are squared and added.
    Source: Angelopoulos et al. (2023), "Prediction-powered inference", arXiv:2301.09633, equation (3); Angelopoulos,
    Duchi and Zrnic (2023), "PPI++", arXiv:2311.01453, for the weight.

    called    [N] bool, what the judge says of every answer
    labelled  places in [0, N) of the answers that people labelled, each once
    labels    [M] bool, what people say of them, in the same order
    clusters  [N] labels of the prompts; by default every answer is its own

    Raises DataError if no answer is labelled or none is left, a place is given twice or is not there, or the numbers
    of places and labels differ.

    >>> str(prediction_powered_share([True] * 20 + [False] * 180, range(0, 200, 4), [True] * 5 + [False] * 45))
    '10.0 % [1.8, 20.0] (n=200)'
    """
    said, places, found = finite_vector(called), list(labelled), np.asarray(labels, dtype=float)
    if not places or len(places) != len(found) or len(places) >= len(said):
        raise DataError(
            f"{len(places)} labelled answers of {len(said)}, with {len(found)} labels: give one label for each of some "
            "of the answers, and leave some without"
        )
    if len(set(places)) < len(places) or min(places) < 0 or max(places) >= len(said):
        raise DataError(f"labelled answers are given by their places from 0 to {len(said) - 1}, each once")
    truth = finite_vector(found)
    names = list(range(len(said))) if clusters is None else list(clusters)
    others = sorted(set(range(len(said))) - set(places))
    weight = len(others) / len(said)
    seen = share(said[others], [names[n] for n in others], level=level)
    missed = paired_difference(weight * said[places], truth, [names[n] for n in places], level=level, unit="share")
    (low, high), (less, more) = _ends(seen), _ends(missed)
    error = missed.value / 100
    centre = weight * seen.value + error
    below = np.hypot(weight * (seen.value - low), error - less / 100)
    above = np.hypot(weight * (high - seen.value), more / 100 - error)
    method = f"prediction-powered: {len(places)} of {len(said)} answers labelled"
    return _within(centre, centre - float(below), centre + float(above), n=len(said), level=level, method=method)


def _rogan_gladen(called: float, sensitivity: float, false_alarms: float) -> float | None:
    apart = sensitivity - false_alarms
    return (called - false_alarms) / apart if apart > 0 else None


def _within(centre: float, low: float, high: float, *, n: int, level: float, method: str) -> Estimate:
    value, low, high = (min(max(each, 0.0), 1.0) for each in (centre, low, high))
    return Estimate(value=value, n=n, unit="share", low=low, high=high, level=level, method=method)


def _ends(figure: Estimate) -> tuple[float, float]:
    if figure.low is None or figure.high is None:
        raise DataError(f"{figure}: a correction needs an interval, with both ends ({figure.method})")
    return figure.low, figure.high


def _one_level(figures: Sequence[Estimate]) -> float:
    levels = {figure.level for figure in figures}
    if len(levels) > 1:
        raise DataError(f"intervals at levels {', '.join(map(str, sorted(levels)))}: give all at one level")
    return levels.pop()
