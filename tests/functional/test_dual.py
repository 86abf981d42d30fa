"""Prices of limits from samples: the exact optimum where it is known, and what they say where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from poise.functional.dual import (
    LimitedSamples,
    constraint_gaps,
    dual_value,
    multiplier_intervals,
    solve_dual,
    steadied_dual,
)
from poise.worlds import optimum as exact
from poise.worlds.bandit import three_limits

UNEQUAL = three_limits(stakes=(0.5, 1.0, 2.0))


def of_bandit(bandit, at_most, times=1):
    """Every arm of every context, as often as the uniform start plays it: the expectations are exact."""
    costs = (bandit.chances @ bandit.costs)[None]
    return LimitedSamples(
        rewards=np.repeat(bandit.rewards, times, 1),
        costs=np.repeat(costs, times, 2),
        at_most=np.array([at_most]),
        masks=np.ones((1, len(bandit.rewards)), bool),
    )


def drawn(limits=2, prompts=12, samples=6, seed=0):
    generator = np.random.default_rng(seed)
    masks = np.ones((limits, prompts), bool)
    masks[-1, : prompts // 2] = False  # the last limit speaks of half the prompts
    return LimitedSamples(
        rewards=generator.normal(size=(prompts, samples)),
        costs=generator.normal(size=(limits, prompts, samples)),
        at_most=np.full(limits, -0.2),
        masks=masks,
    )


@pytest.mark.parametrize("at_most", [-0.6, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("kl", [0.05, 0.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_price_is_that_of_the_best_policy_of_the_bandit(at_most, kl, mixed):
    rows, weight = exact.mean_rows(UNEQUAL.costs), (lambda price: kl * (1 + price)) if mixed else (lambda price: kl)
    best = exact.regularised(UNEQUAL, rows, at_most, kl_weight=weight)
    for times in (1, 3):
        found = solve_dual(of_bandit(UNEQUAL, at_most, times), kl=kl, maximum=50.0, mixed=mixed)
        assert found.multipliers[0] == pytest.approx(best.multiplier, abs=1e-3)
        assert found.excess[0] == pytest.approx(best.risk - at_most, abs=1e-3)
        assert found.is_met.all()


def test_the_gradient_is_what_the_limit_leaves_to_the_cost_of_the_policy():
    samples, prices, step = drawn(), np.array([0.4, 0.9]), 1e-6
    kl = np.linspace(0.3, 0.8, 12)  # of each prompt
    for i in range(2):
        up, down = prices.copy(), prices.copy()
        up[i] += step
        down[i] -= step
        slope = (dual_value(up, samples, kl=kl) - dual_value(down, samples, kl=kl)) / (2 * step)
        assert constraint_gaps(prices, samples, kl=kl)[i] == pytest.approx(slope, abs=1e-7)
    weights = np.exp((samples.rewards[0] - prices[0] * samples.costs[0, 0]) / kl[0])  # the second limit is silent here
    one = samples.rows(np.array([0, 11]))
    first = (weights * samples.costs[0, 0]).sum() / weights.sum()
    prices_last = prices * one.masks[:, 1] / one.masks.mean(1)
    weights = np.exp((samples.rewards[11] - prices_last @ samples.costs[:, 11]) / kl[11])
    second = (weights * samples.costs[:, 11]).sum(-1) / weights.sum()
    by_hand = samples.at_most - [(first + second[0]) / 2, second[1]]
    np.testing.assert_allclose(constraint_gaps(prices, one, kl=kl[[0, 11]]), by_hand)


def test_no_price_on_a_grid_has_a_smaller_dual():
    for seed in range(3):
        samples = drawn(seed=seed)
        found = solve_dual(samples, kl=0.4, maximum=5.0)
        least = dual_value(found.multipliers, samples, kl=0.4)
        grid = np.linspace(0, 5, 41)
        assert least <= min(dual_value(np.array([a, b]), samples, kl=0.4) for a in grid for b in grid) + 1e-9


def test_prices_that_are_above_zero_hold_their_limit_exactly_and_others_have_room():
    samples = drawn(limits=3, prompts=40)
    found = solve_dual(samples, kl=0.5)
    for price, excess in zip(found.multipliers, found.excess, strict=True):
        assert excess == pytest.approx(0.0, abs=1e-5) if price > 1e-6 else excess <= 1e-6


def test_a_limit_that_no_sample_meets_has_the_largest_price_and_is_said_not_to_be_met():
    for mixed in (False, True):
        found = solve_dual(of_bandit(UNEQUAL, -1.5), kl=0.1, maximum=8.0, mixed=mixed)
        assert found.multipliers[0] == pytest.approx(8.0)
        assert not found.is_met[0]
        assert found.excess[0] > 0.4


def test_a_limit_that_the_best_policy_keeps_anyway_is_free():
    found = solve_dual(of_bandit(UNEQUAL, 5.0), kl=0.1)
    assert found.multipliers[0] == 0.0
    assert found.excess[0] < 0


def test_where_one_sample_is_all_that_counts_the_kl_weighs_more_until_enough_do():
    samples = drawn(prompts=30, samples=4)
    bare, steady = solve_dual(samples, kl=0.01), steadied_dual(samples, kl=0.01, least_effective=0.5)
    assert bare.effective_samples < 1.2
    assert bare.kl == 0.01
    assert 2.0 <= steady.effective_samples < 2.6
    assert steady.kl > 0.05
    assert steadied_dual(samples, kl=50.0).kl == 50.0  # nothing is raised where enough samples count


def test_the_interval_of_a_price_covers_it_about_as_often_as_it_says():
    truth = solve_dual(drawn(prompts=1500, seed=99), kl=0.5).multipliers
    hits = []
    for seed in range(12):
        samples = drawn(prompts=60, seed=seed)
        found = solve_dual(samples, kl=0.5)
        low, high = multiplier_intervals(samples, found, resamples=40)
        hits.append((low <= truth) & (truth <= high))
    assert np.mean(hits) > 0.8
