"""Ridge regressions: the normal equations, either way of solving them, and predictions without the row itself."""

from __future__ import annotations

import pytest
import torch

from poise.errors import DataError
from poise.functional.ridge import out_of_fold, ridge_path


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)], ids=["more features than rows", "more rows than features"])
def test_the_gradient_of_the_penalised_error_vanishes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, t, v = torch.randn(shape).double(), torch.randn(shape[0]).double(), torch.rand(shape[0]).double() + 0.5
    slopes, offsets = ridge_path(x, t, [0.5, 3.0], weights=v)
    for slope, offset, penalty in zip(slopes, offsets, (0.5, 3.0), strict=True):
        residual = v * (x @ slope + offset - t)
        assert torch.allclose(x.T @ residual + penalty * slope, torch.zeros(shape[1]).double(), atol=1e-9)
        assert abs(float(residual.sum())) < 1e-9  # the offset is not penalised


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    x, t = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.0, 1.0, 5.0])
    doubled = ridge_path(x[[0, 1, 2, 2]], t[[0, 1, 2, 2]], [1.0])
    assert torch.allclose(ridge_path(x, t, [1.0], weights=torch.tensor([1.0, 1.0, 2.0]))[0], doubled[0])


def test_a_prediction_does_not_know_the_targets_of_its_own_fold() -> None:
    torch.manual_seed(0)
    x, t, folds = torch.randn(12, 3), torch.randn(12), torch.arange(12) % 3
    other = torch.where(folds == 1, -t, t)
    same = out_of_fold(x, t, folds, [1.0]) == out_of_fold(x, other, folds, [1.0])
    assert same[0, folds == 1].all()
    assert not same[0, folds != 1].any()


def test_one_fold_leaves_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="two folds"):
        out_of_fold(torch.ones(3, 1), torch.ones(3), torch.zeros(3), [1.0])
