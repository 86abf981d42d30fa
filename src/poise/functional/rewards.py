"""From one score per response to rewards per token, and scores on a common scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poise.errors import ConfigError
from poise.functional.divergences import kl_k1
from poise.functional.masked import last_index


def shape_rewards(
    score: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    sign: Literal[1, -1],
    clip: float | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] | None = kl_k1,
    token_scores: Tensor | None = None,
) -> Tensor:
    """Put the score on the last real token and a KL penalty on every token.

    Where parts of a response have scores of their own (`token_scores`), each stands on its token, and the last token
    has what the score says beyond their sum.

        r_t = -sign * kl_coef * k(log pi, log pi_ref)_t + score * [t is last],   clipped to [-clip, clip]

    `sign` is +1 for a channel that is maximised and -1 for one that is limited: the penalty then lowers the reward
    and raises the cost, so after (A_r - l * A_c) / (1 + l) the KL weight is kl_coef * (1 + l) / (1 + l) = kl_coef
    whatever the multiplier l is. The clip bounds the SUM of score and penalty. Positions outside the mask hold 0.
    `divergence` is the estimator k: `divergences.kl_k1`, the log-ratio, `kl_k2`, `kl_k3`, or None for no penalty.
    Source: Safe RLHF (arXiv:2310.12773), PPO-Lag; the paper splits the KL reward in two halves, which is this
    function with half the coefficient.

    score                   [B] of the response, in the unit of the channel
    logprobs, ref_logprobs  [B, T] nats, of the policy that sampled and of the reference
    mask                    [B, T] bool, True on response tokens, padded on either side
    token_scores            [B, T] or None: parts of the score, 0 where there is none
    returns                 [B, T] in the unit of the score

    Raises ConfigError for a sign other than +1 and -1.

    >>> zeros, ones = torch.zeros(1, 3), torch.ones(1, 3)
    >>> mask = torch.tensor([[True, True, False]])
    >>> shape_rewards(torch.tensor([2.0]), ones, zeros, mask, kl_coef=0.5, sign=1)
    tensor([[-0.5000,  1.5000,  0.0000]])
    """
    if sign not in (1, -1):
        raise ConfigError(f"sign is {sign}: give +1 for a channel that is maximised, -1 for one that is limited")
    rewards = on_last_token(score, mask) if token_scores is None else on_tokens(score, token_scores, mask)
    if divergence is not None:
        rewards = rewards - sign * kl_coef * divergence(logprobs, ref_logprobs)
    if clip is not None:
        rewards = rewards.clamp(-clip, clip)
    return rewards.masked_fill(~mask.bool(), 0)


def on_last_token(score: Tensor, mask: Tensor) -> Tensor:
    """Put the score of each response on its last real token, and 0 on every other.

        r_t = score * [t is last]

    score    [B] any unit
    mask     [B, T] bool, padded on either side; a row without a real token gets its score nowhere
    returns  [B, T] in the unit of the score

    >>> on_last_token(torch.tensor([2.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 2., 0.]])
    """
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(positions == last_index(mask).unsqueeze(-1), score.unsqueeze(-1), 0.0)


def on_tokens(score: Tensor, token_scores: Tensor, mask: Tensor) -> Tensor:
    """Put parts of a score on their tokens and the rest of it on the last real token.

        r_t = part_t + (score - sum of parts) * [t is last]

    Source: fine-grained RLHF (arXiv:2306.01693), rewards at the ends of segments.

    score         [B] of the response
    token_scores  [B, T] in the same unit
    mask          [B, T] bool, padded on either side; parts outside it count for nothing
    returns       [B, T], whose sum is the score wherever there is a real token

    >>> mask = torch.tensor([[True, True, True]])
    >>> on_tokens(torch.tensor([2.0]), torch.tensor([[0.5, 0.0, 0.0]]), mask)
    tensor([[0.5000, 0.0000, 1.5000]])
    """
    parts = token_scores.masked_fill(~mask.bool(), 0)
    return parts + on_last_token(score - parts.sum(-1), mask)


def penalised_reward(reward: Tensor, cost: Tensor, coefficient: float) -> Tensor:
    """Fold the cost into the reward with a fixed weight: the reward-shaping baseline.

        reward - coefficient * cost

    Not divided by 1 + coefficient, so a large coefficient also makes for large rewards (and meets their clip).
    Source: Safe RLHF (arXiv:2310.12773), the reward-shaping ablation R_nu = R - nu C.

    reward, cost  [B] higher is better; higher is worse
    returns       [B]

    >>> penalised_reward(torch.tensor([2.5]), torch.tensor([-0.75]), coefficient=2.0)
    tensor([4.])
    """
    return reward - coefficient * cost


def overlong_penalty(lengths: Tensor, *, max_tokens: int, buffer: int, factor: float = 1.0) -> Tensor:
    """Punish responses that come close to the length limit, the closer the more.

        -factor * clip((length - (max_tokens - buffer)) / buffer, 0, 1)

    0 up to the last `buffer` tokens, then in a straight line down to -factor at the limit, so that a response which was
    cut off does not look as good as one that ended by itself. It is added to the reward.
    Source: DAPO (arXiv:2503.14476), soft overlong punishment.

    lengths  [B] tokens of the response
    returns  [B] in the unit of the reward, -factor to 0

    Raises ConfigError unless `buffer` is from 1 to `max_tokens`.

    >>> overlong_penalty(torch.tensor([10, 14, 20, 30]), max_tokens=20, buffer=8)
    tensor([-0.0000, -0.2500, -1.0000, -1.0000])
    """
    if not 0 < buffer <= max_tokens:
        raise ConfigError(f"buffer is {buffer} tokens: it must be at least 1 and at most max_tokens ({max_tokens})")
    return -factor * ((lengths - (max_tokens - buffer)) / buffer).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and variance of all scores seen so far; updates return a new record."""

    mean: Tensor | float = 0.0  # a number or a tensor of shape [], unit of the score
    variance: Tensor | float = 1.0  # a number or a tensor of shape [], unit of the score squared
    count: int = 0  # scores seen


