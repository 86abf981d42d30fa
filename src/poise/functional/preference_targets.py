"""How sure a label is: probabilities that the first response of a pair is the better one, as targets of a loss.

Each target goes into the argument `probability` of `preference_losses.dpo_loss` or `score_losses.bradley_terry_loss`,
so that a policy and a score model learn from the same labels in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poise.errors import ConfigError


def conservative_target(probability: Tensor, *, flip_rate: float) -> Tensor:
    """Smooth labels of which a share is known to be wrong: the target of conservative DPO.

        p (1 - e) + (1 - p) e

    The implied difference of rewards then stays finite.
    Source: Mitchell, "A note on DPO with noisy preferences and relationship to IPO" (2023): label smoothing.

    probability  [B] that the first response is the better one, as judged
    flip_rate    e, 0 to below 1/2: share of judgements the wrong way round
    returns      [B] 0 to 1

    >>> conservative_target(torch.tensor([1.0]), flip_rate=0.1)
    tensor([0.9000])
    """
    _require_flip_rate(flip_rate)
    return probability * (1 - flip_rate) + (1 - probability) * flip_rate


def robust_target(probability: Tensor, *, flip_rate: float) -> Tensor:
    """Undo label noise in expectation: the target of robust DPO, which may lie outside of 0 to 1.

        (p - e) / (1 - 2 e)

    If labels are flipped with probability e, then the mean of the loss with this target is the loss with clean labels.
    Not bounded below: it goes with a small learning rate or few epochs.
    Source: Chowdhury et al., "Provably Robust DPO" (arXiv:2403.00409).

    probability  [B] that the first response is the better one, as judged
    flip_rate    e, 0 to below 1/2: share of judgements the wrong way round
    returns      [B] -e / (1 - 2e) to (1 - e) / (1 - 2e)

    >>> robust_target(torch.tensor([1.0, 0.0]), flip_rate=0.1)
    tensor([ 1.1250, -0.1250])
    """
    _require_flip_rate(flip_rate)
    return (probability - flip_rate) / (1 - 2 * flip_rate)


def margin_target(margin: Tensor, *, gamma: float) -> Tensor:
    """Turn a difference of quality into the probability that the better response wins: the target of MMPO.

        p = sigmoid(gamma * margin)

    As `probability` of `bradley_terry_loss` or `dpo_loss` it makes gamma * margin the best difference of scores,
    instead of infinity; pairs of equal quality are pulled together. gamma -> infinity is the hard label. gamma
    depends on the unit of the margin, see `matching_gamma`.
    Source: MMPO, Kim et al. (arXiv:2410.03145).

    margin   [B] quality of the first response minus that of the second, in the unit of whoever judged
    gamma    > 0, per unit of the margin
    returns  [B] 0 to 1

    >>> margin_target(torch.tensor([2.0, 0.0]), gamma=1.0)
    tensor([0.8808, 0.5000])
    """
    return torch.sigmoid(gamma * margin)


def matching_gamma(typical_margin: float, *, probability: float = 0.75) -> float:
    """Choose MMPO's gamma so that a typical margin has a given probability.

        log(p / (1 - p)) / margin

    A choice of this library: the paper tunes gamma for each set. Give the median margin of the training pairs.

    typical_margin  > 0, in the unit of whoever judged
    probability     above 1/2, below 1: that the better response of a pair with that margin wins
    returns         per unit of the margin

    Raises ConfigError for a margin not above 0, or a probability outside (0.5, 1).

    >>> round(matching_gamma(2.0), 4)
    0.5493
    """
    if not typical_margin > 0:
        raise ConfigError(
            f"the typical margin is {typical_margin}: it must be above 0; give margins to the comparisons"
        )
    if not 0.5 < probability < 1:
        raise ConfigError(f"probability is {probability}: it must lie above 0.5 and below 1")
    return math.log(probability / (1 - probability)) / typical_margin


def signed_log1p(margin: Tensor) -> Tensor:
    """Shrink margins of either sign: the offset that a pair's chosen response must win by.

        sign(m) log(1 + |m|)

    For margins of 0 and more it is log(1 + m); a negative one says that the pair is ranked the other way.

    margin   [B] quality of the first response minus that of the second, in the unit of whoever judged
    returns  [B] with the sign of the margin

    >>> signed_log1p(torch.tensor([2.0, 0.0, -2.0]))
    tensor([ 1.0986,  0.0000, -1.0986])
    """
    return margin.sign() * margin.abs().log1p()


def constrained_target(
    reward_difference: Tensor, cost_difference: Tensor, multiplier: Tensor | float, *, sharpness: float = 1.0
) -> Tensor:
    """Judge a pair by its reward less the price of its cost: the target of constrained DPO.

        p = sigmoid(sharpness ((r_1 - r_2) - l (c_1 - c_2)))

    A policy that DPO fits to these labels maximises E[r - l c] - (beta / sharpness) KL(policy || reference): for the
    right l the best policy under a limit on the mean cost, and l is found by dual ascent.
    Source: C-DPO, Liu et al. (arXiv:2403.02475), their preference model of r - l c.

    reward_difference  [B] higher is better, first response minus second
    cost_difference    [B] higher is worse
    multiplier         number or [], >= 0
    sharpness          > 0: log-odds per unit of the reward
    returns            [B] 0 to 1

    >>> constrained_target(torch.tensor([1.0]), torch.tensor([2.0]), 0.5)
    tensor([0.5000])
    """
    return torch.sigmoid(sharpness * (reward_difference - multiplier * cost_difference))


def _require_flip_rate(flip_rate: float) -> None:
    if not 0 <= flip_rate < 0.5:
        raise ConfigError(
            f"flip_rate is {flip_rate}: it is a share from 0 to below 0.5; if most labels are wrong, swap them"
        )
