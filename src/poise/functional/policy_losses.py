"""Losses of the policy per token; how they are averaged is a choice of its own (`masked`, `train.algorithms`).

All take the same four tensors, so that they can stand in for each other, and each says which of them it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poise.functional.bounded import bounded_exp
from poise.functional.masked import masked_mean

Ratio = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # log-probabilities, old ones, mask [B, T] to ratios [B, T] or [B, 1]


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> Tensor:
    """Raise the probability of tokens with a positive advantage, but no further than the clip allows.

        -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A),   ratio = pi / pi_old

    `clip_high` is `clip` unless given; a larger one leaves improbable tokens more room to rise (DAPO's clip-higher). At
    ratio 1 its gradient is that of `reinforce`. Gradient flows into `logprobs` only if the others carry none.
    Source: PPO, Schulman et al. (arXiv:1707.06347), Eq. 7; Safe RLHF averages it with `sequence_mean`. Asymmetric clip:
    DAPO (arXiv:2503.14476).

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    advantages              [B, T]
    mask                    not used
    returns                 [B, T] in the unit of the advantages

    >>> clipped_surrogate(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    tensor([[-1.2000]])
    """
    return _clipped(bounded_exp(logprobs - old_logprobs), advantages, clip, clip_high)


def dual_clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    bound: float = 3.0,
) -> Tensor:
    """Clip as PPO does, and also bound the loss of tokens with a negative advantage whose probability rose.

        min(clipped surrogate loss, -bound * A) where A < 0,   bound > 1;   the clipped surrogate loss elsewhere

    The plain clip leaves -ratio * A unbounded there, so that one token far off the sampler can outweigh a batch.
    Source: Ye et al. (arXiv:1912.09729), dual-clip PPO.

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    advantages              [B, T]
    mask                    not used
    returns                 [B, T] in the unit of the advantages

    >>> dual_clipped_surrogate(torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[-1.0]]))
    tensor([[3.]])
    """
    losses = clipped_surrogate(logprobs, old_logprobs, advantages, clip=clip, clip_high=clip_high)
    return torch.where(advantages < 0, torch.minimum(losses, -bound * advantages), losses)


def sequence_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> Tensor:
    """Clip by how far the whole response moved instead of by each token.

        -min(s * A_t, clip(s, 1 - clip, 1 + clip_high) * A_t),   s = (pi(y) / pi_old(y))^(1 / |y|)

    s is the geometric mean of the token ratios, the same on every token of a response; it stays much closer to 1 than
    they do, which calls for a smaller clip. At s = 1 and averaged by sequence, with one advantage per response, the
    gradient is that of `reinforce`.
    Source: GSPO, Zheng et al. (arXiv:2507.18071).

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    advantages              [B, T]
    mask                    [B, T] bool; what stands outside it has no influence on s
    returns                 [B, T] in the unit of the advantages

    >>> old, ones, mask = torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[True, True, False]])
    >>> sequence_surrogate(torch.tensor([[0.1, 0.0, 9.0]]), old, ones, mask)
    tensor([[-1.0513, -1.0513, -1.0513]])
    """
    return _clipped(sequence_ratio(logprobs, old_logprobs, mask), advantages, clip, clip_high)


def detached_ratio(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float = 1.0,
    clip_high: float | None = None,
) -> Tensor:
    """Weigh REINFORCE by a ratio that is clipped but carries no gradient, so that no token is left out.

        -stop_gradient(clip(ratio, 1 - clip, 1 + clip_high)) * A * log pi

    Where PPO's clip holds a token its gradient is 0; here it keeps the weight of the bound. The default clip of 1 on
    either side bounds the weight by 2 alone.
    Source: CISPO, MiniMax-M1 (arXiv:2506.13585).

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    advantages              [B, T]
    mask                    not used
    returns                 [B, T]; the value means nothing, the gradient is the clipped off-policy gradient

    >>> detached_ratio(torch.tensor([[-1.0]]), torch.tensor([[-9.0]]), torch.tensor([[1.0]]))
    tensor([[2.]])
    """
    high = clip if clip_high is None else clip_high
    ratio = bounded_exp(logprobs - old_logprobs).clamp(1 - clip, 1 + high)
    return -ratio.detach() * advantages * logprobs


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weigh the log-probability of each token by its advantage.

        -A * log pi

    Right for samples of the current policy.
    Source: Williams (1992).

    logprobs      [B, T] nats, of the policy that learns
    old_logprobs  not used
    advantages    [B, T]
    mask          not used
    returns       [B, T]; the value means nothing, the gradient is the policy gradient

    >>> reinforce(torch.tensor([[-0.5]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """
    return -logprobs * advantages


