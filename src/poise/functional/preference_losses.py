"""Losses that train a policy on feedback directly, from log-probabilities of whole responses.

Most are `dpo_loss` with another argument:

    DPO, soft labels            dpo_loss(..., probability=p)
    conservative DPO (cDPO)     dpo_loss(..., probability=conservative_target(p, flip_rate=e))
    robust DPO (rDPO)           dpo_loss(..., probability=robust_target(p, flip_rate=e))
    MMPO                        dpo_loss(..., probability=margin_target(margin, gamma=g))
    offset or margin DPO        dpo_loss(..., margin=alpha * scaled difference of scores)
    f-DPO                       dpo_loss(..., implied_reward=jensen_shannon_reward)

Each takes sums over the tokens of a response and gives one loss per pair or response; the caller averages.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.functional.implied_rewards import ImpliedReward, reverse_kl_reward
from poise.functional.score_losses import bradley_terry_loss

_NEARLY_CERTAIN = -1e-6  # mean log-probability of a token above which its odds are not resolved any more


class PreferenceLoss(NamedTuple):
    """Losses per pair and the rewards that the policy implies."""

    losses: Tensor  # [B]
    chosen_rewards: Tensor  # [B] without gradient
    rejected_rewards: Tensor  # [B] without gradient


class ResponseLoss(NamedTuple):
    """Losses of responses that were judged one by one, and the rewards that the policy implies."""

    losses: Tensor  # [B]
    rewards: Tensor  # [B] without gradient


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    implied_reward: ImpliedReward = reverse_kl_reward,
    margin: Tensor | float | None = None,
    probability: Tensor | None = None,
) -> PreferenceLoss:
    """Raise the log-ratio of the chosen response to its reference above that of the rejected one.

        -p log sigmoid(h - margin) - (1 - p) log sigmoid(-h - margin)
        h = r_chosen - r_rejected,   r = beta * f'(pi(y) / pi_ref(y)),   f' = log by default

    r is the implicit reward. A policy that equals its reference has loss log 2, if there is no margin.
    Source: Rafailov et al. (arXiv:2305.18290), Eq. 7; f-DPO (arXiv:2309.16240) for other divergences; Amini et al.
    (arXiv:2402.10571) for the margin, which they call offset.

    policy_chosen, policy_rejected  [B] nats, summed over the tokens of the response
    ref_chosen, ref_rejected        [B] nats, the same under the reference
    beta                            > 0, strength of the pull to the reference
    implied_reward                  log-ratios [B] to f' [B]
    margin                          [B], a number or None: by how much the chosen reward must win
    probability                     [B] or None: that the chosen response is the better one; 1 if None
    returns                         (losses [B], chosen_rewards [B], rejected_rewards [B])

    >>> dpo_loss(*torch.tensor([[-12.0], [-15.5], [-13.0], [-14.0]]), beta=0.1).losses
    tensor([0.5759])
    """
    chosen = beta * implied_reward(policy_chosen - ref_chosen)
    rejected = beta * implied_reward(policy_rejected - ref_rejected)
    return _compare(chosen, rejected, margin, probability)


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    probability: Tensor | None = None,
) -> PreferenceLoss:
    """Move the difference of log-ratios to a fixed value, so that sure labels do not drive it to infinity.

        p (h - 1 / (2 beta))^2 + (1 - p) (h + 1 / (2 beta))^2,   h = log-ratio chosen - log-ratio rejected

    Lowest at h = (2p - 1) / (2 beta). Log-ratios are sums over tokens, as in the paper; some libraries take means.
    Source: Azar et al. (arXiv:2310.12036), with tau = beta.

    policy_chosen, policy_rejected  [B] nats, summed over the tokens of the response
    ref_chosen, ref_rejected        [B] nats, the same under the reference
    beta                            > 0, strength of the pull to the reference
    probability                     [B] or None: that the chosen response is the better one; 1 if None
    returns                         (losses [B] nats squared, chosen_rewards [B], rejected_rewards [B])

    >>> zero = torch.zeros(1)
    >>> ipo_loss(torch.tensor([5.0]), zero, zero, zero, beta=0.1).losses
    tensor([0.])
    """
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    difference, target = chosen - rejected, 1 / (2 * beta)
    losses = (difference - target).square()
    if probability is not None:
        losses = probability * losses + (1 - probability) * (difference + target).square()
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())


def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    beta: float,
    margin: Tensor | float,
    probability: Tensor | None = None,
) -> PreferenceLoss:
    """Compare mean log-probabilities per token, without a reference.

        -log sigmoid(r_chosen - r_rejected - margin),   r = beta / |y| * log pi(y)

    Source: SimPO, Meng et al. (arXiv:2405.14734); `margin` is their gamma.

    policy_chosen, policy_rejected  [B] nats, summed over the tokens of the response
    chosen_tokens, rejected_tokens  [B] tokens of the response, at least 1
    beta                            > 0; 2 to 10 there, as rewards are per token
    margin                          [B] or a number, in units of the reward
    probability                     [B] or None: that the chosen response is the better one; 1 if None
    returns                         (losses [B], chosen_rewards [B], rejected_rewards [B])

    >>> lengths = torch.tensor([10.0]), torch.tensor([20.0])
    >>> simpo_loss(torch.tensor([-10.0]), torch.tensor([-20.0]), *lengths, beta=2.0, margin=0.0).losses
    tensor([0.6931])
    """
    chosen, rejected = beta * policy_chosen / chosen_tokens, beta * policy_rejected / rejected_tokens
    return _compare(chosen, rejected, margin, probability)


def odds_ratio_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    beta: float,
    probability: Tensor | None = None,
) -> PreferenceLoss:
    """Raise the odds of the chosen response above those of the rejected one: ORPO without its supervised term.

        -beta log sigmoid(log odds(chosen) - log odds(rejected)),   odds(y) = q / (1 - q),   log q = log pi(y) / |y|

    ORPO is this plus `supervised_loss` of the chosen response; beta is the paper's lambda. Odds of tokens that are
    certain to 1e-6 nats would be infinite soon: from there on their logarithm is a straight line.
    Source: ORPO, Hong et al. (arXiv:2403.07691).

    policy_chosen, policy_rejected  [B] nats, summed over the tokens of the response
    chosen_tokens, rejected_tokens  [B] tokens of the response, at least 1
    beta                            > 0, weight of this term against the supervised one
    probability                     [B] or None: that the chosen response is the better one; 1 if None
    returns                         (losses [B], chosen_rewards [B], rejected_rewards [B]), rewards are log odds

    >>> half = torch.tensor([0.5]).log()
    >>> odds_ratio_loss(half, half, torch.ones(1), torch.ones(1), beta=1.0)[:2]
    (tensor([0.6931]), tensor([0.]))
    """
    chosen, rejected = _log_odds(policy_chosen / chosen_tokens), _log_odds(policy_rejected / rejected_tokens)
    losses, *rewards = _compare(chosen, rejected, None, probability)
    return PreferenceLoss(beta * losses, *rewards)


def supervised_loss(policy_chosen: Tensor, chosen_tokens: Tensor) -> Tensor:
    """Measure how unlikely the chosen response is, to be added with a weight so that its probability does not fall.

        -log pi(y) / |y|

    A preference loss alone may lower both responses, the rejected one more. With DPO this is RPO's term (Pang et al.,
    arXiv:2404.19733), with `odds_ratio_loss` it makes ORPO (arXiv:2403.07691).

    policy_chosen  [B] nats, summed over the tokens of the response
    chosen_tokens  [B] tokens of the response, at least 1
    returns        [B] nats per token

    >>> supervised_loss(torch.tensor([-6.0]), torch.tensor([3.0]))
    tensor([2.])
    """
    return -policy_chosen / chosen_tokens


def kto_baseline(policy: Tensor, ref: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from responses that belong to other prompts: KTO's point of reference.

        max(0, mean over the batch of log pi(y') - log pi_ref(y'))        (no gradient; 0 of no responses)

    y' is a response to another prompt of the data, read as an answer to this one. The mean is over the whole batch,
    so take it before the batch is cut into micro-batches.
    Source: KTO, Ethayarajh et al. (arXiv:2402.01306).

    policy, ref  [M] nats, summed over the tokens of the mismatched response
    returns      [] nats, at least 0

    >>> kto_baseline(torch.tensor([-9.0, -7.0]), torch.tensor([-10.0, -10.0]))
    tensor(2.)
    """
    drift = (policy - ref).detach()
    return drift.mean().clamp(min=0) if drift.numel() else drift.sum()


