import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.functional.advantages import group_centred, group_normalised, leave_one_out
from poise.functional.groups import (
    batch_deviation,
    group_mean,
    group_sums,
    in_undecided_group,
    in_varied_group,
    population_deviation,
    sample_deviation,
)
from poise.functional.masked import standardise

X = torch.tensor([1.0, 10.0, 3.0, 10.0, 8.0], dtype=torch.float64)
GROUP = torch.tensor([0, 2, 0, 2, 0])  # 1, 3, 8 and 10, 10; no sample has number 1
DEVIATIONS = [sample_deviation, population_deviation, batch_deviation]


def test_sums_and_means_are_those_of_the_own_group():
    assert group_sums(X, GROUP).sums.tolist() == [12.0, 20.0, 12.0, 20.0, 12.0]
    assert group_sums(X, GROUP).sizes.tolist() == [3, 2, 3, 2, 3]
    assert group_mean(X, GROUP).tolist() == [4.0, 10.0, 4.0, 10.0, 4.0]


def test_deviations_by_hand():
    # 1, 3, 8 around 4: squares 9 + 1 + 16 = 26, over 2 and over 3; all five around 6.4
    torch.testing.assert_close(sample_deviation(X, GROUP)[0], torch.tensor(13.0).double().sqrt())
    torch.testing.assert_close(population_deviation(X, GROUP)[0], torch.tensor(26 / 3).double().sqrt())
    torch.testing.assert_close(batch_deviation(X, GROUP), X.std().expand(5))
    assert sample_deviation(X, GROUP)[1] == population_deviation(X, GROUP)[1] == 0


def test_a_single_sample_has_no_deviation_and_no_variance():
    one = torch.tensor([0])
    assert sample_deviation(torch.tensor([7.0]), one) == population_deviation(torch.tensor([7.0]), one) == 0
    assert not in_varied_group(torch.tensor([7.0]), one)


def test_a_group_is_varied_by_its_spread_and_not_by_its_mean():
    scores = torch.tensor([0.5, 0.5, 0.0, 1.0, 2.0, 3.0, -1.0, -1.0])
    assert in_varied_group(scores, torch.arange(8) // 2).tolist() == [False] * 2 + [True] * 4 + [False] * 2


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12))
def test_a_mean_between_the_bounds_is_a_spread_where_scores_are_right_or_wrong(scores):
    x, group = torch.tensor(scores), torch.arange(len(scores)) % 3
    assert torch.equal(in_undecided_group(x, group), in_varied_group(x, group))


def test_a_mean_between_the_bounds_is_no_spread_where_scores_are_graded():
    scores = torch.tensor([0.5, 0.5, -1.0, 1.0, 0.5, 1.5, 0.2, 0.9])
    assert in_undecided_group(scores, torch.arange(8) // 2).tolist() == [True] * 2 + [False] * 4 + [True] * 2
    assert in_undecided_group(scores, torch.arange(8) // 2, low=-1.0, high=2.0).all()


@pytest.mark.parametrize("level", [0.0, 1e4, 1e8, -1e8, 3e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [group_centred, group_normalised, leave_one_out, sample_deviation, population_deviation, batch_deviation],
)
def test_a_level_that_all_samples_share_changes_nothing_in_any_precision(function, dtype, level):
    group = torch.tensor([0, 1, 0, 1, 0, 1, 2])
    small = 256 * torch.tensor([1.0, 5.0, 4.0, 5.0, 9.0, 7.0, 2.0], dtype=dtype)  # exact beside every level
    found = function((small + level).requires_grad_(), group)
    torch.testing.assert_close(found, function(small.clone().requires_grad_(), group), rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(function(x, group)[0], x)[0] for x in map(leaf, (small + level, small))]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", [1e4, 1e8])
def test_standardised_values_do_not_depend_on_a_level_that_they_share(level):
    small = 256 * torch.tensor([1.0, 5.0, 4.0, 77.0])
    mask = torch.tensor([True, True, True, False])
    torch.testing.assert_close(standardise(small + level, mask), standardise(small, mask), rtol=1e-5, atol=1e-6)
    assert standardise(torch.full((3,), 1e8), mask[:3]).tolist() == [0.0] * 3
    assert standardise(small + level, ~mask & False).tolist() == [0.0] * 4


def leaf(x):
    return x.clone().requires_grad_()


@given(st.permutations(range(5)))
@pytest.mark.parametrize("function", [group_mean, in_varied_group, in_undecided_group, *DEVIATIONS])
def test_the_order_of_the_batch_changes_nothing(function, order):
    found = function(X[list(order)], GROUP[list(order)])
    torch.testing.assert_close(found, function(X, GROUP)[list(order)])


@pytest.mark.parametrize("function", [group_mean, sample_deviation, population_deviation, in_varied_group])
def test_prompts_do_not_know_of_each_other(function):
    torch.testing.assert_close(function(X, GROUP)[GROUP == 0], function(X[GROUP == 0], GROUP[GROUP == 0]))


@pytest.mark.parametrize("function", [group_mean, in_varied_group, *DEVIATIONS])
def test_no_samples_at_all_are_no_error(function):
    assert function(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_large_scores_do_not_overflow(deviation):
    assert deviation(torch.tensor([500.0, -500.0, 500.0]), torch.tensor([0, 0, 1])).isfinite().all()


@pytest.mark.parametrize("deviation", [sample_deviation, population_deviation, batch_deviation])
def test_equal_samples_have_a_finite_slope(deviation):
    scores = torch.tensor([0.3, 0.3, 0.3], requires_grad=True)
    sd = deviation(scores, torch.zeros(3, dtype=torch.long))
    (slope,) = torch.autograd.grad(sd.sum(), scores)
    assert sd.tolist() == [0, 0, 0]
    assert slope.tolist() == [0, 0, 0]
