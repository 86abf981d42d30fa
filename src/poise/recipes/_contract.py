"""The contract suite: tasks with known optima, the runs, and the table of what they reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from poise.errors import ConfigError
from poise.functional.constraints import PIDGains
from poise.recipes._arms import pool
from poise.run import Run
from poise.train import algorithms
from poise.train.algorithms import Algorithm
from poise.train.objectives import MEAN as THE_MEAN
from poise.train.objectives import PID, Lagrangian, Limit, Measure, Objective, Penalty, Unconstrained, cvar, rate
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds import optimum as exact
from poise.worlds.bandit import Bandit, Floats, three_limits, three_lotteries
from poise.worlds.optimum import Optimum

# Of every record: small enough to leave the optimum where it is, large enough to keep the table soft. Charged in the
# loss, KL(reference || policy) is what is held down, which keeps every arm alive and takes more for the same weight.
KL_COEF, KL_COEF_IN_LOSS = 0.05, 0.02
LR, LR_OF_SOME = QUICK.lr, 0.5 * QUICK.lr  # less where an update sees only some of the episodes, and strays for it
SAMPLES = 144  # of a step
UNLIMITED = 0.4  # share of the steps for tasks without a limit, where no multiplier has to settle
SHARE = 0.95  # of the optimum that every seed must reach
AVERAGED = 0.5  # share of the steps, at the end, whose policies are averaged: the multiplier circles around its optimum
COEFFICIENT = 1.0  # of the penalty

_PAGE = """# Every algorithm under every objective, against a known optimum

Written by `poise run contract --page docs/results/contract.md`. The world is a bandit of three contexts with five arms
each ([worlds](../worlds.md)). The best policy under a limit follows from a linear programme; the reward and the risk
of a learned policy are computed, not sampled. The records are those of `train/algorithms.py`, run by the trainer's own
code on a table of logits: {steps} steps of {samples} samples, {unlimited:.0%} of these where nothing is limited, with
`kl_coef` {kl}, or {kl_in_loss} where KL is charged in the loss, and a learning rate of {lr:g}, or {lr_of_some:g} where
only some of the episodes are learned from. What is measured is the mean policy of the last {averaged:.0%} of the steps.

## What was to be reached

| task | limit | tolerance | best value | under KL | multiplier |
| --- | --- | --- | --- | --- | --- |
{wanted}

The value is the reward; for the penalty it is `reward - {coefficient:g} * cost`. Under KL is the reward of the best
policy with a KL penalty in the reward. With unequal stakes the rewards of the contexts are multiplied by 0.5, 1 and 2,
so that the limit must be spent where it buys most. With lotteries, costs are drawn.

## What was reached

The worst of {seeds} seeds: its share of the best value, then the largest excess over the limit (below 0: none).
**Bold**: a seed missed {share:.0%} of the best value, or the limit by more than its tolerance.

| record | {names} |
| --- | {rule} |
{found}

What the misses mean is told in [worlds](../worlds.md).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An objective on a bandit, the best policy for it, and what counts as reaching it."""

    name: str
    objective: Callable[[], Objective]
    bandit: Bandit
    best: Optimum
    value: Callable[[Bandit, Floats], float]  # what is maximised
    rows: Floats | None = None  # of the measure of risk; None: nothing is limited
    at_most: float = 0.0
    tolerance: float = 0.0  # in the unit of the measure
    unit: str = ""

    @property
    def best_value(self) -> float:
        """What the best policy reaches."""
        return self.value(self.bandit, self.best.policy)

    def excess(self, policy: Floats) -> float:
        """The risk of a policy above the limit; 0 where nothing is limited."""
        return 0.0 if self.rows is None else exact.risk_of(self.bandit, policy, self.rows) - self.at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one run reached."""

    share: float  # of the optimum's value
    excess: float
    multiplier: float  # mean over the steps that are averaged


@cache
def tasks() -> dict[str, Task]:
    """The tasks by name: five on contexts of equal stakes, one where stakes differ."""
    equal, unequal, lucky = three_limits(), three_limits(stakes=(0.5, 1.0, 2.0)), three_lotteries()
    mean, share, tail = exact.mean_rows, exact.rate_rows, partial(exact.cvar_rows, alpha=0.5)
    found = [
        Task(name="unconstrained", objective=Unconstrained, bandit=equal, best=exact.best(equal), value=_reward),
        Task(
            name="penalty",
            objective=partial(Penalty, COEFFICIENT),
            bandit=equal,
            best=exact.best_under_penalty(equal, COEFFICIENT),
            value=_penalised,
        ),
        _limited("mean", equal, mean, THE_MEAN, 0.1, 0.05, gain=1.0),
        _limited("rate", equal, share, rate(), 0.25, 0.02, gain=4.0),
        _limited("cvar", equal, tail, cvar(0.5), 0.5, 0.1, gain=0.5),
        _limited("mean, unequal stakes", unequal, mean, THE_MEAN, 0.1, 0.05, gain=1.0),
        _limited("mean, lotteries", lucky, mean, THE_MEAN, 0.1, 0.05, gain=1.5),
    ]
    return {task.name: task for task in found}


def records() -> dict[str, Algorithm]:
    """Every record of `train/algorithms.py`, by its name there."""
    return {name: value for name, value in vars(algorithms).items() if isinstance(value, Algorithm)}


def records_named(names: str) -> dict[str, Algorithm]:
    """The records that a command line names: A+B, or all."""
    known = records()
    wanted = list(known) if names == "all" else names.upper().replace("-", "_").split("+")
    if strangers := sorted(set(wanted) - set(known)):
        raise ConfigError(f"no algorithm {', '.join(strangers)}: there are {', '.join(known)}; join several by +")
    return {name: known[name] for name in wanted}


