"""Inputs at the ends of what may come: finite values, gradients of the right sign, and 0 where there is nothing."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.functional.advantages import (
    gae,
    greedy_baseline,
    group_centred,
    group_normalised,
    leave_one_out,
    return_to_go,
    zero_variance_shaping,
)
from poise.functional.bounded import bounded_exp, bounded_expm1
from poise.functional.constraints import LARGEST_MULTIPLIER, lagrangian_mix, lagrangian_mix_channels
from poise.functional.divergences import kl_k1, kl_k2, kl_k3
from poise.functional.graded_losses import plackett_luce_loss, regression_loss, segment_class_loss
from poise.functional.group_invariance import (
    better_group,
    group_inference_loss,
    group_invariant_weights,
    soft_group_means,
    variance_between_groups,
)
from poise.functional.groups import batch_deviation, in_varied_group, population_deviation, sample_deviation
from poise.functional.implied_rewards import (
    alpha_reward,
    forward_kl_reward,
    jensen_shannon_reward,
    reverse_kl_reward,
)
from poise.functional.importance import logprob_gap, truncated_importance_weights
from poise.functional.masked import masked_mean, masked_sum, scale_to_unit_variance, sequence_mean, standardise
from poise.functional.policy_losses import (
    clip_fraction,
    clipped_surrogate,
    detached_ratio,
    dual_clipped_surrogate,
    reinforce,
    sequence_surrogate,
)
from poise.functional.preference_losses import (
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    odds_ratio_loss,
    simpo_loss,
)
from poise.functional.preference_targets import (
    conservative_target,
    constrained_target,
    margin_target,
    robust_target,
    signed_log1p,
)
from poise.functional.rewards import (
    RunningMoments,
    affine,
    ema_moments,
    on_last_token,
    scale,
    shape_rewards,
    update_moments,
)
from poise.functional.risk import (
    conditional_value_at_risk,
    evenly_of_rest,
    harm_probability,
    tail_costs,
    worst,
    worst_count,
)
from poise.functional.score_losses import bradley_terry_loss, cost_loss, cost_sign_loss, score_regulariser
from poise.functional.value_losses import clipped_value_loss, squared_value_loss

NATS = (-1e4, -500.0, -104.0, -88.0, -61.0, -60.0, -30.0, -1.0, -1e-3, 0.0)
DIFFERENCES = (*NATS, *(-value for value in NATS[:-1]))
SURROGATES = {
    "clipped": clipped_surrogate,
    "asymmetric": partial(clipped_surrogate, clip=0.2, clip_high=0.28),
    "dual": dual_clipped_surrogate,
    "sequence": partial(sequence_surrogate, clip=3e-4, clip_high=4e-4),
}
REWARDS = {
    "reverse": reverse_kl_reward,
    "forward": forward_kl_reward,
    "jensen-shannon": jensen_shannon_reward,
    "alpha": partial(alpha_reward, alpha=0.5),
    "small alpha": partial(alpha_reward, alpha=1e-3),
    "alpha 1": partial(alpha_reward, alpha=1.0),
}
DEVIATIONS = (sample_deviation, population_deviation, batch_deviation)
SAME = torch.tensor([0.1, 0.1, 0.1, 7.0])
GROUP = torch.tensor([0, 0, 0, 1])


def slopes(function, *values):
    """Gradients of a function of numbers, each as a tensor [1], after checking that they and the value are finite."""
    inputs = [torch.tensor([value], requires_grad=True) for value in values]
    found = function(*inputs)
    assert found.isfinite().all(), found
    gradients = torch.autograd.grad(found.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients), gradients
    return [gradient.item() for gradient in gradients]


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("name", SURROGATES)
def test_a_policy_loss_never_pushes_the_wrong_way_and_pushes_wherever_it_is_not_clipped(name, difference, advantage):
    def loss(logprobs):
        mask = torch.ones(1, 1, dtype=torch.bool)
        return SURROGATES[name](logprobs[None], torch.zeros(1, 1), torch.full((1, 1), advantage), mask)

    (slope,) = slopes(loss, difference)
    assert slope * advantage <= 0
    below, above = difference <= 0, difference >= 0
    if advantage > 0 and below and difference > -80:  # exp(-104) is 0 in float32
        assert slope < 0
    if advantage < 0 and above and name != "dual":
        assert slope > 0


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_losses_whose_ratio_carries_no_gradient_are_finite_too(difference):
    for loss in (detached_ratio, reinforce):
        (slope,) = slopes(lambda x, f=loss: f(x[None], torch.zeros(1, 1), torch.ones(1, 1)), difference)
        assert slope <= 0


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_estimators_of_the_kl_push_the_policy_back_to_its_reference(difference):
    assert slopes(lambda x: kl_k1(x, torch.zeros(1)), difference) == [1.0]
    for estimator in (kl_k2, kl_k3):
        (slope,) = slopes(lambda x, f=estimator: f(x, torch.zeros(1)), difference)
        assert math.copysign(1.0, slope) == math.copysign(1.0, difference) or difference == slope == 0
        assert (slope != 0) is (difference != 0)


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("name", REWARDS)
def test_implied_rewards_rise_with_the_log_ratio_however_large_it_is(name, difference):
    (slope,) = slopes(REWARDS[name], difference)
    assert slope >= 0
    if difference <= 1:  # a reward with a ceiling does not rise for ever in float32
        assert slope > 0


@pytest.mark.parametrize("x", [59.0, 59.999, 60.001, 61.0, 1000.0])
def test_bounded_exponentials_have_the_gradient_that_their_values_say(x):
    for function in (bounded_exp, bounded_expm1):
        scaled = partial(lambda f, z: f(z) / math.exp(60), function)
        assert torch.autograd.gradcheck(scaled, torch.tensor([x], dtype=torch.float64, requires_grad=True))


@given(st.floats(-1e11, 1e11), st.floats(-1e11, 1e11))
def test_bounded_exponentials_rise_and_equal_the_plain_ones_up_to_the_bound(a, b):
    low, high = (torch.tensor(value, dtype=torch.float64) for value in sorted((a, b)))
    assert bounded_exp(low) <= bounded_exp(high) < math.inf
    if high <= 60:
        assert torch.equal(bounded_exp(high), high.exp())
        assert torch.equal(bounded_expm1(high), high.expm1())


@pytest.mark.parametrize("margin", [None, -1e4, -2.0, 0.0, 2.0, 1e4])
@pytest.mark.parametrize("difference", [-1e4, -500.0, -70.0, -1.0, 0.0, 1.0, 70.0, 500.0, 1e4])
@pytest.mark.parametrize("name", REWARDS)
def test_dpo_raises_the_chosen_and_lowers_the_rejected_under_every_divergence_and_margin(name, difference, margin):
    zero = torch.zeros(1)

    def loss(chosen, rejected):
        return dpo_loss(chosen, rejected, zero, zero, beta=0.1, implied_reward=REWARDS[name], margin=margin).losses

    chosen, rejected = slopes(loss, difference, 0.0)
    assert chosen <= 0 <= rejected
    chosen, rejected = slopes(loss, 0.0, difference)
    assert chosen <= 0 <= rejected


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0, -0.125, 1.125])
def test_other_preference_losses_are_finite_at_any_distance_and_any_target(difference, probability):
    zero, p, beta = torch.zeros(1), torch.tensor([probability]), 0.1
    slopes(lambda a, b: dpo_loss(a, b, zero, zero, beta=beta, probability=p).losses, difference, 0.0)
    slopes(lambda a, b: ipo_loss(a, b, zero, zero, beta=beta, probability=p).losses, difference, 0.0)
    for desirable in (True, False):
        (slope,) = slopes(
            lambda a, d=desirable: kto_loss(a, zero, torch.tensor([d]), 0.0, beta=beta).losses, difference
        )
        assert slope <= 0 if desirable else slope >= 0


@pytest.mark.parametrize("sides", [(0.0, -5.0), (-5.0, 0.0), (0.0, 0.0), (-1e-7, -1e-9), (-1e4, 0.0), (0.0, -1e4)])
def test_losses_without_a_reference_push_both_sides_also_where_tokens_are_certain(sides):
    tokens = torch.ones(1)
    for loss in (partial(odds_ratio_loss, beta=1.0), partial(simpo_loss, beta=2.0, margin=0.5)):
        chosen, rejected = slopes(lambda a, b, f=loss: f(a, b, tokens, tokens).losses, *sides)
        assert chosen <= 0 <= rejected
        if sides[0] <= sides[1]:  # the pair is not in order
            assert chosen < 0 < rejected


@pytest.mark.parametrize("a", [-1e30, -1e4, 0.0, 1e4, 1e30])
@pytest.mark.parametrize("b", [-1e30, -1e4, 0.0, 1e4, 1e30])
def test_losses_of_scores_are_finite_however_far_scores_are_apart(a, b):
    yes, no = torch.tensor([True]), torch.tensor([False])
    for margin in (None, -1.0, 1e4):
        better, worse = slopes(lambda x, y, m=margin: bradley_terry_loss(x, y, m), a, b)
        assert better <= 0 <= worse
    for probability in (0.0, 0.5, 1.0):
        slopes(lambda x, y, p=probability: bradley_terry_loss(x, y, None, torch.tensor([p])), a, b)
    assert slopes(lambda x: cost_sign_loss(x, yes), a)[0] >= 0
    assert slopes(lambda x: cost_sign_loss(x, no), a)[0] <= 0
    slopes(lambda x, y: cost_loss(x, y, yes, no), a, b)
    slopes(lambda x, y: plackett_luce_loss(torch.stack([x, y], -1)), a, b)


def test_what_stands_where_no_response_is_has_no_influence_on_a_ranking():
    scores = torch.tensor([[1.0, 2.0, math.nan]], requires_grad=True)
    loss = plackett_luce_loss(scores, torch.tensor([[True, True, False]]))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), plackett_luce_loss(torch.tensor([[1.0, 2.0]])))
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 2] == 0


@pytest.mark.parametrize("difference", [-1e30, -1e4, 0.0, 1e4, 1e30])
def test_targets_are_probabilities_for_margins_of_any_sign(difference):
    margin = torch.tensor([difference])
    for target in (margin_target(margin, gamma=3.0), constrained_target(margin, -margin, 2.0)):
        assert 0 <= target.item() <= 1
    for multiplier in (0.0, LARGEST_MULTIPLIER):
        assert constrained_target(torch.zeros(1), margin.clamp(-1e4, 1e4), multiplier).isfinite().all()
    assert signed_log1p(margin).isfinite().all()
    assert signed_log1p(margin).sign() == margin.sign()
    for target in (conservative_target, robust_target):
        assert target(torch.tensor([0.0, 1.0]), flip_rate=0.49).isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 1e-4])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_samples_with_the_same_return_have_no_advantage_with_any_epsilon(deviation, epsilon):
    found = group_normalised(SAME, GROUP, deviation=deviation, epsilon=epsilon)
    assert found.tolist() == [0.0, 0.0, 0.0, 0.0]
    one = group_normalised(torch.tensor([3.0]), torch.tensor([0]), deviation=deviation, epsilon=epsilon)
    assert one.tolist() == [0.0]
    assert group_normalised(torch.zeros(0), torch.zeros(0, dtype=torch.long), epsilon=epsilon).shape == (0,)


@given(st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=1, max_size=12), st.sampled_from([0.0, 1e-4]))
def test_advantages_within_groups_are_finite_and_never_of_the_wrong_sign(values, epsilon):
    returns, group = torch.tensor(values), torch.arange(len(values)) // 3
    for deviation in DEVIATIONS:
        found = group_normalised(returns, group, deviation=deviation, epsilon=epsilon)
        assert found.isfinite().all()
        assert (found * group_centred(returns, group) >= 0).all()
        assert not found[~in_varied_group(returns, group)].any()
    assert leave_one_out(returns, group).isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-20])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_equal_entries_and_none_become_zero_when_they_are_standardised(value, count, epsilon):
    x, mask = torch.full((4,), value), torch.arange(4) < count
    for correction in (0, 1):
        found = standardise(x, mask, correction=correction, epsilon=epsilon)
        assert found.tolist() == [0.0] * 4
        kept = scale_to_unit_variance(x, mask, correction=correction, epsilon=epsilon)
        torch.testing.assert_close(kept, torch.where(mask, x, 0.0))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3)])
def test_of_nothing_sums_means_and_fractions_are_zero(shape):
    x, mask = torch.full(shape, math.nan), torch.zeros(shape, dtype=torch.bool)
    for found in (masked_sum(x, mask), masked_mean(x, mask), standardise(x, mask).sum(), logprob_gap(x, x, mask)):
        assert found == 0
    if len(shape) == 2:
        assert sequence_mean(x, mask) == 0
        assert clip_fraction(x, x, mask) == 0
        assert not truncated_importance_weights(x, x, mask).any()
    assert kto_baseline(torch.zeros(0), torch.zeros(0)) == 0
    assert score_regulariser(torch.zeros(0)) == 0


def test_an_empty_response_among_others_changes_nothing_and_stays_finite():
    mask = torch.tensor([[True, True], [False, False]])
    ones, scores = torch.ones(2, 2), torch.tensor([1.0, 2.0])
    for found in (
        on_last_token(scores, mask),
        return_to_go(ones, mask),
        *gae(ones, ones, mask),
        greedy_baseline(ones, scores, mask),
        zero_variance_shaping(torch.ones(2), torch.tensor([0, 0]), ones, mask),
        shape_rewards(scores, ones, -ones, mask, kl_coef=0.1, sign=1),
    ):
        assert found.isfinite().all()
        assert not found[1].any()
    logprobs = ones.clone().requires_grad_()
    sequence_surrogate(logprobs, ones, ones, mask).sum().backward()
    assert logprobs.grad.isfinite().all()
    assert segment_class_loss(torch.zeros(2, 2, 3), torch.zeros(2, 2, dtype=torch.long), mask).isfinite().all()


def test_what_is_right_of_equal_samples_can_be_said_apart_from_their_scores():
    entropies, mask, group = torch.tensor([[0.5, 1.0]] * 2), torch.ones(2, 2).bool(), torch.tensor([0, 0])
    costs = torch.zeros(2)  # not unsafe
    right = zero_variance_shaping(-costs, group, entropies, mask, alpha=1.0, is_right=costs <= 0)
    torch.testing.assert_close(right, entropies)
    assert (zero_variance_shaping(-costs, group, entropies, mask) <= 0).all()


@pytest.mark.parametrize("multiplier", [0.0, 1.0, 1e30, 1e300, math.inf])
def test_advantages_are_mixed_to_finite_ones_under_any_multiplier(multiplier):
    reward, cost = torch.tensor([3.0, -2.0]), torch.tensor([1e4, -1e4])
    found = lagrangian_mix(reward, cost, multiplier)
    of_tensor = lagrangian_mix(reward, cost, torch.tensor(multiplier))
    assert found.isfinite().all()
    torch.testing.assert_close(found, of_tensor)
    if multiplier >= 1e30:
        torch.testing.assert_close(found, -cost)
    both = lagrangian_mix_channels(reward, {"a": cost, "b": -cost}, {"a": multiplier, "b": multiplier})
    assert both.isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
@pytest.mark.parametrize("variance", [0.0, torch.tensor(0.0)])
def test_scores_without_a_spread_seen_stay_in_their_unit(variance, epsilon):
    moments = RunningMoments(mean=2.0, variance=variance, count=3)
    expected = 1.0 if epsilon == 0 else 1e8
    for function, value in ((affine, 3.0), (scale, 1.0)):
        torch.testing.assert_close(function(torch.tensor([value]), moments, epsilon=epsilon), torch.tensor([expected]))
    for update in (update_moments, ema_moments):
        assert update(RunningMoments(), torch.zeros(0)) == RunningMoments()


@pytest.mark.parametrize("value", [-1e15, -1.0, 0.0, 1.0, 1e15])
def test_values_of_a_critic_and_ratings_are_finite_at_any_size(value):
    zero = torch.zeros(1)
    for loss in (partial(squared_value_loss, returns=zero), partial(regression_loss, ratings=zero)):
        (slope,) = slopes(loss, value)
        assert slope * value >= 0
    slopes(lambda x: clipped_value_loss(x, zero, zero), value)


@pytest.mark.parametrize("membership", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("returns", [[0.1, 0.1, 0.1], [1.0, 2.0, 3.0], [-1e6, 0.0, 1e6]])
def test_inferred_groups_may_be_empty_or_equal(membership, returns):
    values, members = torch.tensor(returns), torch.full((3,), membership)
    found = [*soft_group_means(values, members), variance_between_groups(values, members)]
    found += [group_invariant_weights(values, members, penalty=0.1), better_group(values, members)]
    assert all(each.isfinite().all() for each in found)
    logits = torch.full((3,), {0.0: -500.0, 0.5: 0.0, 1.0: 500.0}[membership], requires_grad=True)
    group_inference_loss(logits, values).backward()
    assert logits.grad.isfinite().all()


@given(st.integers(0, 100), st.integers(0, 130))
def test_a_share_of_the_rest_counts_exactly(hundredths, number):
    share = hundredths / 100
    found = evenly_of_rest(torch.arange(float(number)), torch.zeros(number, dtype=torch.bool), share)
    assert int(found.sum()) == math.floor(Fraction(hundredths, 100) * number)


def test_29_hundredths_of_100_are_29():
    assert int(evenly_of_rest(torch.arange(100.0), torch.zeros(100, dtype=torch.bool), 0.29).sum()) == 29


@given(st.integers(1, 100), st.integers(1, 130))
def test_the_worst_share_counts_exactly_and_its_tail_is_finite(hundredths, number):
    assert worst_count(hundredths / 100, number) == max(1, math.ceil(Fraction(hundredths, 100) * number))
    equal = torch.zeros(number)
    assert worst(equal, 1).all()
    assert tail_costs(equal, equal, hundredths / 100).tolist() == [0.0] * number
    assert conditional_value_at_risk(equal, hundredths / 100) == 0


@pytest.mark.parametrize("cost", [-1e30, -500.0, 0.0, 500.0, 1e30])
def test_probabilities_of_harm_are_probabilities(cost):
    (slope,) = slopes(partial(harm_probability, slope=2.0, offset=-1.0), cost)
    assert slope >= 0
    assert 0 <= harm_probability(torch.tensor(cost), 2.0, -1.0) <= 1
