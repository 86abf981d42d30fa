"""Ladders of players who all answered the same prompts, all against all."""

from __future__ import annotations

import numpy as np
import pytest

from poise.errors import DataError
from poise.functional.ratings import elo_difference, ladder_ratings


def test_two_players_are_as_far_apart_as_their_win_rate_says() -> None:
    scores = [[0.0] * 10, [1.0] * 7 + [-1.0] * 3]
    first, second = ladder_ratings(scores, range(10))
    assert (first.value, first.low, first.n) == (1000.0, None, 10)
    assert second.value - 1000 == pytest.approx(elo_difference(7.5 / 11))  # half a win is added to both sides
    assert second.low < second.value < second.high


def test_a_ladder_does_not_depend_on_who_is_named_first_but_for_the_anchor() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 60)) + np.arange(4)[:, None] / 2
    labels = [row // 3 for row in range(60)]
    forwards = ladder_ratings(scores, labels, anchor=0)
    backwards = ladder_ratings(scores[::-1], labels, anchor=3)[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one.value == pytest.approx(other.value)
        assert (one.low, one.high) == pytest.approx((other.low, other.high)) if one.low else other.low is None


def test_rows_of_a_prompt_that_say_the_same_count_once() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 20))
    once = ladder_ratings(scores, range(20))
    again = ladder_ratings(np.repeat(scores, 8, axis=1), np.repeat(range(20), 8).tolist())
    for one, other in zip(once[1:], again[1:], strict=True):
        assert other.high - other.low > 0.7 * (one.high - one.low)


def test_a_player_that_ties_with_the_anchor_everywhere_stands_where_it_stands() -> None:
    ties = ladder_ratings([[1.0] * 12, [1.0] * 12, [2.0, 0.0] * 6], range(12))
    assert [each.value for each in ties] == pytest.approx([1000.0] * 3)


def test_a_player_that_never_loses_has_a_finite_rating_and_a_wide_interval() -> None:
    found = ladder_ratings([[0.0] * 20, [1.0] * 20], range(20))[1]
    assert 1300 < found.value < 2000
    assert found.low < found.value - 200


@pytest.mark.parametrize("scores", [[[0.0, 1.0]], [[0.0], [1.0]], [[0.0, np.nan], [1.0, 1.0]]])
def test_what_is_no_ladder_is_refused(scores) -> None:
    with pytest.raises(DataError, match="two players or more"):
        ladder_ratings(scores, [0, 1])
