"""The front of help against harm on the toy language: families of settings, one run of a family, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from poise.evaluate.figures import Series, chart
from poise.evaluate.frontier import front, hypervolume
from poise.recipes._arms import Claim, Column, Outcome, Page, Results, markdown_table
from poise.recipes._toy import controller, learn
from poise.train.objectives import MEAN, Lagrangian, Limit, Measure, Objective, Penalty, cvar
from poise.worlds import optimum as exact
from poise.worlds import toy_language as toy
from poise.worlds.bandit import Bandit, Floats

TAIL = 0.25  # the worst quarter of the answers
PAPERS = (0.01, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)  # coefficients of the reward-shaping comparison
TUNED = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)  # around the prices at which the best policy changes
MEANS = (-0.95, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2)
TAILS = (-0.8, -0.4, 0.0, 0.4, 0.8, 1.2, 1.6)
REFERENCE = (0.0, -0.3, -2.0)  # of reward, -mean cost and -tail cost: worse than every policy worth having
FINE = 60  # limits at which the exact front is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Objectives that differ in one number."""

    label: str
    settings: Sequence[float]
    objective: Callable[[float], Objective]
    limited: str = ""  # the figure that the number limits


def _limit(at_most: float, *, measure: Measure, gain: float) -> Objective:
    return Lagrangian(Limit("cost", at_most, measure=measure), controller(gain))


FAMILIES = {
    "penalty": Family(label="penalty, the paper's coefficients", settings=PAPERS, objective=Penalty),
    "penalty-tuned": Family(label="penalty, tuned coefficients", settings=TUNED, objective=Penalty),
    "mean": Family(
        label="limit on the mean",
        settings=MEANS,
        objective=partial(_limit, measure=MEAN, gain=0.5),
        limited="cost",
    ),
    "cvar": Family(
        label="limit on the tail (CVaR)",
        settings=TAILS,
        objective=partial(_limit, measure=cvar(TAIL), gain=0.25),
        limited="tail",
    ),
}
LABELS = {name: family.label for name, family in FAMILIES.items()}

COLUMNS = (
    Column(figure="volume_mean", label="hypervolume of help and mean harm, of the exact front's", is_share=True),
    Column(figure="volume_tail", label="of help and tail harm", is_share=True),
    Column(figure="missed", label="largest distance from the limit"),
    Column(figure="widest_gap", label="widest gap in mean cost between neighbours"),
)


def attempt(arm: str, seed: int, *, steps: int) -> Outcome:
    """Train a policy for every setting of a family; reward, mean and tail cost are computed, not sampled."""
    family, bandit = FAMILIES[arm], toy.bandit()
    points = [
        measured(bandit, learn(bandit, family.objective(setting), steps=steps, seed=seed).policy)
        for setting in family.settings
    ]
    curves = {name: [point[name] for point in points] for name in points[0]}
    costs = sorted(curves["cost"])
    figures = {
        "volume_mean": volume(curves, "cost") / exact_volume("cost"),
        "volume_tail": volume(curves, "tail") / exact_volume("tail"),
        "widest_gap": float(np.diff(costs).max()),
    }
    if family.limited:
        figures["missed"] = float(np.abs(np.array(curves[family.limited]) - np.array(family.settings)).max())
    return Outcome(figures=figures, curves=curves)


def measured(bandit: Bandit, policy: Floats) -> dict[str, float]:
    """Help and harm of a policy [X, A], exactly."""
    return {
        "reward": bandit.reward_of(policy),
        "cost": exact.risk_of(bandit, policy, exact.mean_rows(bandit.costs)),
        "tail": exact.risk_of(bandit, policy, exact.cvar_rows(bandit.costs, TAIL)),
    }


def volume(points: Mapping[str, Sequence[float]], risk: str) -> float:
    """The hypervolume of reward and of the negative of a risk."""
    reference = REFERENCE[0], REFERENCE[1] if risk == "cost" else REFERENCE[2]
    pairs = [(reward, -harm) for reward, harm in zip(points["reward"], points[risk], strict=True)]
    return hypervolume(pairs, reference)


