"""Every algorithm under every objective, held against a best policy that is known.

    bandit -> each record x each objective x seeds -> tables

A bandit whose best policy follows from a linear programme (`poise.worlds`) is learned by each record of
`train/algorithms.py` under each objective of `train/objectives.py`, by the trainer's own code on a table of logits. A
cell holds what the worst seed reached of the optimum, or by how much the worst seed missed its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from poise.experiment import Claim, MethodCard, Metric, Study, Trial, recipe
from poise.train import algorithms
from poise.train.algorithms import Algorithm
from poise.train.objectives import MEAN, PID, Lagrangian, Limit, Measure, Objective, Penalty, Unconstrained, cvar, rate
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds import optimum as exact
from poise.worlds.bandit import Bandit, Floats, three_limits, three_lotteries
from poise.worlds.optimum import Optimum

CARD = MethodCard(
    title="Every algorithm under every objective, against a known optimum",
    paper="none: the optima are exact",
    feedback="exact gold",
    form="rewards and costs",
    signal="the scores",
    optimiser="every record of train/algorithms.py",
    regulariser="KL",
    constraint="none, a penalty, a limit on mean, rate or tail",
    model="a table",
    data="a bandit of three contexts and five arms",
)
# Of every record: small enough to leave the optimum where it is, large enough to keep the table soft. Charged in the
# loss, KL(reference || policy) is what is held down, which keeps every arm alive and takes more for the same weight.
KL_COEF, KL_COEF_IN_LOSS = 0.05, 0.02
LR, LR_OF_SOME = QUICK.lr, 0.5 * QUICK.lr  # less where an update sees only some of the episodes, and strays for it
SAMPLES = 144  # of a step
UNLIMITED = 0.4  # share of the steps for tasks without a limit, where no multiplier has to settle
SHARE = 0.95  # of the optimum that counts as reaching it
RECORDS = {name: value for name, value in vars(algorithms).items() if isinstance(value, Algorithm)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An objective on a bandit, the best policy for it, and what counts as reaching it."""

    objective: Callable[[], Objective]
    bandit: Bandit
    best: Optimum
    price: float = 0.0  # of cost in what is maximised
    rows: Floats | None = None  # of the measure of risk; None: nothing is limited
    at_most: float = 0.0
    tolerance: float = 0.0  # in the unit of the measure

    def value(self, policy: Floats) -> float:
        """What is maximised: the reward, less the penalty."""
        mean_cost = exact.risk_of(self.bandit, policy, exact.mean_rows(self.bandit.costs)) if self.price else 0.0
        return self.bandit.reward_of(policy) - self.price * mean_cost

    def excess(self, policy: Floats) -> float:
        """The risk of a policy above the limit; 0 where nothing is limited."""
        return 0.0 if self.rows is None else exact.risk_of(self.bandit, policy, self.rows) - self.at_most


def limited(bandit: Bandit, rows: Floats, measure: Measure, at_most: float, tolerance: float, gain: float) -> Task:
    """A limit with a controller whose gain suits its unit: reward per unit of the measure."""
    limit, best = Limit("cost", at_most, measure=measure), exact.best_under_limit(bandit, rows, at_most)
    objective = lambda: Lagrangian(limit, PID.of_gain(gain))  # noqa: E731
    return Task(objective=objective, bandit=bandit, best=best, rows=rows, at_most=at_most, tolerance=tolerance)


@cache
def tasks() -> dict[str, Task]:
    """The tasks by name: five on contexts of equal stakes, one where stakes differ, one where costs are drawn."""
    equal, unequal, lucky = three_limits(), three_limits(stakes=(0.5, 1.0, 2.0)), three_lotteries()
    penalty = partial(Penalty, 1.0)
    return {
        "unconstrained": Task(objective=Unconstrained, bandit=equal, best=exact.best(equal)),
        "penalty": Task(objective=penalty, bandit=equal, best=exact.best_under_penalty(equal, 1.0), price=1.0),
        "mean": limited(equal, exact.mean_rows(equal.costs), MEAN, 0.1, 0.05, gain=1.0),
        "rate": limited(equal, exact.rate_rows(equal.costs), rate(), 0.25, 0.02, gain=4.0),
        "cvar": limited(equal, exact.cvar_rows(equal.costs, alpha=0.5), cvar(0.5), 0.5, 0.1, gain=0.5),
        "mean, unequal stakes": limited(unequal, exact.mean_rows(unequal.costs), MEAN, 0.1, 0.05, gain=1.0),
        "mean, lotteries": limited(lucky, exact.mean_rows(lucky.costs), MEAN, 0.1, 0.05, gain=1.5),
    }


