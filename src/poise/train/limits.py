"""What is limited: a measure of a channel, over all prompts or some of them, and how it is watched.

A measure is one function: costs of responses to costs whose mean is the measure, in value and in policy gradient. So
what the multiplier answers to and what the policy is pushed by cannot drift apart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from poise.errors import ConfigError
from poise.feedback.groups import PromptGroup, of_category
from poise.functional.risk import harm_probability, is_harm, tail_costs
from poise.functional.statistics import PlattScale
from poise.train.controllers import Controller
from poise.types import Prompt


class Costs(Protocol):
    """Scores [B] of a batch, and those seen [N] recently (the batch included), to costs [B].

    The mean of the costs of the scores seen is what is measured; the policy gradient of the mean of the costs, taken as
    constants, is the gradient of what is measured.
    """

    def __call__(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Costs [B] in the unit of the measure."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What of a channel is limited.

    `name` tells the limits of one channel apart in metrics; `least` and `most` bound what the measure can be, so that
    a limit of 2 where a share was meant is refused.
    """

    name: str
    costs: Costs
    among: PromptGroup | None = None  # None: all prompts
    least: float = -math.inf
    most: float = math.inf


MEAN = Measure(name="", costs=lambda scores, seen: scores)


# RePO (arXiv:2410.19933) limits this at 0: an answer that is safer than it must be makes up for no harmful one.
RECTIFIED = Measure(name="rectified", costs=lambda scores, seen: scores.clamp(min=0.0), least=0.0)


def rate(calibration: PlattScale | None = None) -> Measure:
    """Measure the share of harmful responses: `Limit("cost", 0.02, measure=rate(...))` is "at most 2 % harmful".

    With the calibration of a cost channel every response counts with its probability of harm; without one, cost above
    0 is harm.

    >>> rate(PlattScale(slope=1.0, offset=0.0)).costs(torch.tensor([0.0, 500.0]), torch.tensor([0.0]))
    tensor([0.5000, 1.0000])
    """
    if calibration is None:
        return _share(is_harm)
    return _share(partial(harm_probability, slope=calibration.slope, offset=calibration.offset))


def _share(harm: Callable[[Tensor], Tensor]) -> Measure:
    return Measure(name="rate", costs=lambda scores, seen: harm(scores), least=0.0, most=1.0)


def cvar(alpha: float) -> Measure:
    """Measure the mean of the worst share `alpha` of the responses; `cvar(1.0)` is the mean.

    Of few responses it is too low on average: give the limit a `window` of several times 1 / alpha. The costs that are
    trained on are up to 1 / alpha times the scores, and the algorithm's `kl.score_clip` bounds them.
    Source: `functional.risk.tail_costs`.

    >>> cvar(0.5).costs(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 5.0, 2.0, 4.0]))
    tensor([4., 6.])
    """
    return Measure(name=f"cvar{100 * alpha:g}", costs=partial(tail_costs, alpha=alpha))


def among(name: str, contains: Callable[[Prompt], bool], measure: Measure = MEAN) -> Measure:
    """Take a measure over the prompts of a group alone.

    >>> harmless = among("harmless", lambda prompt: prompt.tags.get("kind") != "harmful")
    >>> Limit("refusal", 0.05, measure=harmless).name
    'refusal_harmless'
    """
    return replace(measure, among=PromptGroup(name=name, contains=contains))


def per_category(category: str, measure: Measure = MEAN) -> Measure:
    """Take a measure over the prompts whose tag `categories` names this kind of harm alone.

    >>> [Limit("cost", 0.0, measure=per_category(name, cvar(0.1))).name for name in ("theft", "violence")]
    ['cost_cvar10_theft', 'cost_cvar10_violence']
    """
    return replace(measure, among=of_category(category))


