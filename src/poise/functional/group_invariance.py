"""The same return in every group of responses, where the groups are not given but inferred.

A classifier gives each response the probability p of being in group 1. It learns to pull the returns of the groups
apart, and the policy learns to bring them together. We have the mechanism from descriptions of the paper and not from
its text: how things are normalised here is ours.
Source: group invariant learning (arXiv:2310.11971).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class GroupMeans(NamedTuple):
    """Mean returns of the two groups."""

    members: Tensor  # [] of group 1
    others: Tensor  # [] of group 0


def soft_group_means(returns: Tensor, membership: Tensor) -> GroupMeans:
    """Average the returns of each group, every response counting by its probability of being in it.

        m_1 = sum p_i R_i / sum p_i,   m_0 = sum (1 - p_i) R_i / sum (1 - p_i)        (0 for an empty group)

    returns           [B] in the unit of the score
    membership        [B] probability of group 1
    returns (result)  (members [], others [])

    >>> soft_group_means(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.5]))
    GroupMeans(members=tensor(1.3333), others=tensor(0.))
    """
    return GroupMeans((_share(membership) * returns).sum(), (_share(1 - membership) * returns).sum())


def variance_between_groups(returns: Tensor, membership: Tensor) -> Tensor:
    """Measure how far the mean returns of the two groups are apart.

        ((m_1 - m_0) / 2)^2,   the variance of two equally likely means

    returns           [B] in the unit of the score
    membership        [B] probability of group 1
    returns (result)  [] that unit squared

    >>> variance_between_groups(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(1.)
    """
    means = soft_group_means(returns, membership)
    return ((means.members - means.others) / 2).square()


def group_invariant_weights(returns: Tensor, membership: Tensor, *, penalty: float) -> Tensor:
    """Weigh advantages so that the policy gains return and its groups come together.

        w_i = 1 - penalty * B * (m_1 - m_0) / 2 * (p_i / sum p - (1 - p_i) / sum (1 - p))

    The gradient of mean(R) - penalty * `variance_between_groups`, with p held fixed, is the policy gradient of
    mean(w R). Responses of the better group count less, those of the worse group more; a weight may be negative.

    returns           [B] in the unit of the score
    membership        [B] probability of group 1
    penalty           weight of the variance, in 1 over the unit of the score
    returns (result)  [B] no unit

    >>> group_invariant_weights(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), penalty=0.25)
    tensor([0.5000, 1.5000])
    """
    means = soft_group_means(returns, membership)
    contrast = _share(membership) - _share(1 - membership)
    return 1 - penalty * len(returns) * (means.members - means.others) / 2 * contrast


def better_group(returns: Tensor, membership: Tensor) -> Tensor:
    """Give the probability of being in the group with the higher mean return: the weight of the KL penalty.

        p_i if m_1 >= m_0 else 1 - p_i

    The better group is held close to the reference in full; the other may move further.

    returns           [B] in the unit of the score
    membership        [B] probability of group 1
    returns (result)  [B] probability

    >>> better_group(torch.tensor([0.0, 2.0]), torch.tensor([0.75, 0.25]))
    tensor([0.2500, 0.7500])
    """
    means = soft_group_means(returns, membership)
    return torch.where(means.members >= means.others, membership, 1 - membership)


def group_inference_loss(logits: Tensor, returns: Tensor, *, balance: float = 1.0) -> Tensor:
    """Teach the classifier of groups to pull their returns apart without emptying either of them.

        -(m_1 - m_0) / (2 deviation of R) + balance * (2 mean(p) - 1)^2,   p = sigmoid(logits)

    With its sign the distance has the same maximiser as its square, group 1 becomes the better one, and p = 1/2
    everywhere, where training begins, is no stationary point. Returns in units of their own sd make the scale of
    the score irrelevant.

    logits            [B]
    returns           [B] in the unit of the score
    returns (result)  []

    >>> group_inference_loss(torch.tensor([9.0, -9.0]), torch.tensor([1.0, -1.0]))
    tensor(-0.9998)
    """
    membership = torch.sigmoid(logits)
    centred = returns - returns.mean()
    scaled = centred / centred.square().mean().sqrt().clamp(min=1e-8)
    means = soft_group_means(scaled, membership)
    imbalance = (2 * membership.mean() - 1).square()
    return -(means.members - means.others) / 2 + balance * imbalance


def _share(weights: Tensor) -> Tensor:
    """Weights as shares of their sum; zeros where they are all zero."""
    return F.normalize(weights, p=1.0, dim=0, eps=1e-12)
