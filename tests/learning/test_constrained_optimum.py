"""A world whose constrained optimum is known: on-policy training finds it, and the limit decides what is found.

A response is six tokens. By its id modulo 4 a token is worth nothing, a reward of 1, a reward of 2 at a cost of 1, or
nothing. Without a limit the best response is six tokens of the third kind: reward 12 at cost 6. With at most 2 of cost
the best is two of the third kind and four of the second: reward 8 at cost 2. One unit of cost then buys one unit of
reward, so that the multiplier of the optimum is 1. Avoiding cost alone earns about the 2 of chance, or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
from torch import Tensor

from poise.functional.constraints import PIDGains
from poise.functional.risk import conditional_value_at_risk
from poise.functional.statistics import PlattScale
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.train.algorithms import PPO
from poise.train.objectives import (
    MEAN,
    NO_GROUPS,
    PID,
    Lagrangian,
    Limit,
    Objective,
    Penalty,
    ProjectedAscent,
    ReferenceAscent,
    Unconstrained,
    cvar,
    rate,
)
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.types import Completion, Prompt, Sampling, Scores

TOKENS, LIMIT, TAIL = 6, 2.0, 40
REWARD, COST = (0.0, 1.0, 2.0, 0.0), (0.0, 0.0, 1.0, 0.0)


class TokenCounter:
    """Sums what each token is worth."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        kinds = [[token % 4 for token in completion.token_ids] for completion in completions]
        return [
            Scores(values={"reward": sum(REWARD[kind] for kind in row), "cost": sum(COST[kind] for kind in row)})
            for row in kinds
        ]


def train(objective: Objective, steps: int) -> list[dict[str, float]]:
    """The metrics of each step of PPO on four prompts with eight samples each."""
    policy = Policy(load_backbone("random:llama?layers=1&hidden=32"), lora=None)
    trainer = OnPolicyTrainer(
        policy=policy,
        engine=NativeEngine(policy),
        scorers=[TokenCounter()],
        algorithm=replace(PPO, samples_per_prompt=8, kl_coef=0.1),
        objective=objective,
        prompts=[Prompt.of(letter) for letter in "abcd"],
        prompts_per_step=4,
        sampling=Sampling(max_tokens=TOKENS),
        optimisation=OptimizerSettings(lr=3e-3, critic_lr=3e-2),
    )
    return [trainer.step_at(index) for index in range(steps)]


def mean_of_last(history: list[dict[str, float]], name: str) -> float:
    """The mean of a metric over the last steps; the multiplier circles around its optimum."""
    return sum(row[name] for row in history[-TAIL:]) / TAIL


@cache
def cost_only() -> list[dict[str, float]]:
    return train(Penalty(1.0, reward_weight=0.0), 80)


def test_without_a_limit_the_reward_is_had_at_any_cost():
    history = train(Unconstrained(), 100)
    assert history[0]["cost"] < LIMIT
    assert mean_of_last(history, "reward") > 9.5
    assert mean_of_last(history, "cost") > 2 * LIMIT


def test_minimising_cost_alone_gives_up_the_reward():
    assert mean_of_last(cost_only(), "cost") < 0.7
    assert mean_of_last(cost_only(), "reward") < 4.0


@pytest.mark.parametrize("make", [partial(ProjectedAscent, multiplier=0.5, rate=0.1), PID], ids=["projected", "pid"])
def test_under_a_limit_training_ends_near_the_constrained_optimum(make):
    history = train(Lagrangian(Limit(at_most=LIMIT), make()), 120)
    assert mean_of_last(history, "cost") < LIMIT + 0.5
    assert mean_of_last(history, "reward") > 6.5
    assert mean_of_last(history, "reward") > mean_of_last(cost_only(), "reward") + 2.5
    assert 0.5 < mean_of_last(history, "multiplier") < 2.0


@pytest.mark.parametrize("make", [ReferenceAscent, ProjectedAscent], ids=["reference", "projected"])
def test_the_multiplier_rises_with_every_step_that_violates_the_limit(make):
    controller = make(multiplier=1.0, rate=0.02)
    history = train(Lagrangian(Limit(at_most=-1.0), controller), 12)  # no response is that good
    assert all(row["excess"] > 0 and row["feasible"] == 0 for row in history)
    rising = [1.0, *(row["multiplier"] for row in history)]
    assert rising == sorted(set(rising))
    assert rising[-1] > 1.2


def tail(costs: Tensor) -> float:
    """The mean cost of the worst quarter."""
    return float(conditional_value_at_risk(costs, 0.25))


class Watched(Lagrangian):
    """A Lagrangian that also reports the tail, whatever it limits."""

    def update(self, scores: Mapping[str, Tensor], groups: Mapping[str, Tensor] = NO_GROUPS) -> dict[str, float]:
        return super().update(scores, groups) | {"tail": tail(scores["cost"])}


def steady() -> PID:
    return PID(gains=PIDGains(proportional=2.0, integral=0.05, derivative=1.0), multiplier=1.5)


def test_a_limit_on_the_tail_holds_the_worst_quarter_where_one_on_the_mean_does_not():
    mean, worst = (
        train(Watched(Limit("cost", LIMIT, measure=measure), steady()), steps)
        for measure, steps in ((MEAN, 100), (cvar(0.25), 140))
    )
    assert mean_of_last(mean, "cost") == pytest.approx(LIMIT, abs=0.3)
    assert mean_of_last(mean, "tail") > LIMIT + 1.0
    assert mean_of_last(worst, "tail") < LIMIT + 0.3
    assert mean_of_last(worst, "excess") == pytest.approx(mean_of_last(worst, "tail") - LIMIT)
    assert mean_of_last(worst, "reward") > mean_of_last(cost_only(), "reward") + 1.5


def test_a_limit_on_the_rate_ends_with_that_share_of_harm():
    harm = rate(PlattScale(slope=4.0, offset=-14.0))  # a response is harmful from a cost of 4 on, nearly for sure
    history = train(Lagrangian(Limit("cost", 0.05, measure=harm, scale=10.0), steady()), 140)
    assert mean_of_last(history, "excess") == pytest.approx(0.0, abs=0.02)
    assert mean_of_last(history, "cost") > 1.0  # what is not harmful may cost
    assert mean_of_last(history, "reward") > mean_of_last(cost_only(), "reward") + 2.0
