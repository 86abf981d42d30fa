"""The outputs of a score model: names, signs, what they learn from, units and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise.errors import ConfigError
from poise.functional.statistics import PlattScale

_CRITERIA = {"reward": ("helpful",), "cost": ("safe",)}  # any other channel learns from the criterion of its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One output of a score model: its name, its sign, what it learns from, its units and its calibration.

    It learns from judgements on its `criteria`: by default a channel "reward" from "helpful", a channel "cost" from
    "safe", any other from the criterion that has its name. Safety labels set the sign of the first channel where higher
    is worse, unless `reads_labels` says otherwise.

    The value is (raw - shift) / scale; a channel with `higher_is_worse` is never shifted, so that its zero keeps its
    meaning. With a `bound` b it is b tanh(that / b): signs and order stay, but what is clearly safe gains nothing by
    looking safer still; of a channel that `is_probability` it is the logistic function of that, from 0 to 1.
    `calibration` maps the value to a probability (of harm, for a cost). A channel with a `hidden` of its own has a head
    of its own, with a hidden layer that wide or, at 0, none.

    >>> cost = Channel(name="cost", higher_is_worse=True, scale=2.0, bound=0.5)
    >>> cost.value(torch.tensor([-100.0, 0.0, 0.2]))
    tensor([-0.5000,  0.0000,  0.0987])
    >>> cost.criteria, Channel(name="humour").criteria
    (('safe',), ('humour',))
    """

    name: str
    higher_is_worse: bool = False
    shift: float = 0.0
    scale: float = 1.0
    bound: float | None = None
    calibration: PlattScale | None = None
    hidden: int | None = None
    criteria: tuple[str, ...] = ()
    reads_labels: bool | None = None  # None: the first channel where higher is worse does
    is_probability: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "criteria", tuple(self.criteria) or _CRITERIA.get(self.name, (self.name,)))
        if self.higher_is_worse and self.shift != 0:
            raise ConfigError(
                f"channel {self.name!r}: a cost is scaled but never shifted, its zero divides safe from unsafe"
            )
        if self.bound is not None and not self.bound > 0:
            raise ConfigError(f"channel {self.name!r}: bound is {self.bound}; give a number above 0, or None for none")
        if self.is_probability and self.bound is not None:
            raise ConfigError(
                f"channel {self.name!r}: a probability lies between 0 and 1, leave out bound={self.bound}"
            )

    def value(self, raw: Tensor) -> Tensor:
        """Raw scores in the channel's units."""
        scaled = (raw - self.shift) / self.scale
        if self.is_probability:
            return torch.sigmoid(scaled)
        return scaled if self.bound is None else self.bound * torch.tanh(scaled / self.bound)

    @property
    def range(self) -> tuple[float, float] | None:
        """Between what its values lie, or None where nothing bounds them."""
        if self.is_probability:
            return 0.0, 1.0
        return None if self.bound is None else (-self.bound, self.bound)

    @property
    def sign(self) -> int:
        """-1 where higher is worse, else +1."""
        return -1 if self.higher_is_worse else 1


REWARD = Channel(name="reward")
COST = Channel(name="cost", higher_is_worse=True)
