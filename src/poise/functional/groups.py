"""Samples of one prompt: their mean, their standard deviation, and whether they differ at all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from poise.functional.masked import common_level


class GroupSums(NamedTuple):
    """The sum over each sample's group and the size of that group."""

    sums: Tensor  # [B] in the unit of what was summed
    sizes: Tensor  # [B] samples


def group_sums(x: Tensor, group: Tensor) -> GroupSums:
    """Sum over the samples of each prompt and give every sample the sum of its own.

        S_i = sum of x_j over j in the group of i

    x        [B] any unit
    group    [B] int64, 0 or more, equal for samples of one prompt
    returns  (sums [B], sizes [B])

    >>> group_sums(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    GroupSums(sums=tensor([4., 4., 5.]), sizes=tensor([2, 2, 1]))
    """
    groups = _number(group)
    sums = torch.zeros(groups, dtype=x.dtype, device=x.device).index_add(0, group, x)[group]
    return GroupSums(sums, torch.bincount(group, minlength=groups)[group])


def group_mean(x: Tensor, group: Tensor) -> Tensor:
    """Give every sample the mean over the samples of its prompt.

        m_i = S_i / n_i

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of x

    >>> group_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([2., 2., 5.])
    """
    level = group_level(x, group)
    sums, sizes = group_sums(x - level, group)
    return level + sums / sizes


def group_level(x: Tensor, group: Tensor) -> Tensor:
    """Find what the samples of each prompt have in common where it dwarfs their differences: see `common_level`.

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of x, 0 where scores are of the size of their differences

    >>> group_level(torch.tensor([1e8, 1e8 + 16, 1.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    tensor([100000000., 100000000.,         0.,         0.])
    """
    return common_level(*_ends(x, group))[group]


def group_distances(x: Tensor, group: Tensor) -> Tensor:
    """Subtract from every sample the mean over the samples of its prompt.

        x_i - m_i

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of x

    >>> group_distances(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    above = x - group_level(x, group)
    sums, sizes = group_sums(above, group)
    return above - sums / sizes


def sample_deviation(x: Tensor, group: Tensor) -> Tensor:
    """Standard deviation within each prompt's samples, with n - 1 in the denominator.

        sqrt( sum_j (x_j - m)^2 / (n - 1) );  0 for a prompt with a single sample

    The convention of TRL, verl and OpenRLHF for GRPO.

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of x

    >>> sample_deviation(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([1.4142, 1.4142, 0.0000])
    """
    return _deviation(x, group, correction=1)


def population_deviation(x: Tensor, group: Tensor) -> Tensor:
    """Standard deviation within each prompt's samples, with n in the denominator.

        sqrt( sum_j (x_j - m)^2 / n )

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of x

    >>> population_deviation(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([1., 1., 0.])
    """
    return _deviation(x, group, correction=0)


def batch_deviation(x: Tensor, group: Tensor) -> Tensor:
    """Standard deviation over all samples of the batch, with B - 1 in the denominator.

        sqrt( sum_j (x_j - mean x)^2 / (B - 1) )

    One scale for all prompts: prompts whose samples differ little are not scaled up (TRL's scale_rewards="batch").

    x        [B] any unit
    group    [B] int64; not used, so that deviations can stand in for each other
    returns  [B] in the unit of x, the same everywhere

    >>> batch_deviation(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([2., 2., 2.])
    """
    return _deviation(x, torch.zeros_like(group), correction=1)


def divided_by_sd(centred: Tensor, sd: Tensor, *, epsilon: float) -> Tensor:
    """Divide distances from a mean by a standard deviation; where it is 0, so is the distance, which is returned as is.

        x / (sd + epsilon);   x where the divisor is 0

    centred  [...] any unit
    sd       [...] the standard deviation in the same unit, 0 or more
    epsilon  0 or more
    returns  [...] no unit

    >>> divided_by_sd(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), epsilon=0.0)
    tensor([0.5000, 0.0000])
    """
    unit = sd + epsilon
    return centred / torch.where(unit > 0, unit, 1.0)


def in_varied_group(x: Tensor, group: Tensor) -> Tensor:
    """Tell which samples belong to a prompt whose samples differ: only these have a group-relative advantage.

        max of the group > min of the group

    DAPO's dynamic sampling keeps only these. It tests whether the mean lies between 0 and 1; we test whether scores
    differ, which works for any range. A prompt with a single sample never varies.
    Source: DAPO (arXiv:2503.14476), dynamic sampling.

    x        [B] any unit
    group    [B] int64, equal for samples of one prompt
    returns  [B] bool

    >>> in_varied_group(torch.tensor([0.0, 1.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1]))
    tensor([ True,  True, False, False])
    """
    low, high = _ends(x, group)
    return (high > low)[group]


def in_undecided_group(x: Tensor, group: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Tell which samples belong to a prompt whose mean lies strictly between two bounds: dynamic sampling as released.

        low < m_i < high

    Of scores that are `low` or `high` it says the same as `in_varied_group`. Of others it keeps prompts whose samples
    are all 0.5, which teach nothing, and drops varied ones with a mean beyond the bounds. For comparison.
    Source: the dynamic filtering of OpenRLHF, public code.

    x        [B] score, of which `low` is the worst and `high` the best
    group    [B] int64, equal for samples of one prompt
    returns  [B] bool

    >>> in_undecided_group(torch.tensor([0.0, 1.0, 0.5, 0.5, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 2, 2]))
    tensor([ True,  True,  True,  True, False, False])
    """
    mean = group_mean(x, group)
    return (low < mean) & (mean < high)


def _deviation(x: Tensor, group: Tensor, correction: int) -> Tensor:
    squares, sizes = group_sums(group_distances(x, group).square(), group)
    variances = squares / (sizes - correction).clamp(min=1)
    roots = variances.clamp(min=torch.finfo(x.dtype).tiny).sqrt()  # the slope of a root of 0 is infinite
    return torch.where(variances > 0, roots, 0.0)


def _ends(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest sample of each group [G]."""
    start = torch.zeros(_number(group), dtype=x.dtype, device=x.device)
    low = start.scatter_reduce(0, group, x, "amin", include_self=False)
    return low, start.scatter_reduce(0, group, x, "amax", include_self=False)


def _number(group: Tensor) -> int:
    return int(group.max()) + 1 if len(group) else 0
