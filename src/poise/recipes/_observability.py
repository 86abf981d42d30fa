"""Judges who see part of what happens: the arms, one run of an arm, and the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from poise.evaluate.figures import Series, charts
from poise.functional.observed_returns import deceptive_inflation, overjustification
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.worlds.bandit import Floats
from poise.worlds.partial_observability import ObservedWorld, Policy, hiding, verbose

RATIONALITY = 0.3  # returns differ by up to 17: a judge who is never wrong would not say by how much
RIDGE = 1e-6  # on the rewards of states, which comparisons give up to a constant
SWEEP = np.linspace(0.0, 1.0, 41)


class Setting(NamedTuple):
    """A world, the judge's belief in it, and the two failures that it can lead to."""

    make: Callable[..., ObservedWorld]
    belief: str  # the parameter that says how silence is taken
    value: float
    label: str


SETTINGS = {
    "hiding": Setting(hiding, "suspicion", 0.5, "hiding, suspicion 0.5"),
    "hiding-suspicious": Setting(hiding, "suspicion", 0.95, "hiding, suspicion 0.95"),
    "verbose": Setting(verbose, "trust", 0.2, "verbose, trust 0.2"),
    "verbose-trusting": Setting(verbose, "trust", 0.5, "verbose, trust 0.5"),
}
METHODS = {
    "sees-all": "judge sees everything",
    "naive": "judge sees the log; taken at its word",
    "aware": "judge sees the log; belief modelled",
}
LABELS = {
    f"{setting}-{method}": f"{SETTINGS[setting].label}: {text}" for setting in SETTINGS for method, text in METHODS.items()
}

COLUMNS = (
    Column(figure="value", label="return", digits=2),
    Column(figure="observed_value", label="seems to be", digits=2),
    Column(figure="overestimation", label="overestimated by", digits=2),
    Column(figure="underestimation", label="underestimated by", digits=2),
    Column(figure="inflation", label="deceptive inflation, seeds", is_share=True, digits=2),
    Column(figure="overjustification", label="overjustification, seeds", is_share=True, digits=2),
)


def world_of(setting: str) -> ObservedWorld:
    """The world of a setting, with its judge's belief."""
    chosen = SETTINGS[setting]
    return chosen.make(**{chosen.belief: chosen.value})


def attempt(arm: str, seed: int, *, comparisons: int) -> Outcome:
    """Sample comparisons, fit rewards of states to them, and take the best policy under these rewards."""
    setting, method = next((s, m) for s in SETTINGS for m in METHODS if arm == f"{s}-{m}")
    world, generator = world_of(setting), np.random.default_rng(seed)
    judged = (world.returns if method == "sees-all" else world.observed_returns).numpy()
    pairs = generator.integers(len(judged), size=(comparisons, 2))
    is_first = generator.random(comparisons) < expit(RATIONALITY * (judged[pairs[:, 0]] - judged[pairs[:, 1]]))
    visits = state_visits(world)
    seen = believed(world) @ visits if method == "aware" else visits
    learned = visits @ fitted(seen, pairs, is_first)
    return Outcome(figures=_measured(world, best_for(world, learned)))


def state_visits(world: ObservedWorld) -> Floats:
    """How often each trajectory comes to each state [N, S]."""
    states = sorted({state for trajectory in world.trajectories for state in trajectory})
    return np.array([[trajectory.count(state) for state in states] for trajectory in world.trajectories], dtype=float)


def believed(world: ObservedWorld) -> Floats:
    """What a judge takes each trajectory for [N, N]: the probability of each by what is seen of it."""
    places = {trajectory: i for i, trajectory in enumerate(world.trajectories)}
    table = np.zeros((len(places), len(places)))
    for trajectory, i in places.items():
        for other, chance in world.beliefs.get(world.observation(trajectory), {trajectory: 1.0}).items():
            table[i, places[other]] += chance
    return table


def fitted(visits: Floats, pairs: np.ndarray, is_first: np.ndarray) -> Floats:
    """Rewards of states [S] by Bradley-Terry on returns: sums of the rewards of the states visited [N, S]."""
    sign = np.where(is_first, 1.0, -1.0)
    rows = RATIONALITY * sign[:, None] * (visits[pairs[:, 0]] - visits[pairs[:, 1]])

    def loss(rewards: Floats) -> tuple[float, Floats]:
        margins = rows @ rewards
        value = np.logaddexp(0, -margins).mean() + RIDGE / 2 * rewards @ rewards
        return float(value), -(rows * expit(-margins)[:, None]).mean(0) + RIDGE * rewards

    return minimize(loss, np.zeros(visits.shape[1]), jac=True, method="L-BFGS-B").x


