"""The reward that a policy implies when its distance from the reference is measured by a divergence.

If a policy maximises E[reward] - beta * D_f(policy || reference), then reward = beta * f'(u) + const(prompt) with
u = pi(y) / pi_ref(y). The functions give f' as a function of log u, without exponentials where they can be avoided.
The constant is the same for all responses to a prompt, so that losses of pairs do not see it; logged rewards do.
Each function is one choice of `implied_reward` in `preference_losses.dpo_loss`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from poise.errors import ConfigError
from poise.functional.bounded import bounded_exp, bounded_expm1

ImpliedReward = Callable[[Tensor], Tensor]  # log-ratios [B] to rewards [B], in units of beta


def reverse_kl_reward(log_ratios: Tensor) -> Tensor:
    """Imply the reward under KL(policy || reference): plain DPO.

        f'(u) = log u        (the constant 1 is left out)

    Source: Rafailov et al. (arXiv:2305.18290); f-DPO (arXiv:2309.16240).

    log_ratios  [B] nats, log pi(y) - log pi_ref(y), summed over tokens
    returns     [B] in units of beta

    >>> import torch
    >>> reverse_kl_reward(torch.tensor([0.5]))
    tensor([0.5000])
    """
    return log_ratios


def forward_kl_reward(log_ratios: Tensor) -> Tensor:
    """Imply the reward under KL(reference || policy): keeps what the reference says, and is steep where it is lost.

        f'(u) = -1/u = -exp(-log u)

    Value and gradient explode where the policy gives far less than the reference; below -60 nats the value goes on as a
    straight line with the slope exp(60) (`bounded.bounded_exp`), so that nothing overflows in float32.
    Source: f-DPO (arXiv:2309.16240).

    log_ratios  [B] nats, log pi(y) - log pi_ref(y), summed over tokens
    returns     [B] in units of beta, -1 where the policy equals its reference

    >>> import torch
    >>> forward_kl_reward(torch.tensor([0.0]))
    tensor([-1.])
    """
    return -bounded_exp(-log_ratios)


def jensen_shannon_reward(log_ratios: Tensor) -> Tensor:
    """Imply the reward under the Jensen-Shannon divergence: bounded above by log 2, linear far below.

        f'(u) = log(2u / (1 + u)) = log 2 + log sigmoid(log u)

    Source: f-DPO (arXiv:2309.16240).

    log_ratios  [B] nats, log pi(y) - log pi_ref(y), summed over tokens
    returns     [B] in units of beta, 0 where the policy equals its reference

    >>> import torch
    >>> jensen_shannon_reward(torch.tensor([0.0, 60.0]))
    tensor([0.0000, 0.6931])
    """
    # log 2 as softplus(0), so that it has the dtype of the ratios and cancels exactly at 0
    return F.logsigmoid(log_ratios) - F.logsigmoid(log_ratios.new_zeros(()))


def alpha_reward(log_ratios: Tensor, *, alpha: float) -> Tensor:
    """Imply the reward under an alpha-divergence, between the reverse KL (alpha -> 0) and the forward KL (alpha = 1).

        f'(u) = (1 - u^-alpha) / alpha = -expm1(-alpha log u) / alpha

    `alpha` is the paper's. TRL's `f_alpha_divergence_coef` is 1 - alpha: pass 0.7 there for 0.3 here.
    Beyond an exponent of 60 it goes on as a straight line, see `forward_kl_reward`.
    Source: f-DPO (arXiv:2309.16240).

    log_ratios  [B] nats, log pi(y) - log pi_ref(y), summed over tokens
    alpha       above 0, at most 1
    returns     [B] in units of beta, 0 where the policy equals its reference

    Raises ConfigError for an alpha outside (0, 1].

    >>> import torch
    >>> alpha_reward(torch.tensor([-1.2, 0.0]), alpha=0.5)
    tensor([-1.6442,  0.0000])
    """
    if not 0 < alpha <= 1:
        raise ConfigError(
            f"alpha is {alpha}: it must be above 0 and at most 1; 0 is the reverse KL, use reverse_kl_reward"
        )
    return -bounded_expm1(-alpha * log_ratios) / alpha
