import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.functional.constraints import (
    LARGEST_MULTIPLIER,
    PIDGains,
    PIDState,
    lagrangian_mix,
    lagrangian_mix_channels,
    pid_step,
    projected_ascent,
    reference_log_ascent,
)
from poise.functional.masked import length_mask, sequence_mean
from poise.functional.policy_losses import clipped_surrogate

REWARD = torch.tensor([[1.0, -0.5, 0.3], [-1.0, 2.0, 0.7]], dtype=torch.float64)
COST = torch.tensor([[0.2, 0.4, -0.6], [1.5, -0.2, 0.1]], dtype=torch.float64)
OLD = torch.tensor([[-1.0, -0.8, -0.6], [-0.4, -1.5, -0.9]], dtype=torch.float64)
NEW = torch.tensor([[-0.9, -0.5, -1.2], [-0.4, -2.0, -0.3]], dtype=torch.float64)
MASK = length_mask(torch.tensor([3, 2]), 3)


def actor_loss(advantages):
    return sequence_mean(clipped_surrogate(NEW, OLD, advantages), MASK)


def test_multiplier_zero_is_plain_ppo_on_the_reward():
    assert torch.equal(actor_loss(lagrangian_mix(REWARD, COST, 0.0)), actor_loss(REWARD))


def test_a_huge_multiplier_is_ppo_on_minus_the_cost():
    torch.testing.assert_close(actor_loss(lagrangian_mix(REWARD, COST, 1e12)), actor_loss(-COST))


def test_no_gradient_flows_into_the_multiplier():
    multiplier, reward = torch.tensor(2.0, requires_grad=True), REWARD.clone().requires_grad_()
    lagrangian_mix(reward, COST, multiplier).sum().backward()
    assert multiplier.grad is None
    assert reward.grad is not None


def test_several_costs_by_hand():
    costs = {"harm": torch.tensor([1.0]), "length": torch.tensor([4.0])}
    assert (
        lagrangian_mix_channels(torch.tensor([3.0]), costs, {"harm": 1.0, "length": 0.5}).item() == 0.0
    )  # (3 - 1 - 2) / 2.5


def test_costs_with_multiplier_zero_and_no_costs_at_all_leave_the_reward():
    assert torch.equal(lagrangian_mix_channels(REWARD, {"a": COST, "b": COST}, {"a": 0.0, "b": 0.0}), REWARD)
    assert torch.equal(lagrangian_mix_channels(REWARD, {}, {}), REWARD)


def test_a_cost_without_a_multiplier_is_named():
    with pytest.raises(ConfigError, match="length"):
        lagrangian_mix_channels(REWARD, {"harm": COST, "length": COST}, {"harm": 1.0})


def rules():
    gains = PIDGains(integral=0.1)
    return {
        "reference": lambda multiplier, excess: reference_log_ascent(multiplier, excess - 3.0, -3.0, rate=0.1),
        "projected": lambda multiplier, excess: projected_ascent(multiplier, excess, rate=0.1),
        "pid": lambda multiplier, excess: pid_step(PIDState(integral=multiplier / 0.1), excess, gains=gains).multiplier,
    }


@pytest.mark.parametrize("rule", rules().values(), ids=rules())
def test_a_mean_cost_above_the_limit_raises_the_multiplier_and_equality_leaves_it(rule):
    assert rule(1.0, 0.5) > rule(1.0, 0.0) == 1.0 > rule(1.0, -0.5) > 0


def test_the_reference_rule_blows_up_where_projected_ascent_does_not():
    reference = projected = 1.0
    for _ in range(30):
        reference = reference_log_ascent(reference, 2.5, 0.0, rate=0.1)
        projected = projected_ascent(projected, 2.5, rate=0.1)
    assert reference == LARGEST_MULTIPLIER
    assert projected == pytest.approx(1 + 30 * 0.25)


def test_the_reference_rule_stalls_near_zero_where_projected_ascent_does_not():
    assert reference_log_ascent(1e-4, 2.5, 0.0, rate=0.1) < 1.1e-4
    assert projected_ascent(1e-4, 2.5, rate=0.1) > 0.25


def test_the_reference_rule_is_ascent_on_the_logarithm():
    log_multiplier = torch.tensor(0.3).log().double().requires_grad_()
    (-(1.7 - 0.2) * log_multiplier.exp()).backward()
    stepped = (log_multiplier - 0.05 * log_multiplier.grad).exp().item()
    assert reference_log_ascent(math.exp(log_multiplier.item()), 1.7, 0.2, rate=0.05) == pytest.approx(
        stepped, abs=1e-12
    )


@given(st.floats(0, 5), st.floats(-1e3, 1e3))
def test_projected_ascent_stays_within_its_bounds(multiplier, excess):
    assert 0 <= projected_ascent(multiplier, excess, rate=0.1, maximum=5.0) <= 5


def run(excesses, gains, maximum=math.inf):
    state, steps = PIDState(), []
    for excess in excesses:
        step = pid_step(state, excess, gains=gains, maximum=maximum)
        state = step.state
        steps.append(step)
    return steps


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    st.floats(0, 2),
    st.floats(0, 2),
    st.floats(0, 2),
)
def test_the_controller_never_leaves_its_bounds(excesses, proportional, integral, derivative):
    steps = run(excesses, PIDGains(proportional, integral, derivative), maximum=5.0)
    assert all(0 <= step.multiplier <= 5 for step in steps)
    assert all(step.state.integral >= 0 for step in steps)


def test_the_integral_gain_alone_is_projected_ascent():
    projected, excesses = 0.0, [1.0, 3.0, -2.0, -9.0, 0.5, 200.0, -1.0]
    for excess, step in zip(excesses, run(excesses, PIDGains(integral=0.1), maximum=5.0), strict=True):
        projected = projected_ascent(projected, excess, rate=0.1, maximum=5.0)
        assert step.multiplier == pytest.approx(projected)


def test_the_three_terms_by_hand():
    first, second, third = run([1.0, 3.0, 2.0], PIDGains(proportional=0.5, integral=0.1, derivative=2.0))
    assert first.multiplier == pytest.approx(0.5 * 1 + 0.1 * 1)
    assert second.multiplier == pytest.approx(0.5 * 3 + 0.1 * 4 + 2.0 * 2)
    assert third.multiplier == pytest.approx(0.5 * 2 + 0.1 * 6)  # a fall does not count


def test_the_multiplier_leaves_its_maximum_as_soon_as_the_cost_is_below_the_limit():
    *wound, after = run([10.0] * 100 + [-1.0], PIDGains(integral=0.1), maximum=5.0)
    assert wound[-1].multiplier == 5.0
    assert wound[-1].is_saturated
    assert after.multiplier == pytest.approx(4.9)
    assert not after.is_saturated


def test_a_negative_gain_is_refused():
    with pytest.raises(ConfigError, match="negative gain"):
        PIDGains(derivative=-1.0)
