"""The policy that is kept, chosen on prompts that it never trained on: the best one that meets every limit there.

Batches of training are a poor judge: their prompts are those that are learned from, they are few, and each was sampled
by other weights. Every few updates the current policy (its average, where one is kept) answers the same validation
prompts from the same random streams, so that checks differ by the policy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poise.errors import ConfigError
from poise.functional.statistics import mean
from poise.ranks import current
from poise.train.averaging import put
from poise.train.limits import Limit, group_masks
from poise.train.rollout_batch import score_all
from poise.types import Engine, Estimate, Prompt, Rollout, Sampling, Scorer

REWARD = "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """On what the policy is chosen, and how often it is asked."""

    prompts: Sequence[Prompt]  # none of them is trained on
    every: int = 5  # updates from one check to the next; after the last update there is one in any case
    samples: int = 1  # responses to each prompt
    limits: Sequence[Limit] | None = None  # to be met; None: those that are trained under

    def __post_init__(self) -> None:
        if not self.prompts or self.every < 1 or self.samples < 1:
            raise ConfigError(
                f"validation on {len(self.prompts)} prompts every {self.every} updates with {self.samples} samples: "
                "give prompts, and 1 or more of each"
            )

    def checked_against(self, limits: Sequence[Limit], trained_on: Sequence[Prompt]) -> tuple[Limit, ...]:
        """The limits to be met, `limits` by default.

        Raises ConfigError if a prompt is also trained on, or a limit speaks of a group without prompts here.
        """
        known = {prompt.id for prompt in trained_on}
        if shared := [prompt for prompt in self.prompts if prompt.id in known]:
            raise ConfigError(
                f"{len(shared)} of {len(self.prompts)} validation prompts are trained on, the first "
                f"{shared[0].text[:60]!r}: give prompts of their own, as `data.split_by_prompt` parts them"
            )
        wanted = tuple(limits if self.limits is None else self.limits)
        for limit in wanted:
            group = limit.measure.among
            if group is not None and not any(map(group.contains, self.prompts)):
                raise ConfigError(f"limit on {limit.name!r}: no validation prompt belongs to {group.name!r}")
        return wanted

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the policy is asked after so many updates of all."""
        return step % self.every == 0 or step == steps


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCheck:
    """What a limit measures of a policy on the validation prompts; no value where no answer of its group has one."""

    limit: str
    at_most: float
    value: Estimate | None
    excess: float | None  # times the scale of the limit: in units of reward
    is_met: bool  # the value is at most the limit
    is_sure: bool  # and so is the upper end of its interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCheck:
    """A policy on the validation prompts."""

    step: int  # updates that it had
    reward: Estimate
    limits: tuple[LimitCheck, ...]
    asked: int
    scored: int  # answers that every scorer has a value for; the others are left out

    @property
    def is_feasible(self) -> bool:
        """Whether every limit is met."""
        return all(each.is_met for each in self.limits)

    @property
    def violation(self) -> float:
        """The sum of what is beyond the limits that could be measured, 0 where these are met.

        The largest alone would prefer a policy that misses every limit to one that misses the same one by a hair more.
        """
        return sum(max(0.0, each.excess) for each in self.limits if each.excess is not None)

    @property
    def unmeasured(self) -> int:
        """Limits without a value."""
        return sum(each.value is None for each in self.limits)

    def is_better_than(self, other: Mapping[str, Any]) -> bool:
        """Whether it is kept in place of another: a feasible one before others, then by reward or by violation."""
        if self.is_feasible != other["feasible"]:
            return self.is_feasible
        if self.is_feasible:
            return self.reward.value > other["reward"]["value"]
        return (self.unmeasured, self.violation) < (other["unmeasured"], other["violation"])

    def record(self) -> dict[str, Any]:
        """As the run keeps it."""
        found = {"feasible": self.is_feasible, "violation": self.violation, "unmeasured": self.unmeasured}
        return asdict(self) | found

    def metrics(self) -> dict[str, float]:
        """As a step reports it."""
        found = {f"validation_{each.limit}": each.value.value for each in self.limits if each.value is not None}
        return found | {"validation_reward": self.reward.value, "validation_feasible": float(self.is_feasible)}


