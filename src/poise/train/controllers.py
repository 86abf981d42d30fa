"""How multipliers move: projected dual ascent, a PID controller, and the rule of the Safe RLHF code; and the KL weight.

A controller of a multiplier sees one number per rollout batch, what was measured, and its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from poise.errors import ConfigError, TrainingError
from poise.functional.constraints import (
    LARGEST_MULTIPLIER,
    PIDGains,
    PIDState,
    pid_step,
    projected_ascent,
    reference_log_ascent,
)
from poise.functional.divergences import adapt_kl_coefficient

_LEAST_OF_A_LOGARITHM = 0.01
_LARGEST_KL_GAIN = 5.0  # times the largest clipped error, 0.2, it is 1


class Controller(Protocol):
    """How a multiplier answers to an excess (what was measured minus the limit)."""

    multiplier: float

    @property
    def is_saturated(self) -> bool:
        """True if the maximum holds the multiplier: the limit may be out of reach."""
        ...

    def update(self, mean: float, limit: float) -> None:
        """Answer to what was measured on a rollout batch."""
        ...

    def starting_at(self, multiplier: float) -> Controller:
        """A fresh controller of the same settings, with another multiplier to start from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        ...


@dataclass(slots=True, kw_only=True)
class ProjectedAscent:
    """Dual ascent whose step does not grow with the multiplier: l <- clip(l + rate * excess, 0, maximum)."""

    multiplier: float = 1.0
    rate: float = 0.2
    maximum: float = 10.0

    def __post_init__(self) -> None:
        _check_start(self, self.multiplier, self.maximum, rate=self.rate)

    @property
    def is_saturated(self) -> bool:
        """True if the maximum holds the multiplier."""
        return self.multiplier >= self.maximum

    def update(self, mean: float, limit: float) -> None:
        """Move the multiplier by the excess of a rollout batch."""
        excess = _excess(mean, limit)
        self.multiplier = projected_ascent(self.multiplier, excess, rate=self.rate, maximum=self.maximum)

    def starting_at(self, multiplier: float) -> ProjectedAscent:
        """The same rule from another multiplier."""
        return replace(self, multiplier=multiplier)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the multiplier."""
        self.multiplier = state["multiplier"]


@dataclass(slots=True, kw_only=True)
class PID:
    """A PID controller with anti-windup (Stooke et al. 2020): damps the swings of plain dual ascent.

    A `multiplier` to start from is what the integral starts with, so that the first step moves it and no more. Without
    an integral it is what the multiplier is at no excess.
    """

    gains: PIDGains = field(default_factory=lambda: PIDGains(proportional=0.5, integral=0.1, derivative=0.5))
    maximum: float = 10.0
    multiplier: float = 0.0
    state: PIDState = field(default_factory=PIDState)
    start: float = field(default=0.0, init=False)  # what the multiplier is at no excess and no integral

    def __post_init__(self) -> None:
        _check_start(self, self.multiplier, self.maximum, rate=self.gains.integral)
        if self.gains.integral == 0:
            self.start = self.multiplier
        elif self.state == PIDState():
            self.state = PIDState(integral=self.multiplier / self.gains.integral)

    @classmethod
    def of_gain(cls, gain: float) -> PID:
        """A controller whose gains suit the unit of its measure: `gain` is reward per unit.

        >>> PID.of_gain(4.0).gains
        PIDGains(proportional=4.0, integral=0.2, derivative=4.0)
        """
        return cls(gains=PIDGains(proportional=gain, integral=0.05 * gain, derivative=gain))

    @property
    def is_saturated(self) -> bool:
        """True if the maximum holds the multiplier."""
        return self.multiplier >= self.maximum

    def update(self, mean: float, limit: float) -> None:
        """Move the multiplier by the excess of a rollout batch."""
        step = pid_step(self.state, _excess(mean, limit), gains=self.gains, maximum=self.maximum, start=self.start)
        self.multiplier, self.state = step.multiplier, step.state

    def starting_at(self, multiplier: float) -> PID:
        """The same gains from another multiplier, with nothing remembered."""
        return replace(self, multiplier=multiplier, state=PIDState())

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, the integral and the last excess."""
        return {"multiplier": self.multiplier, **asdict(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.multiplier = state["multiplier"]
        self.state = PIDState(integral=state["integral"], previous_excess=state["previous_excess"])


@dataclass(slots=True, kw_only=True)
class ReferenceAscent:
    """The rule of the Safe RLHF code, for comparison: gradient ascent on log l over a window of episode costs.

    log l <- log l + rate * (mean cost - limit) * l. Its step grows with l, so that it runs away (docs/objectives.md
    has the numbers); `maximum` hides that, and without one it is held at `LARGEST_MULTIPLIER`. `delay` updates are
    skipped first.
    """

    multiplier: float = 1.0
    rate: float = 0.1
    maximum: float | None = 5.0
    delay: int = 0
    updates: int = 0

    def __post_init__(self) -> None:
        maximum = LARGEST_MULTIPLIER if self.maximum is None else self.maximum
        _check_start(self, self.multiplier, maximum, rate=self.rate)
        if self.multiplier == 0:
            raise ConfigError(f"{self}: the logarithm of 0 never changes; start above 0, or use ProjectedAscent")

    @property
    def is_saturated(self) -> bool:
        """True if the maximum holds the multiplier, or where there is none the largest one does."""
        return self.multiplier >= (LARGEST_MULTIPLIER if self.maximum is None else self.maximum)

    def update(self, mean: float, limit: float) -> None:
        """Move the multiplier by the windowed mean cost."""
        excess = _excess(mean, limit)
        self.updates += 1
        if self.updates > self.delay:
            self.multiplier = reference_log_ascent(self.multiplier, excess, 0.0, rate=self.rate, maximum=self.maximum)

    def starting_at(self, multiplier: float) -> ReferenceAscent:
        """The same rule from another multiplier, of at least 0.01: its logarithm has to move."""
        return replace(self, multiplier=max(multiplier, _LEAST_OF_A_LOGARITHM), updates=0)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier and how many updates there were."""
        return {"multiplier": self.multiplier, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.multiplier, self.updates = state["multiplier"], state["updates"]


class KLControl(Protocol):
    """How the weight of the KL penalty answers to a step."""

    def __call__(self, coefficient: float, sequence_kl: float, kept: float) -> float:
        """The next weight; `sequence_kl` is the mean over the share `kept` of the episodes, in nats."""
        ...


def adaptive_kl(target: float = 6.0, gain: float = 0.0128) -> KLControl:
    """Hold the KL of the episodes that are learned from at `target` nats; `gain` is RA-RLHF's batch / horizon."""
    return _kl_control(target, gain, lambda sequence_kl, kept: sequence_kl)


def reference_adaptive_kl(target: float = 6.0, gain: float = 0.0128) -> KLControl:
    """Adapt as the authors' code of RA-RLHF does: the KL of kept episodes divided by the number of all.

    The fewer are kept the smaller the KL looks, and the weight falls; prefer `adaptive_kl`.
    """
    return _kl_control(target, gain, lambda sequence_kl, kept: sequence_kl * kept)


def _kl_control(target: float, gain: float, seen: Callable[[float, float], float]) -> KLControl:
    """A control of the KL weight by what is `seen` of a step's KL and the share of episodes kept."""
    if not 0 < target < math.inf or not 0 <= gain < _LARGEST_KL_GAIN:
        raise ConfigError(
            f"KL control with target={target} and gain={gain}: give a target above 0, in nats per response, and a gain "
            f"from 0 to below {_LARGEST_KL_GAIN:g}, where one step could change the sign of the weight"
        )

    def control(coefficient: float, sequence_kl: float, kept: float) -> float:
        found = seen(sequence_kl, kept)
        if not math.isfinite(found):
            raise TrainingError(f"the KL of a step is {found}: the KL weight {coefficient} cannot be updated from it")
        return min(adapt_kl_coefficient(coefficient, found, target, gain), LARGEST_MULTIPLIER)

    return control


def _excess(mean: float, limit: float) -> float:
    """What was measured less the limit; raises TrainingError if that is no finite number."""
    excess = mean - limit
    if not math.isfinite(excess):
        raise TrainingError(
            f"a multiplier cannot be updated with a measured value of {mean} under a limit of {limit}: check the "
            "scores of the batch for NaN and infinity"
        )
    return excess


def _check_start(controller: Any, multiplier: float, maximum: float, *, rate: float) -> None:
    """Raise ConfigError for a start that is no price, or a rule that could not move one."""
    if not (0 <= multiplier < math.inf and 0 <= rate < math.inf and maximum >= 0):
        raise ConfigError(
            f"{type(controller).__name__}(multiplier={multiplier}, maximum={maximum}) with rate {rate}: start and "
            "rate must be finite and not negative, and the maximum not negative"
        )