@recipe(CARD, quick={"steps": 20, "seeds": 1}, seeds=5)
def contract(*, steps: int = 200) -> Study:
    """Train every algorithm under every objective where the optimum is known, and print the tables.

    Args:
        steps: updates per run.
    """
    found = tasks()
    excess = partial(
        Metric, summary="largest", table="Largest excess over the limit (below 0: none), and its tolerance"
    )
    return Study(
        arms=RECORDS,
        trial=lambda algorithm, seed: learn(algorithm, seed, steps),
        metrics=[
            Metric(name="reached", label=f"tasks reached, of {len(found)}", summary="smallest"),
            *(Metric(name=f"share {n}", label=n, unit="ratio", summary="smallest") for n in found),
            *(excess(name=f"excess {n}", label=f"{n} (± {t.tolerance:g})") for n, t in found.items() if t.tolerance),
        ],
        claims=[
            Claim(text="Learning from the worst alone reaches fewer optima than its form for limits", metric="reached",
                  higher="RISK_AVERSE_UNDER_LIMITS", lower="RISK_AVERSE", source="ours")
        ],
        notes=f"""
A bandit of three contexts with five arms each ([worlds](../worlds.md)). {steps} steps of {SAMPLES} samples,
{UNLIMITED:.0%} of these where nothing is limited, `kl_coef` {KL_COEF}, or {KL_COEF_IN_LOSS} where KL is charged in the
loss, a learning rate of {LR:g}, or {LR_OF_SOME:g} where only some episodes are learned from. The mean policy of the
last half of the steps is measured, exactly. First table: the share of the best value that the worst seed reached. A
task is reached from {SHARE:.0%} on, if its limit is kept within its tolerance. Wanted are values of {wanted()}.""",
        discussion="What the misses mean is told in [worlds](../worlds.md).",
    )  # fmt: skip


def learn(algorithm: Algorithm, seed: int, steps: int) -> Trial:
    """Train a record on every task, and count those that it reaches."""
    metrics = {"reached": 0.0}
    for name, task in tasks().items():
        share, excess, multiplier = reach(algorithm, task, seed, steps)
        metrics |= {f"share {name}": share, f"excess {name}": excess, f"multiplier {name}": multiplier}
        metrics["reached"] += share >= SHARE and excess <= task.tolerance
    return Trial(metrics=metrics)


def reach(algorithm: Algorithm, task: Task, seed: int, steps: int, **settings: Any) -> tuple[float, float, float]:
    """Share of the best, excess and multiplier of the mean policy of the last half, or of the `average` in settings."""
    steps = steps if task.rows is not None else math.ceil(UNLIMITED * steps)
    algorithm = replace(algorithm, kl_coef=KL_COEF_IN_LOSS if algorithm.kl.in_loss else KL_COEF)
    quick = replace(QUICK, steps=steps, lr=LR_OF_SOME if algorithm.selection else LR, **settings)
    edges: dict[str, Any] = {"world": task.bandit, "objective": task.objective(), "samples_per_step": SAMPLES}
    policy, reported = TabularTrainer(**edges, algorithm=algorithm, optimisation=quick, seed=seed).run(steps)
    return task.value(policy) / task.value(task.best.policy), task.excess(policy), reported.get("multiplier", 0.0)


def wanted() -> str:
    """The best value of each task, and the price of its limit."""
    best = ((name, task.value(task.best.policy), task.best.multiplier) for name, task in tasks().items())
    return ", ".join(f"{value:.3f} ({name}, multiplier {price:.2f})" for name, value, price in best)
