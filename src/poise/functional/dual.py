"""Prices of limits before anything is trained: the dual of the KL-regularised problem, from samples of the start model.

    max over policies of E[r] - kl KL(policy || start)   subject to   E[c_i] <= d_i
    D(l) = E_x[ kl log E_{y ~ start} exp((r - sum_i l_i c_i) / kl) ] + sum_i l_i d_i,   minimised over l >= 0

D is convex in l. Its gradient is d_i less the mean cost of the policy with prices l, start * exp((r - l c) / kl);
at the minimum a limit that has a price is met exactly. Nothing is trained for it: the samples are weighed anew.
Source: one-shot dualisation (MoCAN), arXiv:2405.19544.

Of K samples of a prompt the weights soon sit on one of them where kl is small beside the sd of the rewards; what
they say is then the best of K, not what is left of the start model. `steadied_dual` raises the weight of the KL until
enough samples count: it prices a policy nearer to the start, which is the one that a few updates reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from poise.errors import ConfigError

Array = NDArray[np.float64]
_ROUNDING = 1e-6  # excess over a limit, in its unit, that counts as met
_FEW_STEPS, _CLOSE = 400, 1e-7
_STEEPER = 1.25  # factor between the weights of the KL that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedSamples:
    """Samples of the start model with their scores, and the limits on these; the limits by index i < M."""

    rewards: Array  # [N, K] of K samples for each of N prompts
    costs: Array  # [M, N, K] in the unit of the limit
    at_most: Array  # [M]
    masks: NDArray[np.bool_]  # [M, N] the prompts over which the limit takes its mean; at least one each

    @classmethod
    def over_all_prompts(cls, rewards: Array, costs: Array, at_most: Array) -> LimitedSamples:
        """Limits that speak of every prompt."""
        return cls(rewards=rewards, costs=costs, at_most=at_most, masks=np.ones(costs.shape[:2], bool))

    def rows(self, chosen: NDArray[np.intp]) -> LimitedSamples:
        """The same of some prompts, as often as they are named."""
        return replace(self, rewards=self.rewards[chosen], costs=self.costs[:, chosen], masks=self.masks[:, chosen])

    @property
    def weighed_costs(self) -> Array:
        """Costs [M, N, K] whose mean over all prompts is that of the limit's own prompts: 0 on the others."""
        shares = self.masks.mean(1, keepdims=True)
        return self.costs * (self.masks / shares)[:, :, None]


class DualStart(NamedTuple):
    """Prices, and what the samples say of the policy that has them."""

    multipliers: Array  # [M]
    excess: Array  # [M] mean cost less limit of that policy; at most 0 where the limit can be met
    is_met: NDArray[np.bool_]  # [M] False: even the largest price does not hold the limit
    effective_samples: float  # of the K of a prompt, on average (Kish): 1 means that one sample is all that is left
    kl: float  # weight of the KL that was used


def dual_value(multipliers: Array, samples: LimitedSamples, *, kl: Array | float) -> float:
    """D(l), in units of reward.

    multipliers  [M] >= 0
    kl           [] or [N] weight of the KL of a response, in reward per nat, > 0

    >>> one = LimitedSamples.over_all_prompts(np.zeros((1, 2)), np.array([[[0.0, 1.0]]]), np.array([0.25]))
    >>> dual_value(np.array([0.0]), one, kl=0.1)
    0.0
    """
    weight = np.broadcast_to(np.asarray(kl, float), samples.rewards.shape[:1])
    gains = logsumexp(_exponents(multipliers, samples, weight), axis=-1) - np.log(samples.rewards.shape[1])
    return float((weight * gains).mean() + multipliers @ samples.at_most)


def constraint_gaps(multipliers: Array, samples: LimitedSamples, *, kl: Array | float) -> Array:
    """The gradient [M] of D: each limit less the mean cost of the policy with these prices.

    >>> one = LimitedSamples.over_all_prompts(np.zeros((1, 2)), np.array([[[0.0, 1.0]]]), np.array([0.25]))
    >>> constraint_gaps(np.array([0.0]), one, kl=1.0)  # half of the samples cost 1
    array([-0.25])
    """
    weight = np.broadcast_to(np.asarray(kl, float), samples.rewards.shape[:1])
    chances = softmax(_exponents(multipliers, samples, weight), axis=-1)
    return samples.at_most - (samples.weighed_costs * chances).sum(-1).mean(-1)