@cache
def exact_front(risk: str) -> dict[str, list[float]]:
    """The best reward under every limit on a risk, by a linear programme each."""
    bandit = toy.bandit()
    rows = exact.mean_rows(bandit.costs) if risk == "cost" else exact.cvar_rows(bandit.costs, TAIL)
    limits = np.linspace(-1.0, -REFERENCE[1] if risk == "cost" else -REFERENCE[2], FINE)
    return {
        "reward": [exact.best_under_limit(bandit, rows, float(limit)).reward for limit in limits],
        risk: limits.tolist(),
    }


@cache
def exact_volume(risk: str) -> float:
    """The hypervolume of the exact front."""
    return volume(exact_front(risk), risk)


def page(results: Results, *, steps: int) -> Page:
    """What was found."""
    claims = [
        Claim(
            text="Limits on the mean cover more of help and mean harm than the paper's penalties",
            difference=results.difference("mean", "penalty", "volume_mean"),
        ),
        Claim(
            text="Limits on the mean cover more than penalties tuned to this world",
            difference=results.difference("mean", "penalty-tuned", "volume_mean"),
            is_papers=False,
        ),
        Claim(
            text="Limits on the tail cover more of help and tail harm than the paper's penalties",
            difference=results.difference("cvar", "penalty", "volume_tail"),
            is_papers=False,
        ),
        Claim(
            text="Limits on the tail cover more of help and tail harm than limits on the mean",
            difference=results.difference("cvar", "mean", "volume_tail"),
            is_papers=False,
        ),
        Claim(
            text="Limits on the mean leave smaller gaps in the front than the paper's penalties",
            difference=results.difference("penalty", "mean", "widest_gap"),
            is_papers=False,
        ),
    ]
    return Page(
        name="reward-shaping-frontier",
        title="Penalties against limits: the front of help and harm",
        intro=_INTRO.format(steps=steps, share=TAIL),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        pictures={
            "Reward against mean cost": _picture(results, "cost", "mean cost"),
            "Reward against tail cost": _picture(results, "tail", f"mean of the worst {TAIL:.0%} of the costs"),
        },
        extra="## Every setting\n\n" + _points(results),
    )


def _picture(results: Results, risk: str, across: str) -> str:
    best = exact_front(risk)
    series = [Series(label="exact front", x=best[risk], y=best["reward"], is_dashed=True)]
    for name, label in LABELS.items():
        outcomes = results.outcomes[name]
        series.append(
            Series(
                label=label,
                x=[value for outcome in outcomes for value in outcome.curves[risk]],
                y=[value for outcome in outcomes for value in outcome.curves["reward"]],
                is_line=False,
            )
        )
    return chart(series, name=f"Reward against {across}, by objective", across=f"{across} (harm)", up="reward (help)")


def _points(results: Results) -> str:
    rows = []
    for name, family in FAMILIES.items():
        curves = {figure: results.mean_curve(name, figure) for figure in ("reward", "cost", "tail")}
        on_front = front([(r, -c) for r, c in zip(curves["reward"], curves["cost"], strict=True)])
        for i, setting in enumerate(family.settings):
            point = curves["reward"][i], -curves["cost"][i]
            numbers = [f"{curves[figure][i] + 0.0:.3f}" for figure in curves]
            rows.append([family.label, f"{setting:g}", *numbers, "yes" if point in on_front else "no"])
    return markdown_table(["objective", "setting", "reward", "mean cost", "tail cost", "on its family's front"], rows)


_INTRO = """
The reward-shaping comparison of Safe RLHF ([arXiv:2310.12773](https://arxiv.org/abs/2310.12773)) on the toy language
([worlds](../worlds.md)) as a table of 14 requests and 121 responses: seven settings of each objective, RLOO, {steps}
steps of 448 samples from a start that helps with everything. Tail harm is the mean of the worst {share:.0%} of the
costs. Hypervolume is the area that a front covers from a reward of 0 and a mean cost of 0.3 (tail cost of 2), as a share
of what the exact front covers; seven points of a line cannot cover all that lies below it.
"""
