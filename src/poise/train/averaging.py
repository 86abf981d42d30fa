"""An average of what training moves, over its updates: it swings less than the last weights do.

Under a limit policies circle around the optimum with their multipliers, and the last one is wherever the circle was
left. A rule says which updates count; `RunningAverage` holds what it needs, and is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from poise.errors import ConfigError, RunError
from poise.functional.averages import decayed_mean, mean_of_window
from poise.ranks import current

Weights = Mapping[str, Tensor]


class AverageRule(Protocol):
    """Which updates an average is taken over, and what has to be kept for it."""

    def keep(self, kept: Sequence[Weights], new: Weights, seen: int) -> list[Weights]:
        """What is kept after one more update; `seen` were taken in before."""
        ...

    def mean(self, kept: Sequence[Weights]) -> dict[str, Tensor]:
        """The average of what is kept."""
        ...


@dataclass(frozen=True, slots=True)
class DecayedAverage:
    """The mean of all updates, each weighing `decay` times the one after it; one copy of the weights is kept.

    It reaches back about 1 / (1 - decay) updates.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"an average with decay {self.decay}: give 0 (the last weights) to below 1, such as 0.9")

    def keep(self, kept: Sequence[Weights], new: Weights, seen: int) -> list[Weights]:
        """The new average."""
        if not kept:
            return [new]
        return [{name: decayed_mean(kept[0][name], x, seen=seen, decay=self.decay) for name, x in new.items()}]

    def mean(self, kept: Sequence[Weights]) -> dict[str, Tensor]:
        """The average itself."""
        return dict(kept[0])


@dataclass(frozen=True, slots=True)
class MeanOfLast:
    """The mean of the last `updates`, or of all where there were fewer; as many copies of the weights are kept."""

    updates: int

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ConfigError(f"an average of the last {self.updates} updates: give 1 (the last weights) or more")

    def keep(self, kept: Sequence[Weights], new: Weights, seen: int) -> list[Weights]:
        """The window with the new weights at its end."""
        return [*kept, new][-self.updates :]

    def mean(self, kept: Sequence[Weights]) -> dict[str, Tensor]:
        """The mean of the window."""
        return {name: mean_of_window([weights[name] for weights in kept]) for name in kept[0]}


class RunningAverage:
    """The average of tensors by name under a rule; a number is the decay of `DecayedAverage`.

    Narrow tensors (bf16) are averaged in float32, in which small steps are not lost. Of an adapter the two factors are
    averaged, each by itself: the mean of their products is no adapter of the same rank.

    >>> average = RunningAverage(MeanOfLast(2))
    >>> for x in (1.0, 2.0, 4.0):
    ...     average.add({"weight": torch.tensor([x])})
    >>> average.mean
    {'weight': tensor([3.])}
    """

    def __init__(self, rule: AverageRule | float):
        self.rule: AverageRule = DecayedAverage(rule) if isinstance(rule, int | float) else rule
        self.seen = 0
        self.kept: list[Weights] = []

    @torch.no_grad()
    def add(self, tensors: Weights) -> None:
        """Take in the tensors as they are after an update."""
        copies = {name: _wide(tensor.detach()) for name, tensor in tensors.items()}
        self.kept = self.rule.keep(self.kept, copies, self.seen)
        self.seen += 1

    @property
    @torch.no_grad()
    def mean(self) -> dict[str, Tensor]:
        """The average of what was taken in; empty before the first update."""
        return self.rule.mean(self.kept) if self.kept else {}

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and how many updates were seen."""
        return {"rule": str(self.rule), "seen": self.seen, "kept": [dict(weights) for weights in self.kept]}

    def load_state_dict(self, state: Mapping[str, Any] | None, tensors: Weights) -> None:
        """Restore it, bit for bit, laid out over the processes as `tensors` of the same names are.

        Raises RunError for a state that was gathered under another rule, or under none.
        """
        if state is None or state["rule"] != str(self.rule):
            raise RunError(
                f"the checkpoint has {'no average' if state is None else state['rule']} of the weights, and "
                f"{self.rule} is asked for: go on with the settings that the run began with, or begin a new run"
            )
        self.seen = state["seen"]
        self.kept = [
            {name: current().like(x, weights[name]) for name, x in tensors.items()} for weights in state["kept"]
        ]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


@torch.no_grad()
def put(weights: Weights, parameters: Weights) -> None:
    """Copy weights into parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


@contextmanager
def holding(weights: Weights, parameters: Weights) -> Iterator[None]:
    """Let parameters have other values inside the block, and bit for bit their own again after it."""
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    put(weights, parameters)
    try:
        yield
    finally:
        put(own, parameters)
