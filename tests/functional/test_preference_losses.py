import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.functional.implied_rewards import (
    alpha_reward,
    forward_kl_reward,
    jensen_shannon_reward,
    reverse_kl_reward,
)
from poise.functional.preference_losses import (
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    odds_ratio_loss,
    simpo_loss,
    supervised_loss,
)
from poise.functional.preference_targets import (
    conservative_target,
    constrained_target,
    margin_target,
    matching_gamma,
    robust_target,
)

CHOSEN, REJECTED = torch.tensor([-12.0, -3.0]).double(), torch.tensor([-15.5, -2.0]).double()
REF_CHOSEN, REF_REJECTED = torch.tensor([-13.0, -3.5]).double(), torch.tensor([-14.0, -1.0]).double()
SIDES = CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED
LENGTHS = torch.tensor([10.0, 2.0]).double(), torch.tensor([20.0, 5.0]).double()
SURE = torch.ones(2).double()
DIVERGENCES = {
    "reverse KL": reverse_kl_reward,
    "forward KL": forward_kl_reward,
    "Jensen-Shannon": jensen_shannon_reward,
    "alpha 0.3": partial(alpha_reward, alpha=0.3),
}


def test_a_policy_that_equals_its_reference_has_loss_log_two():
    result = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=0.1)
    torch.testing.assert_close(result.losses, torch.full((2,), math.log(2)).double())
    assert not result.chosen_rewards.any()


@pytest.mark.parametrize("reward", DIVERGENCES.values(), ids=DIVERGENCES)
def test_under_every_divergence_a_policy_that_equals_its_reference_has_loss_log_two(reward):
    losses = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=0.7, implied_reward=reward).losses
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)).double())


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_response():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    result = dpo_loss(chosen, rejected, REF_CHOSEN, REF_REJECTED, beta=0.1)
    up, down = torch.autograd.grad(result.losses.sum(), (chosen, rejected))
    assert (up < 0).all()
    torch.testing.assert_close(up, -down)
    # beta * sigmoid(-(r_chosen - r_rejected)) for the first pair, whose margin is .1 - -.15 = .25
    assert up[0].item() == pytest.approx(-0.1 / (1 + math.exp(0.25)))
    assert not result.chosen_rewards.requires_grad


def test_the_reverse_kl_is_plain_dpo():
    found = dpo_loss(*SIDES, beta=0.3, implied_reward=reverse_kl_reward)
    torch.testing.assert_close(found, dpo_loss(*SIDES, beta=0.3))


def test_the_alpha_divergence_runs_from_the_reverse_to_the_forward_kl():
    ratios = torch.tensor([-2.0, -0.1, 0.0, 1.5]).double()
    torch.testing.assert_close(alpha_reward(ratios, alpha=1e-9), reverse_kl_reward(ratios), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha_reward(ratios, alpha=1.0), forward_kl_reward(ratios) + 1)


def test_our_alpha_is_one_minus_the_coefficient_of_trl():
    # f'(t) = (t^(c - 1) - 1) / (c - 1) of TRL with c = 1 - alpha
    ratios, alpha = torch.tensor([-1.2, 0.8]).double(), 0.3
    c = 1 - alpha
    theirs = ((ratios * (c - 1)).exp() - 1) / (c - 1)
    torch.testing.assert_close(alpha_reward(ratios, alpha=alpha), theirs)
    assert not torch.allclose(alpha_reward(ratios, alpha=c), theirs)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5])
def test_an_alpha_outside_of_its_range_is_named(alpha):
    with pytest.raises(ConfigError, match=f"alpha is {alpha}"):
        alpha_reward(CHOSEN, alpha=alpha)


@pytest.mark.parametrize("reward", DIVERGENCES.values(), ids=DIVERGENCES)
def test_implied_rewards_rise_with_the_log_ratio(reward):
    values = reward(torch.linspace(-6, 6, 50).double())
    assert (values.diff() > 0).all()