@dataclass(frozen=True, slots=True)
class Limit:
    """A measure of a channel over the rollouts shall be at most `at_most`, in the unit of the measure.

    Mixing divides reward and costs by 1 plus the multipliers, but not the KL penalty. A share is small beside a reward,
    so that it takes a large multiplier, under which the reward counts little beside the KL: `scale` is what one unit of
    the measure weighs at multiplier 1, in units of reward, for the policy and for the controller.

    >>> Limit("cost", 0.02, measure=rate())  # doctest: +ELLIPSIS
    Limit(channel='cost', at_most=0.02, ...)
    """

    channel: str = "cost"
    at_most: float = 0.0
    _: KW_ONLY
    measure: Measure = MEAN
    window: int = 0  # episodes remembered; 0 is the current batch alone
    scale: float = 1.0  # what one unit of the measure weighs at multiplier 1

    def __post_init__(self) -> None:
        if not self.measure.least <= self.at_most <= self.measure.most or math.isinf(self.at_most):
            raise ConfigError(
                f"limit on {self.name!r}: at_most is {self.at_most}, but the measured quantity lies between "
                f"{self.measure.least} and {self.measure.most}; a share lies in 0 to 1, so 2 % is 0.02"
            )
        if self.window < 0 or not self.scale > 0:
            raise ConfigError(
                f"limit on {self.name!r}: window is {self.window} and scale {self.scale}; give 0 or a number of "
                "episodes, and a scale above 0"
            )

    @property
    def name(self) -> str:
        """The channel, the measure if it is not the mean, and the group if it is not all prompts."""
        group = self.measure.among.name if self.measure.among else ""
        return "_".join(part for part in (self.channel, self.measure.name, group) if part)


def require_reachable(at_most: float, bound: float, *, margin: float = 0.0) -> None:
    """Raise ConfigError for a limit on a mean cost within `bound` of 0 that no policy meets, or that every one does.

    Training holds the cost a `margin` below the limit.

    >>> require_reachable(0.5, 1.0)
    """
    if -bound < at_most - margin and at_most <= bound:
        return
    which = "every" if at_most > bound else "no"
    raise ConfigError(
        f"limit is {at_most}, less a margin of {margin}: costs lie between {-bound:g} and {bound:g}, so that {which} "
        f"policy meets it; choose one above {margin - bound:g} and at most {bound:g}"
    )


def check_limits(limits: Sequence[Limit], scorers: Sequence[Any]) -> None:
    """Raise ConfigError for a limit beyond what its measure can be of scores of its channel.

    A scorer may say in `bounds` between what the scores of a channel lie: channel -> (least, most).
    """
    bounds = {name: ends for scorer in scorers for name, ends in getattr(scorer, "bounds", {}).items()}
    for limit in limits:
        if limit.channel in bounds:
            ends = torch.tensor(bounds[limit.channel], dtype=torch.float64)[:, None]
            least, most = sorted(float(limit.measure.costs(end, end)) for end in ends)
            if not least <= limit.at_most <= most:
                raise ConfigError(
                    f"limit on {limit.name!r}: at_most is {limit.at_most}, but what is measured of scores between "
                    f"{float(ends[0]):g} and {float(ends[1]):g} lies between {least:g} and {most:g}: choose one there"
                )