def best_for(world: ObservedWorld, learned: Floats) -> Policy:
    """The policy of the highest mean learned return [N]."""
    returns = torch.from_numpy(learned)
    return max(world.policies, key=lambda policy: round(float(world.probabilities(policy) @ returns), 9))


def _measured(world: ObservedWorld, policy: Policy) -> dict[str, float]:
    found, reference = world.measure(policy), world.verdict().optimal
    return {
        **{name: float(value) for name, value in found._asdict().items()},
        "inflation": float(deceptive_inflation(found, reference)),
        "overjustification": float(overjustification(found, reference)),
        "lost": float(reference.value - found.value),
    }


def page(results: Results, *, comparisons: int) -> Page:
    """What was found."""
    claims = [
        Claim(
            text="Hiding: what is learned is overestimated more than under full sight (suspicion 0.5)",
            difference=results.difference("hiding-naive", "hiding-sees-all", "overestimation"),
        ),
        Claim(
            text="Hiding: it is worse than under full sight",
            difference=results.difference("hiding-sees-all", "hiding-naive", "value"),
        ),
        Claim(
            text="Verbose: what is learned is underestimated less than under full sight (trust 0.2)",
            difference=results.difference("verbose-sees-all", "verbose-naive", "underestimation"),
        ),
        Claim(
            text="Verbose: it is worse than under full sight",
            difference=results.difference("verbose-sees-all", "verbose-naive", "value"),
        ),
        *(
            Claim(
                text=f"{name.capitalize()}: modelling the belief is better than taking the judge at their word",
                difference=results.difference(f"{name}-aware", f"{name}-naive", "value"),
            )
            for name in ("hiding", "verbose", "verbose-trusting")
        ),
    ]
    return Page(
        name="partial-observability",
        title="What is learned from judges who see part of what happens",
        intro=_INTRO.format(comparisons=comparisons, rationality=RATIONALITY),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        pictures={"Return of what is learned, and what it seems to be, over the judge's belief": _picture(results)},
        extra=_EXTRA,
    )


def _picture(results: Results) -> str:
    panels = {
        f"{make.__name__}: how likely silence is {taken}": _swept(make, belief, results)
        for make, belief, taken in (
            (hiding, "suspicion", "taken for a hidden failure"),
            (verbose, "trust", "taken for success"),
        )
    }
    return charts(panels, across="probability", up="return")


def _swept(make: Callable[..., ObservedWorld], belief: str, results: Results) -> list[Series]:
    verdicts = [make(**{belief: float(share)}).verdict() for share in SWEEP]
    exact: dict[str, Any] = {"x": SWEEP.tolist(), "is_dashed": True}
    points = {name: each.value for name, each in SETTINGS.items() if each.make is make}
    return [
        Series(label="best there is, exact", y=[float(v.optimal.value) for v in verdicts], **exact),
        Series(label="learned, exact", y=[float(v.learned.value) for v in verdicts], **exact),
        Series(label="seems, exact", y=[float(v.learned.observed_value) for v in verdicts], **exact),
        *(
            Series(
                label=METHODS[method].replace("judge sees the log; ", ""),
                x=list(points.values()),
                y=[results.estimate(f"{name}-{method}", "value").value for name in points],
                is_line=False,
            )
            for method in ("naive", "aware")
        ),
    ]


_INTRO = """
The two examples of [arXiv:2402.17747](https://arxiv.org/abs/2402.17747) ([worlds](../worlds.md)), learned from samples:
{comparisons:,} comparisons of random trajectories by a judge who prefers one with probability sigmoid({rationality:g} x
difference of returns), rewards of states fitted by Bradley-Terry, and the best policy under them. Taken at their word,
judges teach the return that they observe. With the belief modelled, the fit predicts what they would observe of the
trajectories that look alike, so that the rewards of states are the true ones.
"""

_EXTRA = """
The failures are the paper's: deceptive inflation is to look better by being overestimated more than the best policy,
overjustification to give up return in order to be underestimated less. To model the belief one must know it: with the
judge's suspicion unknown, the rewards behind one observation cannot be told apart.
"""
