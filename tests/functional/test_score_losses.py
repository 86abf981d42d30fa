import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import DataError
from poise.functional.score_losses import (
    bradley_terry_loss,
    cost_loss,
    cost_sign_loss,
    divergence_span,
    pair_accuracy,
    score_regulariser,
    sign_accuracy,
    tokenwise_bradley_terry_loss,
    tokenwise_cost_loss,
    tokenwise_score_regulariser,
)

BETTER, WORSE = torch.tensor([1.2, -0.3, 0.5]).double(), torch.tensor([0.7, 0.4, -1.0]).double()
SAFER, UNSAFER = torch.tensor([-1.0, 0.5, 2.0]).double(), torch.tensor([0.3, 1.5, 1.0]).double()
SAFER_IS_SAFE, UNSAFER_IS_SAFE = torch.tensor([True, True, False]), torch.tensor([False, False, False])


def test_equal_scores_lose_log_two():
    torch.testing.assert_close(bradley_terry_loss(BETTER, BETTER), torch.full((3,), math.log(2)).double())


def test_far_apart_scores_neither_overflow_nor_vanish():
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000.0
    assert cost_sign_loss(torch.tensor([1000.0]), torch.tensor([True])).item() == 1000.0


def test_only_differences_of_rewards_count():
    torch.testing.assert_close(bradley_terry_loss(BETTER + 5, WORSE + 5), bradley_terry_loss(BETTER, WORSE))


def test_a_constant_on_all_costs_changes_the_cost_loss():
    flags = SAFER_IS_SAFE, UNSAFER_IS_SAFE
    assert (cost_loss(SAFER + 5, UNSAFER + 5, *flags) != cost_loss(SAFER, UNSAFER, *flags)).all()


def test_flipping_all_signs_changes_the_cost_loss():
    flags = SAFER_IS_SAFE, UNSAFER_IS_SAFE
    assert (cost_loss(SAFER, UNSAFER, *flags) != cost_loss(-SAFER, -UNSAFER, *flags)).all()
    assert (cost_loss(SAFER, UNSAFER, *flags) != cost_loss(SAFER, UNSAFER, *(~flag for flag in flags))).any()


def test_the_cost_loss_is_lowest_on_the_right_side_of_zero():
    # one pair, safer safe and unsafer unsafe: costs (-3, 3) against the same order above zero and the wrong order
    flags = torch.tensor([True]), torch.tensor([False])
    right, shifted, wrong = (
        cost_loss(torch.tensor([s]), torch.tensor([u]), *flags) for s, u in ((-3.0, 3.0), (3.0, 9.0), (3.0, -3.0))
    )
    assert right < shifted < wrong


def test_signs_in_place_of_flags_are_refused():
    with pytest.raises(RuntimeError, match="boolean"):
        cost_sign_loss(SAFER, torch.tensor([1, -1, -1]))


def test_zero_costs_lose_three_times_log_two():
    zero = torch.zeros(1)
    assert cost_loss(zero, zero, torch.tensor([True]), torch.tensor([False])).item() == pytest.approx(3 * math.log(2))


def test_better_and_worse_have_opposite_gradients():
    better, worse = BETTER.clone().requires_grad_(), WORSE.clone().requires_grad_()
    up, down = torch.autograd.grad(bradley_terry_loss(better, worse).mean(), (better, worse))
    assert torch.equal(up, -down)


def test_a_margin_asks_for_a_larger_difference():
    torch.testing.assert_close(bradley_terry_loss(BETTER, WORSE, margin=0.5), bradley_terry_loss(BETTER - 0.5, WORSE))


def test_a_sure_verdict_is_the_hard_label():
    torch.testing.assert_close(
        bradley_terry_loss(BETTER, WORSE, probability=torch.ones(3)), bradley_terry_loss(BETTER, WORSE)
    )


