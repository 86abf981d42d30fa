"""Weights for samples of another distribution than the one that learns: an engine's, an older policy's."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.errors import ConfigError


def truncated_importance_weights(
    logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, *, cap: float = 2.0
) -> Tensor:
    """Weigh each token by how much likelier it is under the policy than under what sampled it, but never by more.

        w_t = min(pi(y_t) / mu(y_t), cap)

    E_mu[w_t f(y_t)] = E_pi[f(y_t)] as long as no ratio passes the cap; the cap trades a bias for a bounded variance.
    An engine with kernels, a precision or a sampler of its own is a mu that differs from the trainer's pi with the same
    weights. No gradient flows through the weights.
    Source: truncated importance sampling, Ionides (2008); rho_t = min(rho_bar, pi/mu) of V-trace, Espeholt et al.
    (arXiv:1802.01561), Eq. 1, used per token as in Yao et al., "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training" (2025), cap C = 2 there.

    logprobs          [B, T] nats, of the policy before its update, as the trainer computes them
    sampled_logprobs  [B, T] nats, as the engine said them
    mask              [B, T] bool
    returns           [B, T] in [0, cap], 0 outside the mask

    Raises ConfigError for a cap that is not above 0.

    >>> mask = torch.tensor([[True, True, True, False]])
    >>> ours, engine = torch.tensor([[-1.0, -2.0, -1.0, 0.0]]), torch.tensor([[-1.0, -1.0, -5.0, 0.0]])
    >>> truncated_importance_weights(ours, engine, mask)
    tensor([[1.0000, 0.3679, 2.0000, 0.0000]])
    """
    if not cap > 0:
        raise ConfigError(f"cap is {cap}: the largest weight of a token is above 0, such as 2.0")
    difference = (logprobs - sampled_logprobs).detach()
    return torch.where(mask, difference.clamp(-60, 60).exp().clamp(max=cap), 0.0)


def logprob_gap(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Measure how far two computations of the same log-probabilities are apart, on average over real tokens.

        mean over tokens of |log pi - log mu|

    logprobs, sampled_logprobs  [B, T] nats
    mask                        [B, T] bool
    returns                     [] nats, without gradient

    >>> logprob_gap(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, 0.0]]), torch.tensor([[True, False]]))
    tensor(0.5000)
    """
    gap = torch.where(mask, (logprobs - sampled_logprobs).detach().abs(), 0.0)
    return gap.sum() / mask.sum().clamp(min=1)
