"""How much better than expected a token or a response was: than a critic, the other samples or the greedy answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.functional.groups import (
    divided_by_sd,
    group_distances,
    group_level,
    group_sums,
    in_varied_group,
    sample_deviation,
)


class Advantages(NamedTuple):
    """Advantages for the policy and returns for the critic."""

    advantages: Tensor  # [B, T] in the unit of the rewards
    returns: Tensor  # [B, T] what the critic is trained towards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, trace: float = 0.95) -> Advantages:
    """Estimate advantages by exponentially weighted temporal differences.

        delta_t = r_t + discount * V_{t+1} - V_t,   A_t = sum_k (discount * trace)^k delta_{t+k},   return_t = A_t + V_t

    trace = 1 gives the Monte-Carlo return minus the value, trace = 0 the one-step difference. The value after the
    last real token is 0: a response ends. Rewards and values outside the mask are set to 0 before anything else, so
    they change nothing. A token is followed by the next one in the mask: between the turns of a response there may be
    tokens of a tool, which are no steps of the policy and are neither discounted nor bootstrapped from.
    Nothing is standardised: see `masked.standardise`.
    Source: Schulman et al. (arXiv:1506.02438); Safe RLHF uses discount 1 and trace 0.95, per channel.

    rewards, values  [B, T] in the unit of the channel; one value per token, before that token is chosen
    mask             [B, T] bool
    returns          (advantages [B, T], returns [B, T]), 0 outside the mask

    >>> rewards, values = torch.tensor([[0.0, 1.0, 99.0]]), torch.tensor([[0.5, 0.5, 99.0]])
    >>> gae(rewards, values, torch.tensor([[True, True, False]]), trace=1.0)
    Advantages(advantages=tensor([[0.5000, 0.5000, 0.0000]]), returns=tensor([[1., 1., 0.]]))
    """
    outside = ~mask.bool()
    rewards, values = rewards.masked_fill(outside, 0), values.masked_fill(outside, 0)
    order = _steps_first(mask)
    packed = values.gather(-1, order)
    next_values = F.pad(packed, (0, 1))[..., 1:]
    sums = _sum_backwards(rewards.gather(-1, order) + discount * next_values - packed, discount * trace)
    advantages = torch.zeros_like(sums).scatter(-1, order, sums).masked_fill(outside, 0)
    return Advantages(advantages, advantages + values)


def return_to_go(rewards: Tensor, mask: Tensor, discount: float = 1.0) -> Tensor:
    """Sum the rewards from each token to the end of its response.

        G_t = r_t + discount * G_{t+1}, where t + 1 is the next token in the mask

    rewards  [B, T] in the unit of the channel
    mask     [B, T] bool
    returns  [B, T] in the unit of the rewards, 0 outside the mask

    >>> return_to_go(torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[True, True, False]]))
    tensor([[3., 2., 0.]])
    """
    outside = ~mask.bool()
    order = _steps_first(mask)
    sums = _sum_backwards(rewards.masked_fill(outside, 0).gather(-1, order), discount)
    return torch.zeros_like(sums).scatter(-1, order, sums).masked_fill(outside, 0)


def leave_one_out(returns: Tensor, group: Tensor) -> Tensor:
    """Compare each return with the mean of the other samples of its prompt.

        A_i = R_i - mean of R_j over j != i in the same group;  0 for a prompt with a single sample

    Source: RLOO, Ahmadian et al., arXiv:2402.14740.

    returns  [B] in the unit of the score
    group    [B] int64, equal for samples of one prompt
    returns  [B] in the unit of the score

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-2.,  2.,  0.])
    """
    above = returns - group_level(returns, group)
    sums, sizes = group_sums(above, group)
    others = (sums - above) / (sizes - 1).clamp(min=1)
    return torch.where(sizes > 1, above - others, 0.0)


def group_centred(returns: Tensor, group: Tensor) -> Tensor:
    """Compare each return with the mean of all samples of its prompt, itself included.

        A_i = R_i - mean of R over the group of i

    It is (n - 1) / n times `leave_one_out`. Exactly 0 where all samples of a prompt have the same return.
    Source: Dr. GRPO, Liu et al. (arXiv:2503.20783), which leaves out GRPO's scale; also the baseline of REINFORCE++.

    returns           [B] in the unit of the score
    group             [B] int64, equal for samples of one prompt
    returns (result)  [B] in the unit of the score

    >>> group_centred(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    return torch.where(in_varied_group(returns, group), group_distances(returns, group), 0.0)


def group_normalised(
    returns: Tensor,
    group: Tensor,
    *,
    deviation: Callable[[Tensor, Tensor], Tensor] = sample_deviation,
    epsilon: float = 1e-4,
) -> Tensor:
    """Compare each return with the mean of its prompt's samples, in units of their standard deviation.

        A_i = (R_i - mean of the group) / (deviation + epsilon);   0 where all samples of a prompt have the same return

    `deviation` names the convention: `groups.sample_deviation` (n - 1), `population_deviation` (n) or `batch_deviation`
    (all prompts together). Libraries differ in epsilon too: TRL 1e-4, verl 1e-6, OpenRLHF 1e-9. Every prompt gets the
    same scale, so prompts that are nearly solved count as much as open ones; see `group_centred`.
    Source: GRPO, Shao et al. (arXiv:2402.03300).

    returns           [B] in the unit of the score
    group             [B] int64, equal for samples of one prompt
    returns (result)  [B] no unit

    >>> group_normalised(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), epsilon=0.1)
    tensor([-0.6604,  0.6604,  0.0000])
    """
    return divided_by_sd(group_centred(returns, group), deviation(returns, group), epsilon=epsilon)


def greedy_baseline(rewards: Tensor, greedy: Tensor, mask: Tensor) -> Tensor:
    """Compare the return from each token on with the score of the prompt's greedy answer.

        A_t = G_t - R(x, greedy answer)

    The greedy answer depends on the prompt alone, so the policy gradient stays unbiased, and no critic is learned. With
    a KL penalty in the rewards, G_t holds that of the tokens still to come.
    Source: ReMax, Li et al. (arXiv:2310.10505).

    rewards  [B, T] in the unit of the score
    greedy   [B] score of the greedy answer to the same prompt
    mask     [B, T] bool
    returns  [B, T] in the unit of the score, 0 outside the mask

    >>> mask = torch.tensor([[True, True, False]])
    >>> greedy_baseline(torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([0.5]), mask)
    tensor([[1.5000, 1.5000, 0.0000]])
    """
    return (return_to_go(rewards, mask) - greedy[:, None]).masked_fill(~mask.bool(), 0)


def zero_variance_shaping(
    scores: Tensor,
    group: Tensor,
    entropies: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.1,
    is_right: Tensor | None = None,
) -> Tensor:
    """Learn from prompts whose samples all have the same score, token by token, in proportion to the entropy.

        alpha * H_t                        where all are right (by default score > 0)
        -alpha * (max over t of H - H_t)   where all are wrong;   0 where the samples differ

    Added to `group_normalised`, which is 0 exactly where this is not. The maximum is over the tokens of the same
    response: of a wrong response the most uncertain token is left alone, the most certain ones are pushed down most.
    No gradient flows through the entropies. Nothing holds the push on right answers back: watch the entropy.
    Source: RL-ZVP (arXiv:2509.21880), Eq. 5.

    scores     [B] higher is better
    group      [B] int64, equal for samples of one prompt
    entropies  [B, T] nats, of the policy's distribution at each token
    mask       [B, T] bool
    is_right   [B] bool or None: which are right, where that is not score > 0, as of a cost: 0 is not unsafe
    returns    [B, T] nats times alpha, 0 outside the mask

    >>> entropies, mask = torch.tensor([[0.1, 1.2], [0.4, 0.4]]), torch.ones(2, 2).bool()
    >>> zero_variance_shaping(torch.zeros(2), torch.tensor([0, 0]), entropies, mask)
    tensor([[-0.1100,  0.0000],
            [ 0.0000,  0.0000]])
    """
    outside = ~mask.bool()
    entropies = entropies.detach().masked_fill(outside, 0)
    below_top = entropies - F.pad(entropies, (0, 1)).amax(-1, keepdim=True)
    right = scores > 0 if is_right is None else is_right
    shaped = alpha * torch.where(right[:, None], entropies, below_top)
    return shaped.masked_fill(outside | in_varied_group(scores, group)[:, None], 0)


def _steps_first(mask: Tensor) -> Tensor:
    """Positions [B, T] of each row with those in the mask first, in their order: without the holes between turns."""
    return mask.bool().logical_not().to(torch.uint8).argsort(dim=-1, stable=True)


def _sum_backwards(x: Tensor, factor: float) -> Tensor:
    """Return y_t = x_t + factor * y_{t+1} along the last dimension."""
    total = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
    columns = [total]
    for column in reversed(x.unbind(-1)):
        total = column + factor * total
        columns.append(total)
    return torch.stack(columns[:0:-1], dim=-1) if len(columns) > 1 else x
