"""Exponentials that stay finite without losing their direction: beyond a bound they go on as straight lines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 60.0  # exp of it is 1e26: in float32 there is room for a line of 1e12 nats beyond


def bounded_exp(x: Tensor) -> Tensor:
    """Raise e to a power, and go on along the tangent where that would soon be infinite.

        exp(x)   where x <= 60,   exp(60) (1 + x - 60)   beyond

    A clamp in its place has no gradient beyond its bound, where the gradient matters most; infinity on a padded token
    would make its masked gradient 0 * inf = NaN.

    x        [...] nats
    returns  [...] finite, and rising in x, where x is below 1e12

    >>> bounded_exp(torch.tensor([0.0, 61.0]))
    tensor([1.0000e+00, 2.2840e+26])
    """
    return torch.where(x > LARGEST_EXPONENT, _tangent(x), x.clamp(max=LARGEST_EXPONENT).exp())


def bounded_expm1(x: Tensor) -> Tensor:
    """Raise e to a power less 1, as exactly as `torch.expm1`, and go on along the tangent as `bounded_exp` does.

        exp(x) - 1   where x <= 60,   exp(60) (1 + x - 60) - 1   beyond

    x        [...] nats
    returns  [...] finite, and rising in x, where x is below 1e12

    >>> bounded_expm1(torch.tensor([0.0, 61.0]))
    tensor([0.0000e+00, 2.2840e+26])
    """
    return torch.where(x > LARGEST_EXPONENT, _tangent(x) - 1, torch.expm1(x.clamp(max=LARGEST_EXPONENT)))


def _tangent(x: Tensor) -> Tensor:
    return math.exp(LARGEST_EXPONENT) * (1 + x - LARGEST_EXPONENT)
