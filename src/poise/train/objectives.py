"""What is wanted: which channel is maximised, which are limited, and how the multipliers move.

An objective turns scores into the channels that are trained on (`shape_scores`), mixes their advantages (`mix`), and
learns from the scores of a rollout batch, once per batch (`update`). `groups` names the groups of prompts that it
treats separately; the trainer tells it which rows of a batch belong to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from poise.errors import ConfigError
from poise.feedback.groups import PromptGroup
from poise.functional.constraints import lagrangian_mix_channels
from poise.functional.rewards import penalised_reward
from poise.train.controllers import PID, Controller, ProjectedAscent, ReferenceAscent
from poise.train.limits import (
    MEAN,
    Limit,
    LimitTracker,
    Measure,
    among,
    channel_of,
    cvar,
    per_category,
    rate,
)

__all__ = [
    "MEAN",
    "NO_GROUPS",
    "PID",
    "Controller",
    "Lagrangian",
    "Limit",
    "Measure",
    "Objective",
    "Penalty",
    "ProjectedAscent",
    "ReferenceAscent",
    "Unconstrained",
    "among",
    "cvar",
    "per_category",
    "rate",
]


Groups = Mapping[str, Tensor]  # name of a group of prompts -> [B] bool: which rows belong to it
NO_GROUPS: Groups = MappingProxyType({})


class Objective(Protocol):
    """The contract of an objective; `signs` gives +1 for a maximised channel and -1 for a limited one.

    A step mixes before it updates: the policy is moved by the multipliers as they were before the batch.
    """

    @property
    def signs(self) -> Mapping[str, int]:
        """+1 for a channel that is maximised, -1 for one that is limited."""
        ...

    @property
    def groups(self) -> Sequence[PromptGroup]:
        """The groups of prompts that it wants to tell apart."""
        ...

    def shape_scores(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Mapping[str, Tensor]:
        """The channels [B] that are trained on."""
        ...

    def mix(self, advantages: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Tensor:
        """One advantage [B, ...] from those of the channels."""
        ...

    def update(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> dict[str, float]:
        """Learn from the scores [B] of a rollout batch, once; returns metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        ...


