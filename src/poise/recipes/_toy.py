"""Training on the toy language as a table: what the recipes on limits share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from poise.functional.constraints import PIDGains
from poise.train.algorithms import RLOO
from poise.train.objectives import PID, Objective
from poise.train.tabular import QUICK, TabularTrainer, TabularWorld
from poise.worlds import toy_language as toy
from poise.worlds.bandit import Floats

ALGORITHM = replace(RLOO, samples_per_prompt=8, kl_coef=0.02)
SAMPLES = 448  # of a step: four groups of each request
AVERAGED = 0.5  # share of the steps, at the end, whose policies are averaged: a multiplier circles around its optimum


class Learned(NamedTuple):
    """The mean policy of the last steps, and the mean of the multipliers there by metric."""

    policy: Floats  # [X, A]
    multipliers: dict[str, float]


def learn(world: TabularWorld, objective: Objective, *, steps: int, seed: int) -> Learned:
    """Train a table that begins as the toy language's starting model."""
    trainer = TabularTrainer(
        world=world,
        algorithm=ALGORITHM,
        objective=objective,
        samples_per_step=SAMPLES,
        optimisation=replace(QUICK, steps=steps),
        start=start(),
        seed=seed,
    )
    policies, multipliers = [], []
    for index in range(steps):
        metrics = trainer.step_at(index)
        if index >= steps * (1 - AVERAGED):
            policies.append(trainer.probabilities.double().numpy())
            multipliers.append({name: value for name, value in metrics.items() if name.startswith("multiplier")})
    means = {name: float(np.mean([row[name] for row in multipliers])) for name in multipliers[0]}
    return Learned(np.mean(policies, axis=0), means)


@cache
def start() -> torch.Tensor:
    """Logits [X, A] of the starting model: what the demonstrations teach."""
    return torch.tensor(toy.base_policy(), dtype=torch.float32).log()


def controller(gain: float) -> PID:
    """A controller whose gain suits the unit of its measure: reward per unit."""
    return PID(gains=PIDGains(proportional=gain, integral=0.05 * gain, derivative=gain))
