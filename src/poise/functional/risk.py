"""Tails: how bad the worst cases are, which episodes they are, and how many of them to learn from.

Costs are worse when higher. Of a reward r the tail is that of -r: its value at risk is -value_at_risk(-r, alpha).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from poise.errors import ConfigError


def worst_count(share: float, episodes: int) -> int:
    """Count the episodes in the worst share of them, at least one.

        ceil(share * episodes)

    The share is taken as the decimal it was written as: in floating point the product of 0.28 and 25 is above 7,
    which would make it 8.
    Source: RA-RLHF (arXiv:2501.06911), the ceiling of alpha * B.

    share     in (0, 1]
    episodes  > 0
    returns   1 to episodes

    >>> worst_count(0.28, 25), math.ceil(0.28 * 25)
    (7, 8)
    """
    _check_share(share)
    return max(1, math.ceil(_as_written(share) * episodes))


def soft_risk_count(step: int, *, steps: int, episodes: int, alpha: float, warm_up: int, end: float) -> int:
    """Say how many of the worst episodes to learn from at a step: all at first, the worst share at the end.

        B                                        if m <= n
        ceil(alpha B)                            if m >= ceil(rho M)
        ceil(B max(alpha, 1 - K (m - n))),       K = (1 - alpha) / (ceil(rho M) - n), between

    Learning from the worst alone from the start would not see what a good episode looks like. Ceilings are exact.
    Source: RA-RLHF (arXiv:2501.06911), Eq. 8-10 of the draft, after the soft risk of CeSoR.

    step      m, counted from 0
    steps     M, of the whole training
    episodes  B, of one step
    alpha     share at the end, in (0, 1]; 1 keeps all
    warm_up   n, the last step with all episodes
    end       rho, share of the steps after which only the worst are left, in (0, 1]
    returns   1 to episodes

    >>> settings = {"steps": 194, "episodes": 128, "alpha": 0.4, "warm_up": 30, "end": 0.95}
    >>> [soft_risk_count(step, **settings) for step in (0, 30, 32, 100, 185)]
    [128, 128, 128, 94, 52]
    """
    return _soft_risk(step, steps, episodes, alpha, warm_up, end, number=_as_written)


def reference_soft_risk_count(step: int, *, steps: int, episodes: int, alpha: float, warm_up: int, end: float) -> int:
    """Count as `soft_risk_count`, but in floating point as the authors' code does: one too many now and then.

        ceil(B max(alpha, 1 - K (m - n)))  in float64

    Source: the public RA-RLHF code, `get_current_risk_level`. For comparison; prefer `soft_risk_count`.

    >>> settings = {"steps": 110, "episodes": 100, "alpha": 0.5, "warm_up": 10, "end": 1.0}
    >>> reference_soft_risk_count(100, **settings), soft_risk_count(100, **settings)
    (56, 55)
    """
    return _soft_risk(step, steps, episodes, alpha, warm_up, end, number=float)


def worst(returns: Tensor, count: int) -> Tensor:
    """Mark the episodes with the lowest returns.

        R_i <= the count-th smallest of R

    All that tie with the last one are kept, so there can be more than `count`: which of equals to drop would depend on
    their order in the batch. For a cost, give its negative.
    Source: RA-RLHF (arXiv:2501.06911), Algorithm 1; its code keeps ties as well.

    returns  [B] higher is better
    count    1 to B
    returns  [B] bool

    Raises ConfigError for a count outside 1 to B.

    >>> worst(torch.tensor([0.5, -2.0, 1.0, -2.0]), 1)
    tensor([False,  True, False,  True])
    """
    if not 1 <= count <= len(returns):
        raise ConfigError(f"the worst {count} of {len(returns)} returns: give a count from 1 to their number")
    return returns <= returns.kthvalue(count).values


def evenly_of_rest(returns: Tensor, kept: Tensor, share: float) -> Tensor:
    """Mark a share of the episodes that are not kept, evenly over their ranks.

        the i-th worst of the others, from 0, where floor((i + 1) share) > floor(i share)

    Learning from the worst episodes alone cannot tell whether another response to the same prompt has become the
    better one; a share of the others can. Episodes with equal returns are taken in their order in the batch. The share
    is taken as the decimal it was written as: 0.29 of 100 are 29, though the product of the floats is below.

    returns  [B] higher is better
    kept     [B] bool, never marked
    share    in [0, 1]; 0 marks none, 1 all the others
    returns  [B] bool

    Raises ConfigError for a share outside [0, 1].

    >>> evenly_of_rest(torch.tensor([3.0, 0.0, 1.0, 2.0, 4.0]), torch.tensor([False, True, False, False, False]), 0.5)
    tensor([False, False, False,  True,  True])
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of the rest is {share}: give one from 0 to 1")
    rest = (~kept).nonzero()[:, 0]
    in_order = rest[returns[rest].argsort(stable=True)]
    exact = _as_written(share)
    taken = [math.floor((i + 1) * exact) > math.floor(i * exact) for i in range(len(rest))]
    marked = torch.zeros_like(kept)
    marked[in_order[torch.tensor(taken, dtype=torch.bool, device=rest.device)]] = True
    return marked