def kto_loss(
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ResponseLoss:
    """Learn from responses judged one by one: above the baseline if desirable, below it if not.

        desirable    w_d (1 - sigmoid(beta (log-ratio - z)))
        undesirable  w_u (1 - sigmoid(beta (z - log-ratio)))        log-ratio = log pi(y) - log pi_ref(y)

    z is the baseline, through which no gradient flows. A loss saturates where the verdict is met, or missed by far.
    Source: KTO, Ethayarajh et al. (arXiv:2402.01306): lambda_y - v(x, y), where their lambdas are the weights.

    policy, ref  [B] nats, summed over the tokens of the response
    desirable    [B] bool
    baseline     [] nats, from `kto_baseline`
    beta         > 0, strength of the pull to the reference
    returns      (losses [B], rewards [B])

    >>> zero = torch.zeros(2)
    >>> kto_loss(zero, zero, torch.tensor([True, False]), 0.0, beta=0.1, undesirable_weight=2.0).losses
    tensor([0.5000, 1.0000])
    """
    log_ratio = policy - ref
    distance = torch.where(desirable, log_ratio - baseline, baseline - log_ratio)
    missed = torch.sigmoid(-beta * distance)
    losses = torch.where(desirable, desirable_weight * missed, undesirable_weight * missed)
    return ResponseLoss(losses, beta * log_ratio.detach())


def _compare(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float | None, probability: Tensor | None
) -> PreferenceLoss:
    losses = bradley_terry_loss(chosen, rejected, margin, probability)
    return PreferenceLoss(losses, chosen.detach(), rejected.detach())


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(q / (1 - q)) from log q; beyond what is resolved a straight line of the same slope."""
    certain = mean_logprobs.clamp(max=_NEARLY_CERTAIN)
    return certain - (-certain.expm1()).log() + F.relu(mean_logprobs - _NEARLY_CERTAIN) / -_NEARLY_CERTAIN