def update_moments(state: RunningMoments, batch: Tensor) -> RunningMoments:
    """Merge a batch of scores: mean and population variance of everything seen, however it was cut into batches.

        M = n_a v_a + n_b v_b + (mean_b - mean_a)^2 n_a n_b / n,   v = M / n,   n = n_a + n_b

    Source: Chan, Golub and LeVeque (1979), the parallel form of Welford's update.

    batch  [...] scores of any shape; an empty one changes nothing

    >>> moments = update_moments(RunningMoments(), torch.tensor([1.0, 2.0, 4.0, 7.0]))
    >>> moments.mean, moments.variance, moments.count
    (tensor(3.5000), tensor(5.2500), 4)
    """
    return _merge(state, batch, _population_variance(batch)) if batch.numel() else state


def reference_update_moments(state: RunningMoments, batch: Tensor) -> RunningMoments:
    """Merge a batch as the Safe RLHF reference implementation does, for comparison with its checkpoints.

    The variance of the batch is the unbiased one (divided by n - 1) but enters with weight n, so the result depends
    on how the scores were cut into batches and is no variance of all of them. A batch of one, which makes the
    reference NaN, counts as variance 0. Prefer `update_moments`.

    batch  [...] scores of any shape; an empty one changes nothing

    >>> reference_update_moments(RunningMoments(), torch.tensor([1.0, 2.0, 4.0, 7.0])).variance
    tensor(7.)
    """
    return _merge(state, batch, _unbiased_variance(batch)) if batch.numel() else state


def ema_moments(state: RunningMoments, batch: Tensor, *, momentum: float = 0.9) -> RunningMoments:
    """Follow mean and variance by an exponential moving average, which forgets old scores.

        mean <- momentum * mean + (1 - momentum) * mean_b;   likewise the variance, with the unbiased one of the batch

    The start (mean 0, variance 1) fades over about 1 / (1 - momentum) batches. A batch of one leaves the variance.
    Source: Safe RLHF reference implementation, the EMA normaliser (momentum 0.9).

    batch  [...] scores of any shape; an empty one changes nothing

    >>> ema_moments(RunningMoments(), torch.tensor([1.0, 2.0, 4.0, 7.0])).mean
    tensor(0.3500)
    """
    if not batch.numel():
        return state
    variance = _unbiased_variance(batch) if batch.numel() > 1 else state.variance
    return RunningMoments(
        mean=momentum * state.mean + (1 - momentum) * batch.mean(),
        variance=momentum * state.variance + (1 - momentum) * variance,
        count=state.count + batch.numel(),
    )


def affine(x: Tensor, moments: RunningMoments, *, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale scores to mean 0 and variance 1: right for a reward, which has no natural zero.

        (x - mean) / (sqrt(variance) + epsilon)

    x        [...] scores
    returns  [...] no unit

    >>> affine(torch.tensor([6.0]), RunningMoments(mean=2.0, variance=4.0))
    tensor([2.])
    """
    return translate(x, moments) / _unit(moments, epsilon)


def scale(x: Tensor, moments: RunningMoments, *, epsilon: float = 1e-8) -> Tensor:
    """Scale scores without a shift: right for a cost, whose zero is the boundary between safe and unsafe.

        x / (sqrt(variance) + epsilon)

    x        [...] scores
    returns  [...] with the sign of x

    >>> scale(torch.tensor([6.0]), RunningMoments(mean=2.0, variance=4.0))
    tensor([3.])
    """
    return x / _unit(moments, epsilon)


def translate(x: Tensor, moments: RunningMoments) -> Tensor:
    """Shift scores to mean 0 and keep their unit.

        x - mean

    x        [...] scores
    returns  [...] in the unit of x

    >>> translate(torch.tensor([6.0]), RunningMoments(mean=2.0, variance=4.0))
    tensor([4.])
    """
    return x - moments.mean


def _unit(moments: RunningMoments, epsilon: float) -> Tensor | float:
    """The running standard deviation plus epsilon; 1 where that is 0, to avoid division by it."""
    unit = moments.variance**0.5 + epsilon
    return torch.where(unit > 0, unit, 1.0) if isinstance(unit, Tensor) else unit or 1.0


def _merge(state: RunningMoments, batch: Tensor, variance: Tensor) -> RunningMoments:
    """Merge two groups of scores, of which the second has the given variance with weight n."""
    added = batch.numel()
    count = state.count + added
    difference = batch.mean() - state.mean
    squares = state.variance * state.count + variance * added + difference**2 * (state.count * added / count)
    return RunningMoments(mean=state.mean + difference * (added / count), variance=squares / count, count=count)


def _population_variance(batch: Tensor) -> Tensor:
    return (batch - batch.mean()).square().mean()


def _unbiased_variance(batch: Tensor) -> Tensor:
    return (batch - batch.mean()).square().sum() / max(1, batch.numel() - 1)
