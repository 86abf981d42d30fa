"""Penalties against limits: how much of the front of help and harm each finds in as many runs.

    toy language -> penalties, limits on the mean, limits on the tail, seeds each -> fronts, hypervolumes, pictures

Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773: its
comparison with reward shaping, whose coefficients are used here, in a world whose front is known exactly. Limits on the
tail and coefficients tuned to the world are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from poise.evaluate.frontier import hypervolume
from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, clouds, recipe
from poise.train.algorithms import RLOO
from poise.train.objectives import MEAN, PID, Lagrangian, Limit, Measure, Objective, Penalty, cvar
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds import optimum as exact
from poise.worlds import toy_language as toy

CARD = MethodCard(
    title="Penalties against limits: the front of help and harm",
    paper="arXiv:2310.12773",
    reported="the limit beats every coefficient in the trade-off (Beaver-7B)",
    feedback="exact gold",
    form="rewards and costs",
    signal="the scores",
    optimiser="RLOO",
    regulariser="KL",
    constraint="a penalty, or a limit on the mean or the tail of the cost",
    model="a table of the toy language",
)
TAIL = 0.25  # the worst quarter
WORST = {"cost": 0.3, "tail": 2.0}  # worse than every policy worth having
NAMES = {"cost": "mean", "tail": "tail"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Objectives that differ in one number."""

    settings: Sequence[float]
    objective: Callable[[float], Objective]
    limited: str = ""  # the risk that the number limits


def limit(measure: Measure, gain: float) -> Callable[[float], Objective]:
    """A limit on the cost by a measure, from what is allowed."""
    return lambda at_most: Lagrangian(Limit("cost", at_most, measure=measure), PID.of_gain(gain))


FAMILIES = {
    "penalty": Family(settings=(0.01, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0), objective=Penalty),
    "penalty-tuned": Family(
        settings=(0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7), objective=Penalty
    ),  # to this world's prices
    "mean": Family(settings=(-0.95, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2), objective=limit(MEAN, 1.5), limited="cost"),
    "cvar": Family(settings=(-0.8, -0.4, 0.0, 0.4, 0.8, 1.2, 1.6), objective=limit(cvar(TAIL), 0.75), limited="tail"),
}


@recipe(CARD, quick={"steps": 4}, seeds=5)
def reward_shaping_frontier(*, steps: int = 200) -> Study:
    """Train seven settings of every objective, and print what their fronts cover.

    Args:
        steps: updates of each run.
    """

    def trial(family: Family, seed: int) -> Trial:
        points = [learn(family.objective(setting), seed, steps) for setting in family.settings]
        curves = {name: [point[name] for point in points] for name in points[0]}
        limited = curves.get(family.limited)
        missed = {} if limited is None else {"missed": float(np.abs(np.array(limited) - family.settings).max())}
        gap = {"widest_gap": float(np.diff(sorted(curves["cost"])).max())}
        best = {risk: volume(*front(risk)["exact front"], risk) for risk in WORST}
        covered = {f"volume_{NAMES[x]}": volume(curves[x], curves["reward"], x) / best[x] for x in WORST}
        return Trial(metrics=covered | gap | missed, curves=curves)

    mean, tail = "of help and mean harm", "of help and tail harm"
    return Study(
        arms=FAMILIES,
        trial=trial,
        labels={"penalty": "penalty, the paper's coefficients", "penalty-tuned": "penalty, tuned coefficients",
                "mean": "limit on the mean", "cvar": "limit on the tail (CVaR)"},
        metrics=[
            Metric(name="volume_mean", label=f"hypervolume {mean}, of the exact front's", unit="ratio"),
            Metric(name="volume_tail", label=tail, unit="ratio"),
            Metric(name="missed", label="largest distance from the limit"),
            Metric(name="widest_gap", label="widest gap in mean cost between neighbours"),
        ],
        claims=[
            Claim(text=f"Limits on the mean cover more {mean} than penalties", metric="volume_mean",
                  higher="mean", lower="penalty"),
            ours("They cover more than tuned penalties", "volume_mean", "mean", "penalty-tuned"),
            ours(f"Limits on the tail cover more {tail} than penalties", "volume_tail", "cvar", "penalty"),
            ours(f"They cover more {tail} than limits on the mean", "volume_tail", "cvar", "mean"),
            ours("Limits on the mean leave smaller gaps than penalties", "widest_gap", "penalty", "mean"),
        ],
        plots=[
            Plot(title=f"Reward against {name} cost", across=f"{name} cost (harm)", up="reward (help)",
                 draw=clouds(risk, "reward", known=partial(front, risk)))
            for risk, name in NAMES.items()
        ],
        notes=f"""
Seven settings of each objective on the toy language ([worlds](../worlds.md)), {steps} steps of 448 samples each from a
start that helps with everything. Tail harm is the mean of the worst {TAIL:.0%} of the costs. Hypervolume is the area
that a front covers from a reward of 0 and a mean cost of 0.3 (tail cost of 2), as a share of what the exact front
covers; seven points of a line cannot cover all that lies below it.""",
        discussion="A limit on the tail may be missed for its plateaus ([worlds](../worlds.md)).",
    )  # fmt: skip


def ours(text: str, metric: str, higher: str, lower: str) -> Claim:
    """An expectation of ours."""
    return Claim(text=text, metric=metric, higher=higher, lower=lower, source="ours")


def learn(objective: Objective, seed: int, steps: int) -> dict[str, float]:
    """Train a policy; its reward, mean and tail cost are computed exactly."""
    bandit, algorithm = toy.bandit(), replace(RLOO, samples_per_prompt=8, kl_coef=0.02)
    trainer = TabularTrainer(
        world=bandit, algorithm=algorithm, objective=objective, samples_per_step=448,
        optimisation=replace(QUICK, steps=steps), start=toy.start(), seed=seed,
    )  # fmt: skip
    policy = trainer.run(steps).policy
    return {"reward": bandit.reward_of(policy)} | {risk: exact.risk_of(bandit, policy, rows(risk)) for risk in WORST}


def rows(risk: str) -> np.ndarray:
    """What computes a risk from chances of costs."""
    costs = toy.bandit().costs
    return exact.mean_rows(costs) if risk == "cost" else exact.cvar_rows(costs, TAIL)


@cache
def front(risk: str) -> dict[str, tuple[list[float], list[float]]]:
    """The best reward under each of 60 limits on a risk, exactly, to be drawn."""
    limits = np.linspace(-1.0, WORST[risk], 60).tolist()
    return {"exact front": (limits, exact.front(toy.bandit(), rows(risk), limits))}


def volume(harms: Sequence[float], rewards: Sequence[float], risk: str) -> float:
    """The area that points of help and harm cover."""
    return hypervolume([(reward, -harm) for harm, reward in zip(harms, rewards, strict=True)], (0.0, -WORST[risk]))
