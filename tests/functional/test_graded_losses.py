import math
from itertools import permutations

import pytest
import torch

from poise.functional.graded_losses import plackett_luce_loss, regression_loss, segment_class_loss, segment_rewards
from poise.functional.score_losses import bradley_terry_loss

SCORES = torch.tensor([[1.2, -0.3, 0.5], [0.7, 0.4, -1.0]]).double()
LOGITS = torch.tensor([[[1.0, 0.0, -1.0], [0.3, 2.0, 0.1], [0.0, 0.0, 5.0], [9.0, 9.0, -9.0]]]).double()
CLASSES, ENDS = torch.tensor([[-1, 1, 2, 7]]), torch.tensor([[False, True, True, False]])


def test_a_ranking_of_two_is_a_pair():
    torch.testing.assert_close(plackett_luce_loss(SCORES[:, :2]), bradley_terry_loss(SCORES[:, 0], SCORES[:, 1]))


def test_a_ranking_by_hand():
    # scores 0, log 2, log 3 in this order: 1/6 times 2/5
    scores = torch.tensor([[0.0, math.log(2), math.log(3)]]).double()
    assert plackett_luce_loss(scores).item() == pytest.approx(-math.log(1 / 6 * 2 / 5))


def test_the_probabilities_of_all_rankings_add_up_to_one():
    orders = torch.tensor(list(permutations(range(3))))
    assert plackett_luce_loss(SCORES[0][orders]).neg().exp().sum().item() == pytest.approx(1.0)


def test_responses_that_are_absent_change_neither_loss_nor_gradient():
    short, padded = SCORES.clone().requires_grad_(), torch.cat([SCORES, torch.full((2, 2), 99.0).double()], dim=1)
    padded.requires_grad_()
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    losses = plackett_luce_loss(padded, mask)
    torch.testing.assert_close(losses, plackett_luce_loss(short))
    (slope,) = torch.autograd.grad(losses.sum(), padded)
    (expected,) = torch.autograd.grad(plackett_luce_loss(short).sum(), short)
    torch.testing.assert_close(slope, torch.nn.functional.pad(expected, (0, 2)))


def test_only_differences_within_a_ranking_count():
    torch.testing.assert_close(plackett_luce_loss(SCORES + 5), plackett_luce_loss(SCORES))


def test_far_apart_rankings_do_not_overflow():
    scores = torch.tensor([[-500.0, 0.0, 500.0]], requires_grad=True)
    loss = plackett_luce_loss(scores)
    assert loss.item() == 1500.0
    assert torch.autograd.grad(loss.sum(), scores)[0].isfinite().all()


def test_a_rating_is_fitted_by_itself():
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    losses = regression_loss(scores, torch.tensor([2.0, 1.0]))
    assert losses.tolist() == [0.0, 4.0]
    assert torch.autograd.grad(losses.sum(), scores)[0].tolist() == [0.0, -4.0]


def test_segments_are_classified_at_their_ends_alone():
    first = -LOGITS[0, 1].log_softmax(-1)[1]
    second = -LOGITS[0, 2].log_softmax(-1)[2]
    torch.testing.assert_close(segment_class_loss(LOGITS, CLASSES, ENDS), (first + second)[None] / 2)


def test_a_response_without_segments_loses_nothing():
    assert segment_class_loss(LOGITS, CLASSES, torch.zeros_like(ENDS)).tolist() == [0.0]


def test_padding_changes_no_segment_loss():
    wider = torch.nn.functional.pad(LOGITS, (0, 0, 0, 3), value=7.0)
    padded = segment_class_loss(
        wider, torch.nn.functional.pad(CLASSES, (0, 3), value=-5), torch.nn.functional.pad(ENDS, (0, 3))
    )
    torch.testing.assert_close(padded, segment_class_loss(LOGITS, CLASSES, ENDS))


def test_segment_logits_of_five_hundred_do_not_overflow():
    logits = (500 * LOGITS.float().sign()).requires_grad_()
    losses = segment_class_loss(logits, torch.tensor([[0, 0, 0, 0]]), torch.tensor([[False, False, False, True]]))
    assert losses.item() == pytest.approx(math.log(2))  # two classes at 500
    missed = segment_class_loss(logits, torch.tensor([[2, 0, 0, 2]]), torch.tensor([[True, False, False, True]]))
    assert missed.item() == pytest.approx((1000 + 1000 + math.log(2)) / 2)
    assert torch.autograd.grad(missed.sum(), logits)[0].isfinite().all()


def test_a_segment_is_paid_at_its_end():
    values = torch.tensor([0.0, 1.0, -1.0])
    assert segment_rewards(LOGITS, ENDS, values).tolist() == [[0.0, 1.0, -1.0, 0.0]]


@pytest.mark.parametrize(
    "loss", [plackett_luce_loss, lambda x: regression_loss(x, SCORES + 1), lambda x: plackett_luce_loss(x, SCORES > -1)]
)
def test_gradcheck(loss):
    assert torch.autograd.gradcheck(loss, SCORES.clone().requires_grad_())


def test_gradcheck_of_the_segment_loss():
    assert torch.autograd.gradcheck(lambda x: segment_class_loss(x, CLASSES, ENDS), LOGITS.clone().requires_grad_())