def check_policy(rollouts: Sequence[Rollout], limits: Sequence[Limit], *, step: int, asked: int) -> PolicyCheck:
    """Measure reward and limits on scored answers, with intervals over prompts."""
    groups = [limit.measure.among for limit in limits if limit.measure.among is not None]
    prompts = [rollout.prompt for rollout in rollouts]
    masks = group_masks(groups, prompts)
    clusters = [prompt.id for prompt in prompts]
    return PolicyCheck(
        step=step,
        reward=mean([rollout.scores.values[REWARD] for rollout in rollouts], clusters),
        limits=tuple(_check_limit(rollouts, limit, masks) for limit in limits),
        asked=asked,
        scored=len(rollouts),
    )


def _check_limit(rollouts: Sequence[Rollout], limit: Limit, masks: Mapping[str, Tensor]) -> LimitCheck:
    group = limit.measure.among
    inside = [r for i, r in enumerate(rollouts) if group is None or bool(masks[group.name][i])]
    if not inside:
        unknown: dict[str, Any] = {"value": None, "excess": None, "is_met": False, "is_sure": False}
        return LimitCheck(limit=limit.name, at_most=limit.at_most, **unknown)
    scores = torch.tensor([rollout.scores.values[limit.channel] for rollout in inside], dtype=torch.float64)
    costs = limit.measure.costs(scores, scores).double()
    is_share = (limit.measure.least, limit.measure.most) == (0.0, 1.0) or bool(((costs == 0) | (costs == 1)).all())
    value = mean(costs.numpy(), [r.prompt.id for r in inside], unit="share" if is_share else "")
    return LimitCheck(
        limit=limit.name,
        at_most=limit.at_most,
        value=value,
        excess=limit.scale * (value.value - limit.at_most),
        is_met=value.value <= limit.at_most,
        is_sure=value.high is not None and value.high <= limit.at_most,
    )


class ValidatedChoice:
    """The checks so far, and the weights of the best of them."""

    def __init__(self, validation: Validation, limits: Sequence[Limit], trained_on: Sequence[Prompt]):
        self.validation = validation
        self.limits = validation.checked_against(limits, trained_on)
        self.checks: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}  # its record, and its weights

    @torch.no_grad()
    def check(
        self, engine: Engine, scorers: Sequence[Scorer], sampling: Sampling, weights: Mapping[str, Tensor], *, step: int
    ) -> dict[str, float]:
        """Ask the policy, which has these weights, and keep them if they are the best; returns metrics of a step."""
        prompts, samples = self.validation.prompts, self.validation.samples
        completions = engine.generate(prompts, replace(sampling, samples=samples))
        rollouts = score_all(scorers, prompts, completions, samples)
        check = check_policy(rollouts, self.limits, step=step, asked=len(prompts) * samples)
        self.checks.append(check.record())
        if not self.best or check.is_better_than(self.best["check"]):
            copies = {name: weight.detach().clone() for name, weight in weights.items()}
            self.best = {"check": check.record(), "weights": copies}
        return check.metrics()

    def load_into(self, parameters: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Put the best weights into parameters; returns the record of their check, or None before the first."""
        if not self.best:
            return None
        put(self.best["weights"], parameters)
        return dict(self.best["check"])

    def record(self) -> dict[str, Any]:
        """What the run keeps: the check of the policy that was chosen, and all of them."""
        return {"chosen": self.best["check"], "checks": self.checks}

    def state_dict(self) -> dict[str, Any]:
        """The checks and the best weights."""
        return {"checks": self.checks, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Restore them, laid out over the processes as `parameters` are."""
        self.checks, self.best = list(state["checks"]), dict(state["best"])
        if self.best:
            weights = self.best["weights"]
            self.best["weights"] = {name: current().like(p, weights[name]) for name, p in parameters.items()}
