"""Sums and means over the real positions of padded tensors.

A mask is True on real positions and comes from lengths, never from comparing ids with pad or eos. Whatever stands
on the other positions, even NaN or infinity, has no influence on a result here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_DWARFS = 1000.0  # so large, and so much larger than their differences, is what values have in common


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum the entries where the mask is True: over everything, or along one dimension.

        sum_i m_i x_i

    x        [...] any unit
    mask     [...] bool, of the shape of x
    returns  [] or, with `dim`, the shape of x without that dimension

    >>> masked_sum(torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[True, True, False]]))
    tensor(3.)
    """
    kept = x.masked_fill(~mask.bool(), 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Average the entries where the mask is True, so that every token weighs the same.

        sum_i m_i x_i / sum_i m_i        (0 where the mask is empty)

    Long responses weigh more than short ones; `sequence_mean` weighs every response the same.

    x        [...] any unit
    mask     [...] bool, of the shape of x
    returns  [] or, with `dim`, the shape of x without that dimension

    >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 99.0, 99.0, 99.0]])
    >>> masked_mean(x, length_mask(torch.tensor([4, 1]), 4))
    tensor(4.)
    """
    real = mask.bool().expand_as(x)
    count = real.sum() if dim is None else real.sum(dim)
    return masked_sum(x, real, dim) / count.clamp(min=1)


def sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over the tokens of each sequence, then over sequences, so that every sequence weighs the same.

        mean_b ( sum_t m_bt x_bt / sum_t m_bt )

    Rows without any real token are left out of the outer mean.
    Source: the aggregation of Safe RLHF's PPO losses (reference implementation, `masked_mean`).

    x        [B, T] any unit
    mask     [B, T] bool
    returns  []

    >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 99.0, 99.0, 99.0]])
    >>> sequence_mean(x, length_mask(torch.tensor([4, 1]), 4))
    tensor(6.2500)
    """
    return masked_mean(masked_mean(x, mask, dim=-1), mask.bool().any(-1))


def standardise(x: Tensor, mask: Tensor, *, correction: int = 0, epsilon: float = 1e-8, floor: float = 0.0) -> Tensor:
    """Shift and scale so that the real entries have mean 0 and variance 1.

        (x - mean) / sqrt(max(variance, floor) + epsilon)        (0 where the mask is False)

    `correction` is subtracted from the count in the variance: 0 gives exactly variance 1, 1 the unbiased variance
    that other libraries whiten with. Equal entries become 0. REINFORCE++ bounds the variance by a `floor` of 1e-8
    instead of adding an epsilon.

    x        [...] any unit
    mask     [...] bool, of the shape of x
    returns  [...] no unit

    >>> standardise(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    tensor([-1.,  1.,  0.])
    """
    centred, deviation = _centre(x, mask, correction, epsilon, floor)
    return centred / deviation


def scale_to_unit_variance(x: Tensor, mask: Tensor, *, correction: int = 0, epsilon: float = 1e-8) -> Tensor:
    """Scale the real entries around their mean to variance 1; the mean is kept.

        mean + (x - mean) / sqrt(variance + epsilon)        (0 where the mask is False)

    x        [...] any unit
    mask     [...] bool, of the shape of x
    returns  [...] with the mean of x

    >>> scale_to_unit_variance(torch.tensor([0.0, 10.0, 99.0]), torch.tensor([True, True, False]))
    tensor([4., 6., 0.])
    """
    centred, deviation = _centre(x, mask, correction, epsilon)
    return (masked_mean(x, mask) + centred / deviation).masked_fill(~mask.bool(), 0)


def common_level(low: Tensor, high: Tensor) -> Tensor:
    """Find what values have in common where it dwarfs how far they lie apart: take it off before they are summed.

        low where low <= high and |low| > 1000 max(1, high - low), else 0

    In single precision a sum of scores near 1e8 is wrong by more than they differ by; differences to `low` are exact.
    Scores of usual size are summed as they stand.

    low, high  [...] the smallest and the largest value
    returns    [...] in the same unit, without gradient

    >>> common_level(torch.tensor([1e8, 1.0]), torch.tensor([1e8 + 16, 1.0]))
    tensor([100000000.,         0.])
    """
    low, high = low.detach(), high.detach()
    return torch.where((low <= high) & (low.abs() > _DWARFS * (high - low).clamp(min=1)), low, 0.0)


def last_index(mask: Tensor) -> Tensor:
    """Find the last real position of every row, whichever side the padding is on.

    A row without any real position gives -1, which no gather accepts: check `mask.any(-1)` first where rows may be
    empty. The number of real tokens minus one is not the answer, as it is wrong for left padding.

    mask     [..., T] bool
    returns  [...] int64, a position in 0..T-1, or -1

    >>> last_index(torch.tensor([[True, True, False], [False, True, True], [False, True, False]]))
    tensor([1, 2, 1])
    """
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return F.pad(torch.where(mask.bool(), positions, -1), (1, 0), value=-1).amax(-1)


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """Mark the first `lengths` positions of right-padded rows.

    lengths  [...] int, tokens
    returns  [..., width] bool

    >>> length_mask(torch.tensor([2, 0]), 3)
    tensor([[ True,  True, False],
            [False, False, False]])
    """
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(-1)


def _centre(x: Tensor, mask: Tensor, correction: int, epsilon: float, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return x minus its masked mean, 0 outside the mask, and the masked standard deviation."""
    real = mask.bool().expand_as(x)
    low, high = _ends(x, real)
    above = x - common_level(low, high)
    centred = torch.where(real & (low < high), above - masked_mean(above, real), 0.0)  # not a last bit of the mean
    variance = centred.square().sum() / (real.sum() - correction).clamp(min=1)
    deviation = (variance.clamp(min=floor) + epsilon).sqrt()
    return centred, torch.where(deviation > 0, deviation, 1.0)


def _ends(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of the real entries; of none the larger first."""
    if not x.numel():
        return x.new_tensor(math.inf), x.new_tensor(-math.inf)
    return x.masked_fill(~real, math.inf).amin(), x.masked_fill(~real, -math.inf).amax()
