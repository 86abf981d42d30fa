from __future__ import annotations

import numpy as np
import pytest

from poise.evaluate.calibration import calibrate, pair_calibration


def test_figures_by_hand():
    found = calibrate([0.1, 0.1, 0.9, 0.9], [False, False, True, False], bins=2)
    # bins: promised 0.1 and saw 0; promised 0.9 and saw 0.5
    assert found.ece.value == pytest.approx((0.1 + 0.4) / 2)
    assert found.brier.value == pytest.approx((0.01 + 0.01 + 0.01 + 0.81) / 4)
    assert [(row.observed.value, row.observed.n) for row in found.table] == [(0.0, 2), (0.5, 2)]
    assert found.ece.n == 4


def test_chance_alone_explains_the_error_of_calibrated_forecasts_and_not_of_others():
    random = np.random.default_rng(0)
    probabilities = random.random(300)
    truth = random.random(300) < probabilities
    honest = calibrate(probabilities, truth, resamples=200)
    assert honest.ece.value == pytest.approx(honest.ece_by_chance, abs=0.03)
    boaster = calibrate(np.where(probabilities > 0.5, 0.99, 0.01), truth, resamples=200)
    assert boaster.ece.value > 3 * boaster.ece_by_chance


def test_a_biased_figure_has_no_interval_and_the_others_have_one_without_a_single_event():
    found = calibrate([0.02, 0.03] * 20, [False] * 40, bins=2)
    assert (found.ece.low, found.ece.high) == (None, None)
    assert "ece_by_chance" in found.ece.method
    assert found.table[0].observed.high > 0.08
    assert found.brier.high > 0.08  # a forecast that is wrong once in fifty was not seen to be wrong yet


def test_pairs_are_calibrated_by_the_confidence_in_the_higher_score():
    sure_and_right = pair_calibration([9.0, 9.0, 9.0])
    assert sure_and_right["accuracy"] == 1.0 and sure_and_right["ece"] < 1e-3
    assert pair_calibration([9.0, -9.0])["ece"] == pytest.approx(0.5, abs=1e-3)  # sure, and right half of the time
    assert pair_calibration([0.0, 0.1])["confidence"] == pytest.approx(0.5, abs=0.02)
    assert pair_calibration([0.0])["accuracy"] == 0.0  # a tie orders nothing
    assert pair_calibration([1e4, -1e4])["confidence"] == 1.0