@given(st.floats(0, 1), st.floats(0, 2))
def test_swapping_the_responses_and_the_verdict_changes_nothing(probability, margin):
    p = torch.full((3,), probability, dtype=torch.float64)
    swapped = bradley_terry_loss(WORSE, BETTER, margin, 1 - p)
    torch.testing.assert_close(bradley_terry_loss(BETTER, WORSE, margin, p), swapped)


def test_a_soft_verdict_is_fitted_by_its_own_log_odds():
    p = torch.tensor([0.8], dtype=torch.float64)
    difference = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss(difference, torch.zeros(1).double(), probability=p)
    assert abs(torch.autograd.grad(loss, difference)[0].item()) < 1e-12


@given(st.permutations(range(3)))
def test_the_order_of_the_batch_changes_nothing(order):
    order = list(order)
    tensors = SAFER, UNSAFER, SAFER_IS_SAFE, UNSAFER_IS_SAFE
    assert torch.equal(cost_loss(*(t[order] for t in tensors)), cost_loss(*tensors)[order])


def test_gradcheck_of_the_cost_loss():
    inputs = SAFER.clone().requires_grad_(), UNSAFER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, u: cost_loss(s, u, SAFER_IS_SAFE, UNSAFER_IS_SAFE), inputs)


PROBABILITY, MARGIN = torch.tensor([0.8, 0.5, 0.1]).double(), torch.tensor([0.0, 0.3, 1.0]).double()


@pytest.mark.parametrize(
    "loss",
    [
        bradley_terry_loss,
        lambda b, w: bradley_terry_loss(b, w, MARGIN),
        lambda b, w: bradley_terry_loss(b, w, MARGIN, PROBABILITY),
        score_regulariser,
    ],
    ids=["hard", "margin", "soft", "regulariser"],
)
def test_gradcheck_of_the_reward_losses(loss):
    assert torch.autograd.gradcheck(loss, (BETTER.clone().requires_grad_(), WORSE.clone().requires_grad_()))


def test_soft_verdicts_and_margins_on_scores_of_five_hundred_do_not_overflow():
    better, worse = torch.tensor([-500.0, 500.0], requires_grad=True), torch.tensor([500.0, -500.0], requires_grad=True)
    losses = bradley_terry_loss(better, worse, 1.0, torch.tensor([0.75, 0.75]))
    # the surer side is wrong by 1000, then the other side is; the margin of 1 is asked of either
    assert losses.tolist() == pytest.approx([0.75 * 1001, 0.25 * 1001])
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(losses.sum(), (better, worse)))


def test_the_regulariser_is_one_mean_over_all_scores():
    assert score_regulariser(torch.tensor([1.0, 2.0]), torch.tensor([4.0])).item() == 7.0


def test_ties_and_zeros_are_wrong():
    assert pair_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])) == 0.5
    assert sign_accuracy(torch.zeros(2), torch.tensor([True, False])) == 0
    assert sign_accuracy(torch.tensor([-1.0, 1.0, 1.0, -1.0]), torch.tensor([True, False, True, False])) == 0.5


def test_accuracies_count_exactly_in_low_precision():
    ahead = torch.ones(1000, dtype=torch.bfloat16)
    ahead[0] = -1
    assert pair_accuracy(ahead, torch.zeros_like(ahead)).item() == pytest.approx(0.999, abs=1e-6)


IDS = (
    torch.tensor([[5, 6, 7, 8, 2, 0, 0], [5, 5, 5, 5, 5, 5, 0]]),
    torch.tensor([[5, 6, 9, 8, 4, 2, 0], [5, 5, 5, 0, 0, 0, 0]]),
)
MASKS = tuple(torch.arange(7) < torch.tensor(lengths)[:, None] for lengths in ([5, 6], [6, 3]))


def test_the_span_runs_from_the_first_difference_to_the_end_of_the_longer_response():
    span = divergence_span(*IDS, *MASKS)
    assert [row.nonzero().flatten().tolist() for row in span] == [[2, 3, 4, 5], [3, 4, 5]]