def solve_dual(
    samples: LimitedSamples, *, kl: float, maximum: float = 10.0, mixed: bool = False, begin: Array | None = None
) -> DualStart:
    """The prices from 0 to `maximum` at which D is smallest.

    mixed  for a trainer that mixes advantages as (A_r - sum l_i A_i) / (1 + sum l_i) and leaves the KL its weight: the
           KL of a prompt then weighs kl (1 + sum of the prices of the limits that speak of it), and the prices are
           those that solve the dual with the weights which they make themselves

    Where no price up to the maximum holds a limit, `is_met` is False.

    >>> one = LimitedSamples.over_all_prompts(np.zeros((1, 2)), np.array([[[0.0, 1.0]]]), np.array([0.25]))
    >>> solve_dual(one, kl=1.0).multipliers.round(4)  # log 3: the costly one then has a chance of 1 in 4
    array([1.0986])
    """
    prices = np.zeros(len(samples.at_most)) if begin is None else begin
    weight: Array | float = kl
    for _ in range(_FEW_STEPS if mixed else 1):
        weight = kl * (1 + prices @ samples.masks) if mixed else kl
        before, prices = prices, _smallest(samples, weight, prices, maximum)
        if np.abs(prices - before).max() <= _CLOSE * (1 + np.abs(prices).max()):
            break
    weight = kl * (1 + prices @ samples.masks) if mixed else kl
    excess = -constraint_gaps(prices, samples, kl=weight)
    full = np.broadcast_to(np.asarray(weight, float), samples.rewards.shape[:1])
    chances = softmax(_exponents(prices, samples, full), axis=-1)
    effective = float((1 / (chances**2).sum(-1)).mean())
    tolerance = _ROUNDING * (1 + np.abs(samples.at_most)) * (1e3 if mixed else 1)
    return DualStart(prices, excess, excess <= tolerance, effective, kl)


def steadied_dual(
    samples: LimitedSamples, *, kl: float, maximum: float = 10.0, mixed: bool = False, least_effective: float = 0.5
) -> DualStart:
    """`solve_dual` with the smallest weight of the KL, from `kl` on, at which enough samples count.

    least_effective  share of the K samples of a prompt that must be effective on average, below 1

    Raises ConfigError if `least_effective` is not a share below 1.

    >>> one = LimitedSamples.over_all_prompts(np.zeros((1, 2)), np.array([[[0.0, 1.0]]]), np.array([0.25]))
    >>> steadied_dual(one, kl=0.1).effective_samples.__round__(2)  # no price changes what is met at a chance of 1 in 4
    1.6
    """
    if not 0 <= least_effective < 1:
        raise ConfigError(f"least_effective={least_effective}: give a share of the samples of a prompt below 1")
    found = solve_dual(samples, kl=kl, maximum=maximum, mixed=mixed)
    while found.effective_samples < least_effective * samples.rewards.shape[1]:
        found = solve_dual(samples, kl=_STEEPER * found.kl, maximum=maximum, mixed=mixed, begin=found.multipliers)
    return found


def multiplier_intervals(
    samples: LimitedSamples,
    found: DualStart,
    *,
    maximum: float = 10.0,
    mixed: bool = False,
    level: float = 0.95,
    resamples: int = 100,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Percentile intervals [M] of the prices: prompts drawn again, with the weight of the KL that was used.

    >>> one = LimitedSamples.over_all_prompts(np.zeros((1, 2)), np.array([[[0.0, 1.0]]]), np.array([0.25]))
    >>> low, high = multiplier_intervals(one, solve_dual(one, kl=1.0), resamples=2)  # one prompt: no spread
    >>> bool(low == high)
    True
    """
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = samples.rows(generator.integers(len(samples.rewards), size=len(samples.rewards)))
        if rows.masks.any(1).all():  # a limit's few prompts may all be left out
            again = solve_dual(rows, kl=found.kl, maximum=maximum, mixed=mixed, begin=found.multipliers)
            drawn.append(again.multipliers)
    outside = (1 - level) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside], axis=0) if drawn else (found.multipliers, found.multipliers)
    return low, high


def _exponents(multipliers: Array, samples: LimitedSamples, weight: Array) -> Array:
    """(r - sum_i l_i c_i) / kl, [N, K]."""
    priced = samples.rewards - np.tensordot(multipliers, samples.weighed_costs, axes=1)
    return np.asarray(priced / weight[:, None], dtype=np.float64)


def _smallest(samples: LimitedSamples, kl: Array | float, begin: Array, maximum: float) -> Array:
    solution = minimize(
        lambda prices: dual_value(prices, samples, kl=kl),
        np.clip(begin, 0, maximum),
        jac=lambda prices: constraint_gaps(prices, samples, kl=kl),
        bounds=[(0.0, maximum)] * len(samples.at_most),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500},
    )
    return np.asarray(solution.x, dtype=np.float64)