@pytest.mark.parametrize("reward", DIVERGENCES.values(), ids=DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_divergence_overflows_at_five_hundred_nats(reward, dtype):
    ratios = torch.tensor([-500.0, 500.0], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    losses = dpo_loss(ratios, -ratios, zero, zero, beta=0.5, implied_reward=reward).losses
    (slope,) = torch.autograd.grad(losses.sum(), ratios)
    assert losses.isfinite().all()
    assert slope.isfinite().all()


def test_no_other_loss_overflows_at_five_hundred_nats():
    extreme = torch.tensor([-500.0, 500.0], requires_grad=True)
    zero, one = torch.zeros(2), torch.ones(2)
    losses = [
        ipo_loss(extreme, -extreme, zero, zero, beta=0.1).losses,
        simpo_loss(extreme, -extreme, one, one, beta=2.0, margin=1.0).losses,
        odds_ratio_loss(extreme, -extreme, one, one, beta=1.0).losses,
        kto_loss(extreme, zero, torch.tensor([True, True]), 0.0, beta=1.0).losses,
        kto_loss(extreme, zero, torch.tensor([False, False]), 500.0, beta=1.0).losses,
    ]
    (slope,) = torch.autograd.grad(torch.cat(losses).sum(), extreme)
    assert torch.cat(losses).isfinite().all()
    assert slope.isfinite().all()


def test_a_margin_asks_for_a_larger_difference():
    # beta 0.1: rewards .1 and -.15, so h = .25; the offset of .25 brings it back to log 2
    losses = dpo_loss(*SIDES, beta=0.1, margin=torch.tensor([0.25, 0.0]).double()).losses
    assert losses[0].item() == pytest.approx(math.log(2))
    torch.testing.assert_close(losses[1], dpo_loss(*SIDES, beta=0.1).losses[1])


def test_a_soft_label_mixes_both_orders():
    p = torch.tensor([0.8, 0.3]).double()
    swapped = dpo_loss(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, beta=0.1).losses
    mixed = p * dpo_loss(*SIDES, beta=0.1).losses + (1 - p) * swapped
    torch.testing.assert_close(dpo_loss(*SIDES, beta=0.1, probability=p).losses, mixed)


@pytest.mark.parametrize("target", [conservative_target, robust_target])
def test_without_flipped_labels_conservative_and_robust_dpo_are_dpo(target):
    p = target(SURE, flip_rate=0.0)
    torch.testing.assert_close(dpo_loss(*SIDES, beta=0.1, probability=p), dpo_loss(*SIDES, beta=0.1))


def test_the_conservative_loss_by_hand():
    # h = .25 and p = .9: .9 * softplus(-.25) + .1 * softplus(.25)
    p = conservative_target(SURE, flip_rate=0.1)
    expected = 0.9 * math.log1p(math.exp(-0.25)) + 0.1 * math.log1p(math.exp(0.25))
    assert dpo_loss(*SIDES, beta=0.1, probability=p).losses[0].item() == pytest.approx(expected)


def test_the_robust_loss_of_noisy_labels_is_the_loss_of_clean_ones_in_expectation():
    rate = 0.2
    kept, flipped = (
        dpo_loss(*SIDES, beta=0.1, probability=robust_target(p * SURE, flip_rate=rate)).losses for p in (1.0, 0.0)
    )
    torch.testing.assert_close((1 - rate) * kept + rate * flipped, dpo_loss(*SIDES, beta=0.1).losses)


@pytest.mark.parametrize("rate", [-0.1, 0.5, 0.9])
def test_a_flip_rate_that_makes_labels_worthless_is_named(rate):
    with pytest.raises(ConfigError, match=f"flip_rate is {rate}"):
        robust_target(SURE, flip_rate=rate)


def test_mmpo_with_a_large_gamma_is_dpo_and_with_a_small_one_pulls_together():
    margin = torch.tensor([1.0, 0.5]).double()
    hard = dpo_loss(*SIDES, beta=0.1, probability=margin_target(margin, gamma=1e4)).losses
    torch.testing.assert_close(hard, dpo_loss(*SIDES, beta=0.1).losses)
    torch.testing.assert_close(margin_target(margin, gamma=0.0), 0.5 * SURE)


def test_mmpo_is_lowest_where_the_difference_of_rewards_matches_the_margin():
    margin, gamma, beta = torch.tensor([2.0]).double(), 0.7, 0.1
    zero = torch.zeros(1).double()
    at = (gamma * margin / beta).requires_grad_()
    losses = dpo_loss(at, zero, zero, zero, beta=beta, probability=margin_target(margin, gamma=gamma)).losses
    assert abs(torch.autograd.grad(losses.sum(), at)[0].item()) < 1e-12


def test_the_matching_gamma_gives_the_typical_margin_its_probability():
    gamma = matching_gamma(3.0, probability=0.8)
    assert margin_target(torch.tensor(3.0), gamma=gamma).item() == pytest.approx(0.8)
    with pytest.raises(ConfigError, match=r"typical margin is 0\.0"):
        matching_gamma(0.0)
    with pytest.raises(ConfigError, match=r"probability is 0\.5"):
        matching_gamma(1.0, probability=0.5)


def test_ipo_is_lowest_at_a_finite_difference():
    for p in (1.0, 0.7):
        target = (2 * p - 1) / (2 * 0.1)
        difference = torch.tensor([target], requires_grad=True, dtype=torch.float64)
        zero = torch.zeros(1).double()
        losses = ipo_loss(difference, zero, zero, zero, beta=0.1, probability=p * zero.exp()).losses
        assert abs(torch.autograd.grad(losses.sum(), difference)[0].item()) < 1e-12
    # log-ratios 1 and -1.5: (2.5 - 5)^2
    assert ipo_loss(*SIDES, beta=0.1).losses[0].item() == pytest.approx(6.25)


def test_simpo_by_hand():
    # 2 * -12 / 10 = -2.4 against 2 * -15.5 / 20 = -1.55, margin .5
    result = simpo_loss(CHOSEN, REJECTED, *LENGTHS, beta=2.0, margin=0.5)
    assert result.chosen_rewards[0].item() == pytest.approx(-2.4)
    assert result.losses[0].item() == pytest.approx(math.log1p(math.exp(2.4 - 1.55 + 0.5)))


def test_orpo_by_hand():
    # tokens of probability 1/2 and 1/4 on average: odds 1 and 1/3
    lengths = torch.tensor([3.0]).double(), torch.tensor([2.0]).double()
    chosen, rejected = lengths[0] * math.log(0.5), lengths[1] * math.log(0.25)
    ratio = odds_ratio_loss(chosen, rejected, *lengths, beta=0.2)
    assert ratio.chosen_rewards.item() == pytest.approx(0.0)
    assert ratio.rejected_rewards.item() == pytest.approx(-math.log(3))
    whole = ratio.losses + supervised_loss(chosen, lengths[0])
    assert whole.item() == pytest.approx(math.log(2) + 0.2 * math.log(1 + 1 / 3))


def test_kto_by_hand():
    # log-ratios 1 and -1.5, baseline .5, beta 2: the desirable one is 1 above, the other 2 below
    policy, ref = torch.tensor([-12.0, -15.5]).double(), torch.tensor([-13.0, -14.0]).double()
    result = kto_loss(policy, ref, torch.tensor([True, False]), 0.5, beta=2.0, undesirable_weight=3.0)
    assert result.losses.tolist() == pytest.approx([1 / (1 + math.exp(1.0)), 3 / (1 + math.exp(4.0))])
    assert result.rewards.tolist() == pytest.approx([2.0, -3.0])


def test_the_weights_of_kto_are_as_exact_as_its_log_probabilities():
    policy, ref = torch.zeros(2).double(), torch.zeros(2).double()
    result = kto_loss(policy, ref, ONE_BY_ONE, 0.0, beta=1.0, desirable_weight=1.3, undesirable_weight=0.7)
    assert result.losses.tolist() == pytest.approx([0.65, 0.35], abs=1e-15)  # half of each weight


def test_the_baseline_of_kto_is_not_negative_and_has_no_gradient():
    policy = torch.tensor([-10.0, -10.0], requires_grad=True)
    assert kto_baseline(policy, torch.tensor([-9.0, -9.5])) == 0
    assert kto_baseline(policy, torch.tensor([-12.0, -11.0])) == 1.5
    assert not kto_baseline(policy, torch.tensor([-12.0, -11.0])).requires_grad


def test_the_price_of_cost_turns_a_pair():
    reward, cost = torch.tensor([1.0]), torch.tensor([0.5])
    free, even, dear = (constrained_target(reward, cost, price).item() for price in (0.0, 2.0, 5.0))
    assert free == pytest.approx(1 / (1 + math.exp(-1)))
    assert even == 0.5
    assert dear < 0.5


@given(st.permutations(range(2)), st.floats(0, 1))
def test_the_order_of_the_batch_changes_nothing(order, probability):
    order = list(order)
    p = torch.tensor([probability, 0.5]).double()
    tensors = (*SIDES, p)
    moved = [x[order] for x in tensors]
    for loss in (dpo_loss, ipo_loss):
        here = loss(*tensors[:4], beta=0.3, probability=p).losses[order]
        assert torch.equal(loss(*moved[:4], beta=0.3, probability=moved[4]).losses, here)


def by_pair(rows):
    """The losses of some of the pairs under every method."""
    c, r, ref_c, ref_r = (x[rows] for x in SIDES)
    lengths, p = tuple(x[rows] for x in LENGTHS), torch.tensor([0.9, 0.3]).double()[rows]
    return [
        dpo_loss(c, r, ref_c, ref_r, beta=0.3, margin=0.2, probability=p).losses,
        ipo_loss(c, r, ref_c, ref_r, beta=0.3, probability=p).losses,
        simpo_loss(c, r, *lengths, beta=2.0, margin=0.5, probability=p).losses,
        odds_ratio_loss(c, r, *lengths, beta=0.5, probability=p).losses,
        supervised_loss(c, lengths[0]),
        kto_loss(c, ref_c, ONE_BY_ONE[rows], 0.4, beta=0.3, undesirable_weight=2.0).losses,
    ]


@pytest.mark.parametrize("rows", [[0], [1], [1, 0]])
def test_a_pair_has_the_same_loss_alone_as_in_any_batch(rows):
    for found, whole in zip(by_pair(rows), by_pair([0, 1]), strict=True):
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-15)


@pytest.mark.parametrize("extreme", [500.0, -500.0])
def test_targets_of_five_hundred_are_certain_and_no_more(extreme):
    far = torch.tensor([extreme], requires_grad=True)
    targets = [margin_target(far, gamma=2.0), constrained_target(far, -far, 3.0), constrained_target(0 * far, far, 0.0)]
    assert [target.item() for target in targets] == [float(extreme > 0), float(extreme > 0), 0.5]
    assert torch.autograd.grad(sum(targets), far)[0].isfinite().all()


ONE_BY_ONE = torch.tensor([True, False])
LOSSES = {
    "dpo": lambda c, r: dpo_loss(c, r, REF_CHOSEN, REF_REJECTED, beta=0.5).losses,
    "soft": lambda c, r: dpo_loss(c, r, REF_CHOSEN, REF_REJECTED, beta=0.5, margin=0.3, probability=0.7 * SURE).losses,
    "ipo": lambda c, r: ipo_loss(c, r, REF_CHOSEN, REF_REJECTED, beta=0.5, probability=0.7 * SURE).losses,
    "simpo": lambda c, r: simpo_loss(c, r, *LENGTHS, beta=2.0, margin=0.5).losses,
    "orpo": lambda c, r: odds_ratio_loss(c, r, *LENGTHS, beta=0.5).losses + supervised_loss(c, LENGTHS[0]),
    "kto": lambda c, r: kto_loss(c, REF_CHOSEN, ONE_BY_ONE, 0.5, beta=0.5).losses + 0 * r,
} | {
    name: lambda c, r, f=f: dpo_loss(c, r, REF_CHOSEN, REF_REJECTED, beta=0.5, implied_reward=f).losses
    for name, f in DIVERGENCES.items()
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck(loss):
    inputs = [x.clone().requires_grad_() for x in (CHOSEN, REJECTED)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", [LOSSES[name] for name in ("dpo", "simpo", "orpo", *DIVERGENCES)])
def test_every_loss_of_pairs_raises_the_chosen_and_lowers_the_rejected_response(loss):
    inputs = [x.clone().requires_grad_() for x in (CHOSEN, REJECTED)]
    up, down = torch.autograd.grad(loss(*inputs).sum(), inputs)
    assert (up < 0).all()
    assert (down > 0).all()
