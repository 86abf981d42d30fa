"""Shares corrected for the judge's error; that their intervals hold the truth is tested with all intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from poise.errors import DataError
from poise.functional.intervals import clopper_pearson, share
from poise.functional.judge_error import corrected_share, prediction_powered_share


@pytest.mark.parametrize("truth", [0.0, 0.1, 0.5, 1.0])
def test_what_a_judge_with_known_error_calls_is_taken_back_to_the_truth(truth: float) -> None:
    called = round(10_000 * (truth * 0.8 + (1 - truth) * 0.1))
    figures = clopper_pearson(called, 10_000), clopper_pearson(800, 1000), clopper_pearson(100, 1000)
    assert corrected_share(*figures).value == pytest.approx(truth, abs=1e-9)


def test_a_judge_without_measured_error_changes_nothing_but_the_width() -> None:
    called = clopper_pearson(12, 200)
    found = corrected_share(called, clopper_pearson(500, 500), clopper_pearson(0, 500))
    assert found.value == called.value
    assert found.low < called.low
    assert found.high > called.high


def test_a_judge_that_calls_as_much_of_either_kind_has_no_interval() -> None:
    found = corrected_share(clopper_pearson(12, 200), clopper_pearson(10, 20), clopper_pearson(10, 20))
    assert (found.low, found.high) == (None, None)
    assert "is not told from" in found.method


def test_figures_at_two_levels_or_without_an_interval_are_refused() -> None:
    called, finds, alarms = clopper_pearson(12, 200), clopper_pearson(40, 50), clopper_pearson(1, 50)
    with pytest.raises(DataError, match="give all at one level"):
        corrected_share(called, finds, clopper_pearson(1, 50, level=0.9))
    with pytest.raises(DataError, match="needs an interval"):
        corrected_share(called, replace(finds, low=None), alarms)


def test_labels_take_a_judges_bias_out() -> None:
    """A judge that misses every harm: labels of a quarter of the answers say what it missed."""
    truth = np.arange(400) % 5 == 0
    places = np.arange(0, 400, 4)
    found = prediction_powered_share(np.zeros(400), places.tolist(), truth[places])
    assert found.low < 0.2 < found.high
    assert found.value == pytest.approx(truth[places].mean())


def test_a_good_judge_makes_labels_go_further() -> None:
    truth = np.arange(4000) % 5 == 0
    places = np.arange(0, 4000, 79)[:50].tolist()
    powered = prediction_powered_share(truth, places, truth[places])
    alone = share(truth[places])
    assert powered.high - powered.low < 0.7 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("places", "labels", "message"),
    [([], [], "one label for each"),
     ([0, 0], [1, 1], "each once"), ([7], [1], "from 0 to 3"), ([0], [1, 0], "with 2 ")],
)  # fmt: skip
def test_labels_of_answers_that_are_not_there_are_refused(places: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prediction_powered_share([0, 1, 0, 1], places, labels)