def attempt(record: str, task_name: str, seed: int, steps: int) -> Attempt:
    """Train one record on one task; the policy that is measured is the mean of those of the last steps."""
    task = tasks()[task_name]
    steps = steps if task.rows is not None else math.ceil(UNLIMITED * steps)
    algorithm = records()[record]
    trainer = TabularTrainer(
        world=task.bandit,
        algorithm=replace(algorithm, kl_coef=KL_COEF_IN_LOSS if algorithm.kl.in_loss else KL_COEF),
        objective=task.objective(),
        samples_per_step=SAMPLES,
        optimisation=replace(QUICK, steps=steps, lr=LR_OF_SOME if algorithm.selection else LR),
        seed=seed,
    )
    policies, multipliers = [], []
    for index in range(steps):
        metrics = trainer.step_at(index)
        if index >= steps * (1 - AVERAGED):
            policies.append(trainer.probabilities.double().numpy())
            multipliers.append(metrics.get("multiplier", 0.0))
    policy: Floats = np.mean(policies, axis=0)
    return Attempt(
        share=task.value(task.bandit, policy) / task.best_value,
        excess=task.excess(policy),
        multiplier=float(np.mean(multipliers)),
    )


def measure(
    run: Run, chosen: Iterable[str], *, seeds: int, steps: int, workers: int
) -> dict[str, dict[str, list[Attempt]]]:
    """Attempts by record and task; a stage for each record, so that a stopped run continues with the next."""
    cells: dict[str, dict[str, list[Attempt]]] = {}
    with pool(workers) as run_all:
        for record in chosen:
            stage = run.stage(record.lower())
            if not stage.finished:
                orders = [(record, task, seed, steps) for task in tasks() for seed in range(seeds)]
                stage.finish({"attempts": [asdict(found) for found in run_all(attempt, orders)]})
            rows = iter([Attempt(**row) for row in stage.result["attempts"]])
            cells[record] = {task: [next(rows) for _ in range(seeds)] for task in tasks()}
    return cells


def reached(task: Task, attempts: Sequence[Attempt]) -> bool:
    """Whether every seed came within 5 % of the optimum and kept the limit within its tolerance."""
    return all(each.share >= SHARE and each.excess <= task.tolerance for each in attempts)


def page(cells: Mapping[str, Mapping[str, Sequence[Attempt]]], *, seeds: int, steps: int) -> str:
    """The page: what was to be reached, and what was."""
    wanted = [_task_row(task) for task in tasks().values()]
    found = [
        f"| {record} | {' | '.join(_cell(tasks()[t], row[t]) for t in tasks())} |" for record, row in cells.items()
    ]
    return _PAGE.format(
        kl=KL_COEF,
        kl_in_loss=KL_COEF_IN_LOSS,
        lr=LR,
        lr_of_some=LR_OF_SOME,
        steps=steps,
        samples=SAMPLES,
        unlimited=UNLIMITED,
        averaged=AVERAGED,
        coefficient=COEFFICIENT,
        seeds=seeds,
        share=SHARE,
        wanted="\n".join(wanted),
        names=" | ".join(tasks()),
        rule=" | ".join("---" for _ in tasks()),
        found="\n".join(found),
    )


def summary(cells: Mapping[str, Mapping[str, Sequence[Attempt]]]) -> dict[str, Any]:
    """How many cells reached their optimum, and which did not."""
    verdicts = {f"{record}: {name}": reached(tasks()[name], row[name]) for record, row in cells.items() for name in row}
    return {
        "cells": len(verdicts),
        "reached": sum(verdicts.values()),
        "missed": [name for name, good in verdicts.items() if not good],
        "worst_share": min(each.share for row in cells.values() for found in row.values() for each in found),
    }


def _limited(
    name: str,
    bandit: Bandit,
    rows_of: Callable[[Floats], Floats],
    measure_of: Measure,
    at_most: float,
    tolerance: float,
    *,
    gain: float,
) -> Task:
    """A limit with a controller whose gain suits its unit: reward per unit of the measure."""
    rows = rows_of(bandit.costs)
    gains = PIDGains(proportional=gain, integral=0.05 * gain, derivative=gain)
    return Task(
        name=name,
        objective=partial(_lagrangian, Limit("cost", at_most, measure=measure_of), gains),
        bandit=bandit,
        best=exact.best_under_limit(bandit, rows, at_most),
        value=_reward,
        rows=rows,
        at_most=at_most,
        tolerance=tolerance,
    )


def _lagrangian(limit: Limit, gains: PIDGains) -> Lagrangian:
    return Lagrangian(limit, PID(gains=gains))


def _reward(bandit: Bandit, policy: Floats) -> float:
    return bandit.reward_of(policy)


def _penalised(bandit: Bandit, policy: Floats) -> float:
    return bandit.reward_of(policy) - COEFFICIENT * exact.risk_of(bandit, policy, exact.mean_rows(bandit.costs))


def _task_row(task: Task) -> str:
    if task.rows is None:
        return f"| {task.name} | none | | {task.best_value:.3f} | | |"
    soft = exact.regularised(task.bandit, task.rows, task.at_most, kl_weight=lambda price: KL_COEF * (1 + price))
    limit = f"{task.at_most:g} | {task.tolerance:g}"
    return f"| {task.name} | {limit} | {task.best_value:.3f} | {soft.reward:.3f} | {task.best.multiplier:.2f} |"


def _cell(task: Task, attempts: Sequence[Attempt]) -> str:
    text = f"{min(each.share for each in attempts):.1%}"
    if task.rows is not None:
        text += f", {max(each.excess for each in attempts):+.3f}"
    return text if reached(task, attempts) else f"**{text}**"
