import pytest
import torch

from poise.functional.value_losses import clipped_value_loss, squared_value_loss

VALUES = torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64)
RETURNS = torch.tensor([[1.0, 1.5, 9.0]], dtype=torch.float64)


def test_within_the_clip_the_loss_is_half_the_squared_error():
    assert torch.equal(clipped_value_loss(VALUES, VALUES, RETURNS), squared_value_loss(VALUES, RETURNS))
    assert squared_value_loss(VALUES, RETURNS).tolist() == [[0.125, 0.125, 18.0]]


def test_beyond_the_clip_the_larger_error_counts_and_no_gradient_pulls_further_away():
    # the old value is 0, so 8 is held at 5; the held error (5 - 9)^2 is the larger
    values = torch.tensor([[8.0]], requires_grad=True)
    loss = clipped_value_loss(values, torch.zeros(1, 1), torch.tensor([[9.0]]))
    assert loss.item() == 8.0
    assert torch.autograd.grad(loss, values)[0].item() == 0.0


def test_beyond_the_clip_on_the_wrong_side_the_value_is_free_to_return():
    values = torch.tensor([[8.0]], requires_grad=True)
    loss = clipped_value_loss(values, torch.zeros(1, 1), torch.tensor([[1.0]]))
    assert loss.item() == 24.5
    assert torch.autograd.grad(loss, values)[0].item() == 7.0


@pytest.mark.parametrize(
    "loss", [lambda v: clipped_value_loss(v, VALUES - 1.4, RETURNS, clip=1.5), lambda v: squared_value_loss(v, RETURNS)]
)
def test_the_gradient_is_that_of_the_value(loss):
    assert torch.autograd.gradcheck(loss, VALUES.clone().requires_grad_())


def test_values_of_five_hundred_leave_finite_numbers():
    values = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = clipped_value_loss(values, torch.zeros(1, 2), torch.tensor([[-500.0, 500.0]]))
    assert loss.tolist() == [[500_000.0, 500_000.0]]
    assert torch.autograd.grad(loss.sum(), values)[0].tolist() == [[1000.0, -1000.0]]


def test_a_token_has_the_same_loss_alone_as_in_any_batch():
    whole = clipped_value_loss(VALUES, VALUES - 2.0, RETURNS, clip=1.5)
    for column in range(3):
        one = [x[:, column : column + 1] for x in (VALUES, VALUES - 2.0, RETURNS)]
        assert torch.equal(clipped_value_loss(*one, clip=1.5), whole[:, column : column + 1])
