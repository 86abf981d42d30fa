"""Kappa with its interval: by hand, over prompts, and where there is none."""

from __future__ import annotations

import pytest

from poise.errors import DataError
from poise.functional.agreement import kappa


def test_it_is_cohens_kappa_by_hand() -> None:
    """20 both yes, 15 both no, 5 and 10 apart, observed 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5: (0.7 - 0.5) / 0.5."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = kappa(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.low is not None and found.high is not None and found.low < 0.4 < found.high


def test_rows_of_one_prompt_are_one_unit() -> None:
    first, second = [1, 0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1, 1, 0]
    alone, doubled = kappa(first, second), kappa(first * 2, second * 2, list(range(8)) * 2)
    assert doubled.value == pytest.approx(alone.value)
    assert (doubled.low, doubled.high) == pytest.approx((alone.low, alone.high))
    assert doubled.n == 16


@pytest.mark.parametrize("labels", [[1, 1, 1], [1, 0, 1]])
def test_raters_that_never_differ_have_no_interval(labels: list[int]) -> None:
    found = kappa(labels, labels)
    assert found.value == 1.0 and found.low is found.high is None and "no interval" in found.method


def test_rows_that_do_not_match_are_an_error() -> None:
    with pytest.raises(DataError, match="got 1 and 2"):
        kappa([1], [1, 2])
