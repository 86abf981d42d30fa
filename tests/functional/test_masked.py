import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.functional.masked import (
    last_index,
    length_mask,
    masked_mean,
    masked_sum,
    scale_to_unit_variance,
    sequence_mean,
    standardise,
)

FUNCTIONS = (masked_sum, masked_mean, sequence_mean, standardise, scale_to_unit_variance)
X = torch.tensor([[1.0, 2.0, 6.0], [4.0, 8.0, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("junk", [99.0, float("nan"), float("inf")])
def test_what_stands_on_padding_changes_neither_value_nor_gradient(function, junk):
    results = []
    for filler in (0.0, junk):
        x = X.masked_fill(~MASK, filler).requires_grad_()
        result = function(x, MASK)
        (gradient,) = torch.autograd.grad(result.pow(2).sum(), x)
        assert not gradient[~MASK].any()
        results.append((result, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_means_by_hand():
    assert masked_sum(X, MASK) == 21
    assert masked_mean(X, MASK) == 21 / 5
    assert sequence_mean(X, MASK) == (9 / 3 + 12 / 2) / 2
    assert masked_mean(X, MASK, dim=1).tolist() == [3.0, 6.0]
    assert masked_sum(X, MASK, dim=0).tolist() == [5.0, 10.0, 6.0]


def test_a_number_mask_means_the_same_as_a_bool_mask():
    assert masked_mean(X, MASK.long()) == masked_mean(X, MASK)
    assert last_index(MASK.float()).tolist() == [2, 1]


def test_an_empty_row_does_not_count_as_a_sequence():
    x, mask = torch.cat([X, X[:1]]), torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    assert sequence_mean(x, mask) == sequence_mean(X, MASK)


def test_an_empty_mask_gives_zero_and_not_nan():
    for function in (masked_sum, masked_mean, sequence_mean):
        assert function(X, torch.zeros_like(MASK)) == 0


def test_standardise_gives_mean_zero_and_variance_one():
    result = standardise(X, MASK)
    assert result[MASK].mean().abs() < 1e-12
    assert abs(result[MASK].var(correction=0) - 1) < 1e-8
    assert result[~MASK].tolist() == [0.0]


def test_standardise_with_correction_divides_by_the_unbiased_deviation():
    torch.testing.assert_close(standardise(X, MASK, correction=1)[MASK].var(), torch.ones((), dtype=X.dtype))


def test_scale_to_unit_variance_keeps_the_mean():
    result = scale_to_unit_variance(X, MASK)
    torch.testing.assert_close(result[MASK].mean(), X[MASK].mean())
    assert abs(result[MASK].var(correction=0) - 1) < 1e-8
    assert result[~MASK].tolist() == [0.0]


def test_equal_entries_standardise_to_zero():
    assert standardise(torch.full((2, 3), 0.1), MASK).abs().max() < 1e-3


@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5))
def test_last_index_finds_the_end_whatever_the_padding(left, real, right):
    mask = torch.tensor([[False] * left + [True] * real + [False] * right])
    assert last_index(mask).item() == left + real - 1


def test_last_index_finds_the_end_along_the_last_of_any_dimensions():
    assert last_index(MASK[1]).item() == 1
    assert last_index(torch.stack([MASK, ~MASK])).tolist() == [[2, 1], [-1, 2]]


def test_last_index_of_an_empty_row_is_minus_one():
    assert last_index(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [-1, -1]
    assert last_index(torch.zeros(2, 0, dtype=torch.bool)).tolist() == [-1, -1]


def test_length_mask_marks_as_many_positions_as_the_length():
    mask = length_mask(torch.tensor([0, 2, 4]), 4)
    assert mask.sum(1).tolist() == [0, 2, 4]
    assert last_index(mask).tolist() == [-1, 1, 3]


def test_a_floor_of_the_variance_takes_the_place_of_epsilon():
    x, mask = torch.tensor([1.0, 3.0, 99.0], dtype=torch.float64), torch.tensor([True, True, False])
    assert standardise(x, mask, epsilon=0.0, floor=1e-8).tolist() == [-1.0, 1.0, 0.0]  # the variance is 1
    assert standardise(x, mask, epsilon=0.0, floor=4.0).tolist() == [-0.5, 0.5, 0.0]
    assert not standardise(torch.full((3,), 0.1), torch.ones(3).bool(), epsilon=0.0, floor=1e-8).abs().gt(1e-3).any()
