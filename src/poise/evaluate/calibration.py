"""Calibration of probabilities of harm: reliability table, calibration error and Brier score."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from poise.functional.statistics import expected_calibration_error, reliability_bins, share
from poise.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityRow:
    """One bin of a reliability table.

    low, high    the bin, in [0, 1]
    probability  mean predicted probability in the bin
    observed     share of harm in the bin
    """

    low: float
    high: float
    probability: float
    observed: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The calibration of probabilities: expected calibration error, Brier score and a reliability table by bins."""

    ece: Estimate
    ece_by_chance: float  # what perfectly calibrated probabilities would show at this n
    brier: Estimate
    table: tuple[ReliabilityRow, ...]


def calibrate(
    probabilities: Sequence[float],
    outcomes: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Calibration:
    """Measure the calibration of probabilities of harm.

        Brier = mean (probability - outcome)^2

    The calibration error is biased upwards in small samples, so it has no valid interval and none is given.
    `ece_by_chance` is its mean over `resamples` sets of outcomes sampled from the probabilities themselves; only an
    error above it shows miscalibration.
    Source: Guo et al. (arXiv:1706.04599) for the error; Brier (1950), "Verification of forecasts".

    probabilities  [N] in [0, 1]
    outcomes       [N] whether harm happened
    clusters       [N] labels of the prompts; by default every row is its own

    Raises DataError for a probability outside [0, 1], or if the lengths differ.

    >>> found = calibrate([0.9, 0.9, 0.1, 0.1], [True, True, False, False])
    >>> round(found.ece.value, 3), round(found.brier.value, 3), len(found.table)
    (0.1, 0.01, 2)
    """
    chance, truth = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    value = expected_calibration_error(chance, truth, bins)
    random, size = np.random.default_rng(seed), len(chance)
    ideal = [expected_calibration_error(chance, random.random(size) < chance, bins) for _ in range(resamples)]
    names = range(size) if clusters is None else clusters
    return Calibration(
        ece=Estimate(
            value=value, n=size, level=level, method=f"{bins} bins; no interval: biased upwards, see ece_by_chance"
        ),
        ece_by_chance=float(np.mean(ideal)),
        brier=replace(share((chance - truth) ** 2, names, level=level), unit=""),
        table=tuple(
            ReliabilityRow(
                low=row.low, high=row.high, probability=row.probability,
                observed=share(truth[list(row.rows)], [names[i] for i in row.rows], level=level),
            )
            for row in reliability_bins(chance, truth, bins)
        ),
    )  # fmt: skip


def pair_calibration(margins: Sequence[float]) -> dict[str, float]:
    """Accuracy, expected calibration error and mean confidence of the order that score differences put pairs in.

        confidence = sigmoid(|h|),   h = score of the response that won - score of the other

    Source: MMPO (arXiv:2410.03145) for the measure; ten bins.

    margins  [N] the differences h, of scores or of the rewards that a policy implies

    >>> pair_calibration([4.0, -4.0])["accuracy"]
    0.5
    """
    confidence = 1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=float))))
    hits = [margin > 0 for margin in margins]
    return {
        "accuracy": float(np.mean(hits)),
        "ece": expected_calibration_error(confidence, hits),
        "confidence": float(confidence.mean()),
    }