def channel_of(scores: Mapping[str, Tensor], name: str, wanted_by: str) -> Tensor:
    """The scores [B] of a channel; raises ConfigError with the channels that there are."""
    if name in scores:
        return scores[name]
    close = get_close_matches(name, scores, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "correct the name, or add a scorer that gives this channel"
    raise ConfigError(f"{wanted_by} needs channel {name!r}, but the scorers give {', '.join(sorted(scores))}: {hint}")


def group_masks(
    groups: Sequence[PromptGroup], prompts: Sequence[Prompt], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Mark the rows [B] whose prompt belongs to each group, by its name.

    >>> prompts = [Prompt.of("How do I pick a lock?", categories=("theft",)), Prompt.of("Hello")]
    >>> group_masks([of_category("theft")], prompts)
    {'theft': tensor([ True, False])}
    """
    return {
        group.name: torch.tensor([bool(group.contains(prompt)) for prompt in prompts], device=device)
        for group in groups
    }


class LimitTracker:
    """One limit at work: the controller of its multiplier, and what has been seen of its channel."""

    def __init__(self, limit: Limit, controller: Controller):
        self.limit, self.controller = limit, controller
        self.window = deque[float](maxlen=limit.window)
        self.excess: float | None = None  # as last measured; None before the first prompt of the group
        self.episodes, self.inside = 0, 0  # of all batches so far, and of those the ones in the group

    def costs(self, scores: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> Tensor:
        """The costs [B] to train on: their mean has the policy gradient of what is measured.

        Costs of a group are divided by its share of the episodes so far, and 0 elsewhere: E[c | group] is
        E[c * 1[group] / P(group)]. The share of the batch alone would move the critic's target with every batch.
        """
        values, inside = self._values(scores), self._inside(groups)
        if inside is None:
            return self.limit.scale * self.limit.measure.costs(values, self._seen(values))
        costs = torch.zeros_like(values)
        if inside.any():
            weight = self.limit.scale * (self.episodes + len(values)) / (self.inside + int(inside.sum()))
            costs[inside] = weight * self.limit.measure.costs(values[inside], self._seen(values[inside]))
        return costs

    def row_multipliers(self, groups: Mapping[str, Tensor], dimensions: int) -> Tensor | float:
        """The multiplier; of a group of prompts one for each row [B, 1, ...], in so many dimensions, and 0 outside."""
        inside = self._inside(groups)
        if inside is None:
            return self.controller.multiplier
        return (self.controller.multiplier * inside).view(-1, *[1] * (dimensions - 1))

    def update(self, scores: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> None:
        """Measure a rollout batch and move the multiplier; a batch without prompts of the group changes nothing."""
        values, inside = self._values(scores), self._inside(groups)
        chosen = values if inside is None else values[inside]
        self.episodes, self.inside = self.episodes + len(values), self.inside + len(chosen)
        if not len(chosen):
            return
        seen = self._seen(chosen.detach().double())
        self.window.extend(seen.tolist())
        measured = float(self.limit.measure.costs(seen, seen).mean())
        self.controller.update(self.limit.scale * measured, self.limit.scale * self.limit.at_most)
        self.excess = measured - self.limit.at_most

    def metrics(self, suffix: str) -> dict[str, float]:
        """The multiplier, whether its maximum holds it, and the excess once there is one."""
        found = {
            f"multiplier{suffix}": self.controller.multiplier,
            f"saturated{suffix}": float(self.controller.is_saturated),
        }
        return found if self.excess is None else found | {f"excess{suffix}": self.excess}

    def state_dict(self) -> dict[str, Any]:
        """The controller, the window and the counts."""
        return {
            "controller": self.controller.state_dict(),
            "window": list(self.window),
            "excess": self.excess,
            "episodes": self.episodes,
            "inside": self.inside,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.controller.load_state_dict(state["controller"])
        self.window.clear()
        self.window.extend(state["window"])
        self.excess, self.episodes, self.inside = state["excess"], state["episodes"], state["inside"]

    def _values(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The channel's scores [B]."""
        return channel_of(scores, self.limit.channel, f"the limit on {self.limit.name!r}")

    def _inside(self, groups: Mapping[str, Tensor]) -> Tensor | None:
        """Which rows [B] the limit speaks of; None: all."""
        group = self.limit.measure.among
        if group is None:
            return None
        if group.name not in groups:
            told = ", ".join(groups) or "no group"
            raise ConfigError(
                f"the limit on {self.limit.name!r} needs the rows of group {group.name!r}, but got {told}: pass "
                "`RolloutBatch.groups`, made of the objective's `groups`"
            )
        return groups[group.name].bool()

    def _seen(self, values: Tensor) -> Tensor:
        """The last episodes [N] in the window, `values` included; the values alone where there is no window."""
        if not self.limit.window:
            return values
        return torch.cat([values.new_tensor(list(self.window)), values])[-self.limit.window :]