def test_a_pair_of_identical_responses_is_named():
    with pytest.raises(DataError, match=r"pairs \[1\]"):
        divergence_span(IDS[0], torch.stack([IDS[1][0], IDS[0][1]]), *MASKS)


def tokenwise():
    """The three losses [2] of a batch of two pairs, from scores per token and their span."""
    flags = torch.tensor([True, False]), torch.tensor([False, False])
    return (
        tokenwise_bradley_terry_loss,
        lambda first, second, span: tokenwise_cost_loss(first, second, *flags, span),
        tokenwise_score_regulariser,
    )


@pytest.mark.parametrize("loss", tokenwise(), ids=["rewards", "costs", "regulariser"])
def test_padding_and_what_stands_there_change_no_tokenwise_loss(loss):
    span = divergence_span(*IDS, *MASKS)
    first, second = torch.randn(2, 2, 7, dtype=torch.float64)
    ids, masks = ([torch.nn.functional.pad(x, (0, 2)) for x in each] for each in (IDS, MASKS))
    wide = divergence_span(*ids, *masks)
    assert torch.equal(wide, torch.nn.functional.pad(span, (0, 2)))
    padded = [
        torch.nn.functional.pad(x, (0, 2), value=value).requires_grad_()
        for x, value in ((first, 99.0), (second, -99.0))
    ]
    losses = loss(*padded, wide)
    torch.testing.assert_close(losses, loss(first, second, span))
    assert not any(slope[~wide].any() for slope in torch.autograd.grad(losses.sum(), padded))


@pytest.mark.parametrize("loss", tokenwise(), ids=["rewards", "costs", "regulariser"])
def test_gradcheck_of_the_tokenwise_losses(loss):
    span = divergence_span(*IDS, *MASKS)
    scores = torch.randn(2, 2, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x[0], x[1], span), scores)


def test_a_span_by_hand():
    # two tokens that count and one before them; rewards apart by 1 and -2
    first, second = torch.tensor([[9.0, 1.5, 0.0]]).double(), torch.tensor([[-9.0, 0.5, 2.0]]).double()
    span = torch.tensor([[False, True, True]])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(2.0))) / 2
    assert tokenwise_bradley_terry_loss(first, second, span).item() == pytest.approx(expected)
    # as costs of a safe and an unsafe response: the order the other way round, and either on its side of zero
    ordered = (math.log1p(math.exp(1.0)) + math.log1p(math.exp(-2.0))) / 2
    safe = (math.log1p(math.exp(1.5)) + math.log(2)) / 2
    unsafe = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-2.0))) / 2
    found = tokenwise_cost_loss(first, second, torch.tensor([True]), torch.tensor([False]), span)
    assert found.item() == pytest.approx(ordered + safe + unsafe)
    assert tokenwise_score_regulariser(first, second, span).item() == pytest.approx((1.5**2 + 0.5**2 + 2.0**2) / 4)


def test_tokenwise_losses_of_a_span_of_one_token_are_the_losses_of_that_token():
    span = torch.nn.functional.one_hot(torch.tensor([1, 1, 1]), 2).bool()

    def junk_before(x):
        return torch.stack([torch.full_like(x, 99.0), x], dim=1)

    flags = SAFER_IS_SAFE, UNSAFER_IS_SAFE
    rewards, costs = (junk_before(BETTER), junk_before(WORSE)), (junk_before(SAFER), junk_before(UNSAFER))
    torch.testing.assert_close(tokenwise_bradley_terry_loss(*rewards, span), bradley_terry_loss(BETTER, WORSE))
    torch.testing.assert_close(tokenwise_cost_loss(*costs, *flags, span), cost_loss(SAFER, UNSAFER, *flags))
    torch.testing.assert_close(tokenwise_score_regulariser(*rewards, span).mean(), score_regulariser(BETTER, WORSE))