def value_at_risk(costs: Tensor, alpha: float) -> Tensor:
    """Find the cost that the worst share of the episodes reaches.

        the ceil(alpha N)-th largest of N costs

    Source: Rockafellar and Uryasev (2000), "Optimization of conditional value-at-risk", for a finite sample.

    costs    [N] higher is worse
    alpha    share, in (0, 1]; 1 gives the smallest cost
    returns  [] in the unit of the costs

    Raises ConfigError without costs, or for an alpha outside (0, 1].

    >>> value_at_risk(torch.tensor([1.0, 5.0, 2.0, 4.0]), 0.5)
    tensor(4.)
    """
    if not len(costs):
        raise ConfigError("value_at_risk needs at least one cost")
    return -(-costs).kthvalue(worst_count(alpha, len(costs))).values


def conditional_value_at_risk(costs: Tensor, alpha: float) -> Tensor:
    """Average the worst share of the costs.

        CVaR = min_t  t + mean(max(c - t, 0)) / alpha,   which t = value at risk attains

    With alpha N a whole number this is the mean of the alpha N largest; otherwise the last of them counts in part.
    alpha = 1 is the mean. In a small sample it is too low on average, the more so the smaller alpha N.
    Source: Rockafellar and Uryasev (2000). The mean of `worst` with its ties is the E[R | R <= q] of RA-RLHF.

    costs    [N] higher is worse
    alpha    share, in (0, 1]
    returns  [] in the unit of the costs

    >>> conditional_value_at_risk(torch.tensor([1.0, 5.0, 2.0, 4.0]), 0.5)
    tensor(4.5000)
    """
    return tail_costs(costs, costs, alpha).mean()


def tail_costs(costs: Tensor, seen: Tensor, alpha: float) -> Tensor:
    """Turn costs into ones whose mean is the conditional value at risk, in value and in policy gradient.

        c'_i = v + max(c_i - v, 0) / alpha,   v = value at risk of the costs seen

    Since v attains the minimum of t + E[max(c - t, 0)] / alpha, its own change with the policy does not matter, and
    grad CVaR = E[ (c - v)^+ / alpha * grad log pi ] = E[ c' * grad log pi ]: feed c' to any policy gradient as the
    cost. Only the tail moves the policy, weighted by its excess over the quantile; the constant v is a baseline, which
    gives c' the value of the CVaR. Weights of 1 / alpha also make for 1 / alpha times the noise. Where more than alpha
    of the episodes have the highest cost of all, as with a flag of 0 and 1, there is no excess and no gradient: limit
    the rate of such a cost.
    Source: Tamar, Glassner and Mannor (arXiv:1404.3862), GCVaR; Chow et al. (arXiv:1512.01629) limit it.

    costs    [B] higher is worse
    seen     [N] costs that say where the quantile is: the same batch, or a window of recent ones
    alpha    share, in (0, 1]; 1 gives the costs themselves, up to rounding
    returns  [B] in the unit of the costs

    >>> costs = torch.tensor([1.0, 5.0, 2.0, 4.0])
    >>> tail_costs(costs, costs, 0.5)
    tensor([4., 6., 4., 4.])
    """
    quantile = value_at_risk(seen, alpha)
    return quantile + (costs - quantile).clamp(min=0) / alpha


def harm_probability(costs: Tensor, slope: float, offset: float) -> Tensor:
    """Map costs to calibrated probabilities of harm; their mean is the expected share of harmful responses.

        sigmoid(slope * c + offset)

    Source: Platt (1999); `statistics.fit_platt` finds slope and offset.

    costs    [...] higher is worse
    returns  [...] 0 to 1

    >>> harm_probability(torch.tensor([0.0, 500.0, -500.0]), slope=2.0, offset=0.0)
    tensor([0.5000, 1.0000, 0.0000])
    """
    return torch.sigmoid(slope * costs + offset)


def is_harm(costs: Tensor) -> Tensor:
    """Mark costs above zero, the boundary between safe and unsafe; their mean is the share of harmful responses.

        1 if c > 0 else 0

    costs    [...] higher is worse
    returns  [...] 0 or 1, of the dtype of the costs

    >>> is_harm(torch.tensor([-1.0, 0.0, 0.5]))
    tensor([0., 0., 1.])
    """
    return (costs > 0).to(costs.dtype)


def first_return(returns: Tensor, mask: Tensor) -> Tensor:
    """Read the return at the first real token of each row.

        G_{b, first t with m_bt}

    Given lambda-returns (advantage plus value) this is how the authors of RA-RLHF rank episodes in their code, where
    the position is the constant 63; it depends on the critic, unlike the sum of the rewards of their paper.
    Source: the public RA-RLHF code, `compute_advantages`.

    returns  [B, T] any unit
    mask     [B, T] bool, with a real token in every row
    returns  [B]

    >>> first_return(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[False, True, True]]))
    tensor([1.])
    """
    return returns.gather(-1, mask.long().argmax(-1, keepdim=True)).squeeze(-1)


def _soft_risk(
    step: int,
    steps: int,
    episodes: int,
    alpha: float,
    warm_up: int,
    end: float,
    *,
    number: Callable[[float], Fraction] | Callable[[float], float],
) -> int:
    _check_share(alpha)
    _check_share(end)
    share, last = number(alpha), math.ceil(number(end) * steps)
    if step <= warm_up:
        return episodes
    if step >= last:
        return math.ceil(share * episodes)
    fall = (1 - share) / (last - warm_up)
    return math.ceil(episodes * max(share, 1 - fall * (step - warm_up)))


def _as_written(share: float) -> Fraction:
    """The decimal that a float was written as: 0.1 is a tenth, though the float is a little more."""
    return Fraction(share).limit_denominator(10**9)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"a share of {share}: give one above 0 and at most 1, where 1 is all")
