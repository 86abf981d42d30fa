"""Means over the updates of a training: of all with fading weights, or of a window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decayed_mean(mean: Tensor, x: Tensor, *, seen: int, decay: float) -> Tensor:
    """Take one more tensor into a mean whose weights fade by `decay` from one to the one before.

        mean_n = sum_i decay^(n - i) x_i / sum_i decay^(n - i),   i = 1 ... n

    The weights add up to 1 from the first on, so that where the mean began is not remembered longer than anything else:
    the usual `decay * mean + (1 - decay) * x`, begun at x_1, gives x_1 the weight of all that would be before it.
    decay 0 is the last tensor, decay near 1 the plain mean.

    mean  [...] of the `seen` tensors so far; anything where `seen` is 0

    >>> mean = torch.tensor([4.0])
    >>> decayed_mean(mean, torch.tensor([1.0]), seen=1, decay=0.5)  # (0.5 * 4 + 1) / 1.5
    tensor([2.])
    """
    weight = (1 - decay) / (1 - decay ** (seen + 1))
    return torch.lerp(mean, x.to(mean.dtype), weight)


def mean_of_window(window: Sequence[Tensor]) -> Tensor:
    """Give the plain mean of tensors of one shape, added up in their order.

    >>> mean_of_window([torch.tensor([1.0]), torch.tensor([4.0])])
    tensor([2.5000])
    """
    total = window[0].clone()
    for x in window[1:]:
        total += x
    return total / len(window)
