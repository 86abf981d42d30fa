"""Reward against costs: mix advantages under multipliers, and move the multipliers.

Constrained problem: maximise E[reward] subject to E[cost_i] <= limit_i. A multiplier is the price of its cost, never
negative, and rises while the mean cost is above the limit. The paper's d is -limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from poise.errors import ConfigError

LARGEST_MULTIPLIER = (
    1e30  # in float32 a sum of such prices, times an advantage, is finite; the reward has long vanished
)


def lagrangian_mix(reward_advantages: Tensor, cost_advantages: Tensor, multiplier: Tensor | float) -> Tensor:
    """Trade the reward against one cost.

        (A_r - l * A_c) / (1 + l)

    l = 0 is plain reinforcement learning on the reward, l -> infinity on minus the cost; the division keeps the
    step size. Beyond `LARGEST_MULTIPLIER` a price counts as that. No gradient flows into the multiplier: it is moved by
    its own rule.
    Source: Safe RLHF (arXiv:2310.12773), PPO-Lag.

    reward_advantages, cost_advantages  [...] higher is better; higher is worse
    multiplier                          number or [], >= 0
    returns                             [...]

    >>> import torch
    >>> lagrangian_mix(torch.tensor([1.0]), torch.tensor([0.5]), multiplier=1.0)
    tensor([0.2500])
    """
    return lagrangian_mix_channels(reward_advantages, {"cost": cost_advantages}, {"cost": multiplier})


def lagrangian_mix_channels(
    reward_advantages: Tensor, cost_advantages: Mapping[str, Tensor], multipliers: Mapping[str, Tensor | float]
) -> Tensor:
    """Trade the reward against any number of costs.

        (A_r - sum_i l_i * A_i) / (1 + sum_i l_i)

    With one channel this is `lagrangian_mix`; with none, the reward's advantages as they are.

    reward_advantages  [...] higher is better
    cost_advantages    channel -> [...] higher is worse
    multipliers        channel -> number, [] or [...] (0 where a cost does not count), >= 0, the same channels
    returns            [...]

    Raises ConfigError unless there is one multiplier for each cost.

    >>> import torch
    >>> costs = {"harm": torch.tensor([1.0]), "length": torch.tensor([4.0])}
    >>> lagrangian_mix_channels(torch.tensor([3.0]), costs, {"harm": 1.0, "length": 0.0})
    tensor([1.])
    """
    if set(cost_advantages) != set(multipliers):
        raise ConfigError(
            f"costs have channels {sorted(cost_advantages)} but multipliers {sorted(multipliers)}: "
            "give one multiplier for each cost"
        )
    prices = {channel: _price(multiplier) for channel, multiplier in multipliers.items()}
    cost = sum(prices[channel] * advantages for channel, advantages in cost_advantages.items())
    return (reward_advantages - cost) / (1 + sum(prices.values()))


def reference_log_ascent(
    multiplier: float, mean_cost: float, limit: float, *, rate: float, maximum: float | None = None
) -> float:
    """Take the step of the paper: gradient ascent on the logarithm of the multiplier.

        log l <- min(log l + rate * l * (mean_cost - limit), log maximum)

    The step is proportional to l itself. A multiplier near 0 hardly moves however unsafe the policy is, one above
    1 / (rate * excess) grows faster than exponentially, and without a maximum it reaches infinity within a few
    steps, where we hold it at `LARGEST_MULTIPLIER`. It never reaches 0 but by underflow, as it does from there with the
    first cost below the limit, and stays at 0. Kept for comparison: prefer `projected_ascent`.
    Source: Safe RLHF (arXiv:2310.12773), Eq. 31: ln l_{k+1} = ln l_k + alpha * l_k * J_C.

    multiplier        > 0
    mean_cost, limit  in the unit of the cost; equal ones leave the multiplier unchanged
    rate              > 0
    maximum           largest multiplier, or None: LARGEST_MULTIPLIER

    >>> round(reference_log_ascent(1.0, mean_cost=2.5, limit=0.0, rate=0.1), 6)
    1.284025
    """
    exponent = rate * multiplier * (mean_cost - limit)
    grown = multiplier * math.exp(exponent) if exponent < 700 else math.inf  # exp(710) overflows
    return min(grown, LARGEST_MULTIPLIER if maximum is None else maximum, LARGEST_MULTIPLIER)


def projected_ascent(multiplier: float, excess: float, *, rate: float, maximum: float = math.inf) -> float:
    """Move the multiplier by the excess of the cost and project it back to where it is allowed to be.

        l <- clip(l + rate * excess, 0, maximum)

    The step does not depend on the multiplier, so it neither stalls near 0 nor runs away, and a slack constraint
    reaches exactly 0: plain reinforcement learning on the reward.

    multiplier  in [0, maximum]
    excess      mean cost minus limit, in the unit of the cost
    rate        > 0, multiplier per unit of excess and step

    >>> projected_ascent(1.0, excess=2.5, rate=0.1), projected_ascent(0.1, excess=-4.0, rate=0.1)
    (1.25, 0.0)
    """
    return min(max(multiplier + rate * excess, 0.0), maximum, LARGEST_MULTIPLIER)


@dataclass(frozen=True, slots=True)
class PIDGains:
    """How strongly the multiplier answers to the excess, to its sum and to a rise of it; all >= 0."""

    proportional: float = 0.0  # multiplier per unit of excess
    integral: float = 0.1  # multiplier per unit of excess and step
    derivative: float = 0.0  # multiplier per unit of rise per step

    def __post_init__(self) -> None:
        if not all(0 <= gain < math.inf for gain in (self.proportional, self.integral, self.derivative)):
            raise ConfigError(
                f"{self} has a negative gain, or one that is not finite: that would reward unsafe responses; use "
                "0 to switch a term off"
            )


@dataclass(frozen=True, slots=True)
class PIDState:
    """What the controller remembers between steps."""

    integral: float = 0.0  # sum of excesses, in the unit of the cost, never negative
    previous_excess: float | None = None  # None before the first step


class PIDStep(NamedTuple):
    """The result of one step of the controller."""

    multiplier: float
    state: PIDState
    is_saturated: bool  # the maximum held the multiplier back: the limit may be out of reach


def pid_step(
    state: PIDState, excess: float, *, gains: PIDGains, maximum: float = math.inf, start: float = 0.0
) -> PIDStep:
    """Set the multiplier by a proportional-integral-derivative controller.

        I <- clip(I + excess, 0, maximum / K_I),   l = clip(s + K_P * excess + K_I * I + K_D * max(rise, 0), 0, maximum)

    The rise is the excess minus that of the step before; only a rise counts, so a cost that falls is not slowed
    down on its way. The bound on the integral is the anti-windup: it never holds more than the multiplier can show,
    so the multiplier comes down as soon as the cost is below its limit. K_I alone is `projected_ascent`.
    Source: Stooke et al. (arXiv:2007.03964), PID-controlled Lagrangian; the bound from above is ours.

    state    of the step before, `PIDState()` at the start
    excess   mean cost minus limit, in the unit of the cost
    maximum  largest multiplier
    start    s, what the multiplier is without an excess: for a controller without an integral, which could hold it

    >>> step = pid_step(PIDState(), 2.0, gains=PIDGains(proportional=0.5, integral=0.25))
    >>> step.multiplier, step.state.integral, step.is_saturated
    (1.5, 2.0, False)
    """
    maximum = min(maximum, LARGEST_MULTIPLIER)
    rise = 0.0 if state.previous_excess is None else max(excess - state.previous_excess, 0.0)
    unbounded = max(state.integral + excess, 0.0)
    integral = min(unbounded, maximum / gains.integral if gains.integral > 0 else LARGEST_MULTIPLIER)
    direct = start + gains.proportional * excess + gains.derivative * rise
    return PIDStep(
        multiplier=min(max(direct + gains.integral * integral, 0.0), maximum),
        state=PIDState(integral=integral, previous_excess=excess),
        is_saturated=direct + gains.integral * unbounded > maximum,
    )


def _price(multiplier: Tensor | float) -> Tensor | float:
    """The multiplier without a gradient, held where a product with it is finite."""
    if isinstance(multiplier, Tensor):
        return multiplier.detach().clamp(max=LARGEST_MULTIPLIER)
    return min(multiplier, LARGEST_MULTIPLIER)
