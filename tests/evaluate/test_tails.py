"""The lower tail of rewards: against definitions, and intervals that know of clusters and pairs."""

import numpy as np
import pytest

from poise.errors import ConfigError, DataError
from poise.evaluate.tails import hardest, lower_tail, quantile_curve, tail_difference
from poise.functional.risk import conditional_value_at_risk


def test_the_tail_is_the_cvar_of_the_negated_reward_where_the_count_is_whole():
    import torch

    rewards = np.random.default_rng(0).normal(size=40)
    found = lower_tail(rewards, 0.25)
    assert found.value == pytest.approx(-float(conditional_value_at_risk(torch.tensor(-rewards), 0.25)))
    assert found.low <= found.value <= found.high
    assert lower_tail(rewards, 1.0).value == pytest.approx(rewards.mean())


def test_the_interval_of_the_tail_is_wider_with_few_prompts():
    rewards = np.random.default_rng(1).normal(size=200)
    apart = lower_tail(rewards, 0.2)
    together = lower_tail(np.sort(rewards), 0.2, clusters=[i // 4 for i in range(200)])
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert "50 prompts" in together.method


def test_a_tail_of_few_prompts_has_no_interval_and_says_why():
    rewards = np.random.default_rng(1).normal(size=200)
    for found in (
        lower_tail(rewards, 0.02),
        lower_tail(np.sort(rewards), 0.2, clusters=[i // 40 for i in range(200)]),
        tail_difference(np.zeros(200), rewards, 0.02),
    ):
        assert (found.low, found.high) == (None, None)
        assert "10 are needed" in found.method


def test_the_difference_of_tails_resamples_both_sides_together():
    before = np.random.default_rng(2).normal(size=100)
    same = tail_difference(before, before + 0.5, 0.1)
    assert same.value == pytest.approx(0.5)
    assert (same.low, same.method) == (None, "no interval: nothing varies")
    lifted = np.maximum(before, -1.0)  # only the tail is better
    found = tail_difference(before, lifted, 0.15)
    assert found.value == pytest.approx(lower_tail(lifted, 0.15).value - lower_tail(before, 0.15).value)
    assert found.low > 0


def test_the_hardest_prompts_are_those_with_the_lowest_scores_and_their_ties():
    assert hardest([1.0, 0.0, 0.0, 3.0], 0.25) == [False, True, True, False]
    assert all(hardest([1.0, 0.0], 1.0))
    with pytest.raises(ConfigError, match="share"):
        hardest([1.0], 0.0)


def test_the_quantile_curve_ends_at_the_mean_and_ranks_by_the_prompt():
    prompts, rewards = [5.0, 1.0, 3.0, 2.0], [0.0, 4.0, 2.0, 8.0]
    assert quantile_curve(prompts, rewards, [0.25, 0.5, 1.0]) == [4.0, 6.0, 3.5]
    with pytest.raises(DataError, match="one reward per prompt"):
        quantile_curve(prompts, rewards[:2], [1.0])


def test_the_quantile_curve_is_that_of_the_published_code_where_the_counts_are_whole():
    prompts = [-3.0, -2.6, -2.5, -1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0]
    rewards = [-2.0, -1.0, 0.5, 0.2, 0.1, 0.9, 1.1, 2.0, 2.1, 2.8]
    expected = [-2.0, -0.8333333333333334, -0.44, 0.67]
    assert quantile_curve(prompts, rewards, [0.1, 0.3, 0.5, 1.0]) == pytest.approx(expected, abs=1e-12)