def token_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Measure how much likelier each token has become.

        pi_t / pi_old_t

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    mask                    not used
    returns                 [B, T]

    >>> token_ratio(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]]))
    tensor([[2.7183]])
    """
    return bounded_exp(logprobs - old_logprobs)


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Measure how much likelier each response has become, per token: the geometric mean of its tokens' ratios.

        (pi(y) / pi_old(y))^(1 / |y|)

    Source: GSPO, Zheng et al. (arXiv:2507.18071).

    logprobs, old_logprobs  [B, T] nats, of the policy that learns and of the one that sampled
    mask                    [B, T] bool
    returns                 [B, 1]; 1 for an empty response

    >>> sequence_ratio(torch.tensor([[0.0, 9.0]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[True, False]]))
    tensor([[2.7183]])
    """
    return bounded_exp(masked_mean(logprobs - old_logprobs, mask, dim=-1))[..., None]


def clip_fraction(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    ratio: Ratio = token_ratio,
) -> Tensor:
    """Measure the share of ratios that left the clip range: how off-policy an update is.

        mean of [ ratio < 1 - clip or ratio > 1 + clip_high ],   over real tokens, or over responses

    logprobs, old_logprobs  [B, T] nats
    mask                    [B, T] bool
    clip_high               `clip` unless given
    ratio                   `token_ratio`, or `sequence_ratio`, of which there is one for each response
    returns                 [] share, 0 to 1, without gradient

    >>> old = torch.zeros(1, 2)
    >>> clip_fraction(torch.tensor([[0.0, 1.0]]), old, torch.tensor([[True, True]]))
    tensor(0.5000)
    """
    found = ratio(logprobs.detach(), old_logprobs.detach(), mask)
    outside = (found < 1 - clip) | (found > 1 + (clip if clip_high is None else clip_high))
    real = mask.bool() if outside.shape == mask.shape else mask.bool().any(-1, keepdim=True)
    return masked_mean(outside.to(found.dtype), real)


def own_clip_fraction(
    policy_loss: Callable[..., Tensor], logprobs: Tensor, old_logprobs: Tensor, mask: Tensor
) -> Tensor | None:
    """Measure the `clip_fraction` of a policy loss with its own ratio and its own range.

    The range is what the arguments `clip` and `clip_high` of the loss are, by default or by `functools.partial`. A loss
    of another library takes part if its range has these names; its ratio is then that of tokens, unless it has an
    attribute `ratio`. A loss that does not clip has a share of 0; None for a loss of which nothing is known.

    policy_loss             of this file, or with the same four arguments
    logprobs, old_logprobs  [B, T] nats
    mask                    [B, T] bool
    returns                 [] share, 0 to 1, without gradient; or None

    >>> up, old, mask = torch.tensor([[0.22, 0.3]]), torch.zeros(1, 2), torch.ones(1, 2).bool()
    >>> own_clip_fraction(partial(clipped_surrogate, clip=0.2, clip_high=0.28), up, old, mask)
    tensor(0.5000)
    """
    base: Any = policy_loss
    while isinstance(base, partial):
        base = base.func
    if base is reinforce:
        return masked_mean(torch.zeros_like(logprobs), mask)
    parameters = inspect.signature(policy_loss).parameters
    bounds = {name: parameters[name].default for name in ("clip", "clip_high") if name in parameters}
    if not isinstance(bounds.get("clip"), (int, float)):
        return None
    ratio = sequence_ratio if base is sequence_surrogate else getattr(base, "ratio", token_ratio)
    return clip_fraction(logprobs, old_logprobs, mask, ratio=ratio, **bounds)


def _clipped(ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None) -> Tensor:
    high = clip if clip_high is None else clip_high
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + high) * advantages)
