"""Linear regression with a penalty on its weights, and what it says of rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poise.errors import DataError


def ridge_path(
    features: Tensor, targets: Tensor, penalties: Sequence[float], *, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Ridge regressions of the same rows, one for each penalty, with offsets that are not penalised.

        min  sum_i v_i (t_i - w . x_i - b)^2 + penalty |w|^2

    Solved by Cholesky in whichever of rows and features is the smaller number; float64 inside.

    features   [N, H]
    targets    [N]
    penalties  P numbers above 0
    weights    [N] v, above 0; by default 1 each
    returns    w [P, H] and b [P], float64

    Raises DataError unless there are at least two rows with one target each.

    >>> slope, offset = ridge_path(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 5.0]), [2.0])
    >>> slope.tolist(), offset.tolist()
    ([[1.0]], [2.0])
    """
    if len(features) != len(targets) or len(features) < 2:
        raise DataError(
            f"a regression needs at least two rows with one target each: {len(features)} and {len(targets)}"
        )
    x, t = features.double(), targets.double()
    v = torch.ones_like(t) if weights is None else weights.double()
    middle, level = (v @ x) / v.sum(), (v @ t) / v.sum()
    root = v.sqrt()
    x, t = (x - middle) * root[:, None], (t - level) * root
    is_wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if is_wide else x.T @ x
    right = t if is_wide else x.T @ t
    found = []
    for penalty in penalties:
        factor = torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        solved = torch.cholesky_solve(right[:, None], factor)[:, 0]
        found.append(x.T @ solved if is_wide else solved)
    slopes = torch.stack(found)
    return slopes, level - slopes @ middle


def out_of_fold(
    features: Tensor,
    targets: Tensor,
    folds: Tensor,
    penalties: Sequence[float],
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """What the regressions on all other folds predict of each row [P, N], one line for each penalty.

    folds  [N] numbers; rows that belong together, such as answers to one prompt, have the same

    Raises DataError for fewer than two folds.

    >>> rows, halves = torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    >>> out_of_fold(rows, torch.tensor([0.0, 1.0, 0.0, 1.0]), halves, [1e-9]).round()
    tensor([[0., 1., 0., 1.]], dtype=torch.float64)
    """
    if len(folds.unique()) < 2:
        raise DataError("cross-validation needs at least two folds: give rows of more prompts")
    predicted = torch.zeros(len(penalties), len(targets), dtype=torch.float64)
    for fold in folds.unique():
        inside = folds != fold
        chosen = None if weights is None else weights[inside]
        slopes, offsets = ridge_path(features[inside], targets[inside], penalties, weights=chosen)
        predicted[:, ~inside] = slopes @ features[~inside].double().T + offsets[:, None]
    return predicted