class _Stateless:
    """Objectives without multipliers."""

    groups: Sequence[PromptGroup] = ()

    def update(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class Unconstrained(_Stateless):
    """Maximise one channel and look at nothing else; with `measure=cvar(0.4)`, the mean of its worst 40 %."""

    def __init__(self, channel: str = "reward", measure: Measure = MEAN):
        self.channel, self.measure = channel, measure
        self.signs = {channel: 1}

    def shape_scores(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Mapping[str, Tensor]:
        """The channel alone."""
        return {self.channel: _maximised(channel_of(scores, self.channel, "the objective"), self.measure)}

    def mix(self, advantages: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Tensor:
        """Its advantages."""
        return advantages[self.channel]


class Penalty(_Stateless):
    """Reward shaping with fixed coefficients: maximise w * reward - sum nu_i * cost_i as one channel with one critic.

    One number is the coefficient of channel `cost`. `reward_weight=0` minimises costs alone.
    Source: Safe RLHF (arXiv:2310.12773), the reward-shaping comparison.

    >>> import torch
    >>> scores = {"reward": torch.tensor([3.0]), "cost": torch.tensor([1.0]), "length": torch.tensor([10.0])}
    >>> Penalty({"cost": 2.0, "length": 0.1}).shape_scores(scores)
    {'shaped': tensor([0.])}
    """

    def __init__(self, coefficient: float | Mapping[str, float] = 1.0, *, reward_weight: float = 1.0):
        self.coefficients = dict(coefficient) if isinstance(coefficient, Mapping) else {"cost": coefficient}
        self.reward_weight = reward_weight
        self.signs = {"shaped": 1}

    def shape_scores(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Mapping[str, Tensor]:
        """Reward minus the weighted costs."""
        shaped = self.reward_weight * channel_of(scores, "reward", "the penalty")
        for name, coefficient in self.coefficients.items():
            shaped = penalised_reward(shaped, channel_of(scores, name, "the penalty"), coefficient)
        return {"shaped": shaped}

    def mix(self, advantages: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Tensor:
        """The advantages of the shaped reward."""
        return advantages["shaped"]


class Lagrangian:
    """Maximise reward under limits: min over l >= 0 of max over policies of E[reward] - sum l_i (measure_i - limit_i).

    Advantages are mixed as (A_r - sum l_i A_i) / (1 + sum l_i). The limit of a group of prompts is left out of both
    sums on other prompts: there the reward counts whole. Each multiplier moves once per rollout batch. Give any number
    of limits, and none or as many controllers, in the order of the limits. With `reward=cvar(0.4)` the mean of the
    worst 40 % of the rewards is maximised instead of that of all.
    Source: Safe RLHF (arXiv:2310.12773); the default controller is projected dual ascent, `ReferenceAscent` is theirs.

    >>> objective = Lagrangian(Limit("cost", 0.02, measure=rate()), Limit("length", 200.0), PID(), PID())
    >>> objective.signs
    {'reward': 1, 'cost_rate': -1, 'length': -1}
    """

    def __init__(self, *parts: Limit | Controller, reward: Measure = MEAN):
        limits = tuple(part for part in parts if isinstance(part, Limit)) or (Limit(),)
        controllers = tuple(part for part in parts if not isinstance(part, Limit))
        controllers = controllers or tuple(ProjectedAscent() for _ in limits)
        _check(limits, controllers)
        self.watches = tuple(LimitTracker(*pair) for pair in zip(limits, controllers, strict=True))
        self.reward = reward
        self.signs = {"reward": 1} | {limit.name: -1 for limit in limits}

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits, as given."""
        return tuple(watch.limit for watch in self.watches)

    @property
    def groups(self) -> Sequence[PromptGroup]:
        """The groups that limits speak of, each once."""
        groups = {m.among.name: m.among for m in (limit.measure for limit in self.limits) if m.among is not None}
        return tuple(groups.values())

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier of each limit by its name."""
        return {watch.limit.name: watch.controller.multiplier for watch in self.watches}

    def start_at(self, multipliers: Mapping[str, float]) -> None:
        """Let the multiplier of each limit, by its name, start there; what its controller remembers is forgotten."""
        for watch in self.watches:
            watch.controller = watch.controller.starting_at(multipliers[watch.limit.name])

    def shape_scores(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Mapping[str, Tensor]:
        """The reward, and for each limit the costs whose mean is what it measures."""
        reward = _maximised(channel_of(scores, "reward", "the objective"), self.reward)
        return {"reward": reward} | {watch.limit.name: watch.costs(scores, groups) for watch in self.watches}

    def mix(self, advantages: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> Tensor:
        """(A_r - sum l_i A_i) / (1 + sum l_i), over the limits that speak of the row."""
        costs = {watch.limit.name: advantages[watch.limit.name] for watch in self.watches}
        weights = {
            watch.limit.name: watch.row_multipliers(groups, costs[watch.limit.name].dim()) for watch in self.watches
        }
        return lagrangian_mix_channels(advantages["reward"], costs, weights)

    def update(self, scores: Mapping[str, Tensor], groups: Groups = NO_GROUPS) -> dict[str, float]:
        """Move each multiplier by what is measured; returns multipliers, saturation, excesses and feasibility.

        Of several limits each metric carries its limit's name. A limit of a group keeps its last excess while no prompt
        of the group comes up, and has none, which is not feasible, before the first.
        """
        metrics: dict[str, float] = {}
        for watch in self.watches:
            watch.update(scores, groups)
            metrics |= watch.metrics("" if len(self.watches) == 1 else f"_{watch.limit.name}")
        feasible = all(watch.excess is not None and watch.excess <= 0 for watch in self.watches)
        return metrics | {"feasible": float(feasible)}

    def state_dict(self) -> dict[str, Any]:
        """What moves of each limit."""
        return {"watches": [watch.state_dict() for watch in self.watches]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        for watch, stored in zip(self.watches, state["watches"], strict=True):
            watch.load_state_dict(stored)


def _maximised(reward: Tensor, measure: Measure) -> Tensor:
    """The reward [B] whose mean is the measure of the rewards, where a low reward is the bad end."""
    return -measure.costs(-reward, -reward)


def _check(limits: Sequence[Limit], controllers: Sequence[Controller]) -> None:
    strangers = [part for part in controllers if not hasattr(part, "multiplier")]
    if strangers:
        raise ConfigError(
            f"Lagrangian takes limits and controllers side by side, got a {type(strangers[0]).__name__}: write "
            "Lagrangian(Limit(...), Limit(...)), with * before a sequence of limits"
        )
    names = [limit.name for limit in limits]
    if len(set(names)) < len(names) or any(limit.channel == "reward" for limit in limits):
        raise ConfigError(
            f"limits on {', '.join(names)}: they need distinct channels or measures, and channels other than the "
            "reward, which is maximised"
        )
    if len(controllers) != len(limits) or len({id(each) for each in controllers}) < len(controllers):
        raise ConfigError(
            f"{len(limits)} limits need one controller each, got {len(controllers)}: omit them for projected dual "
            "ascent"
        )
