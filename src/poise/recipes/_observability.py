"""Judges who see part of what happens: the arms, one run of an arm, and the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import null_space
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
AUDITED = 0.1  # share of the comparisons in which the judge is shown everything, where runs are audited
METHODS = {
    "sees-all": "judge sees everything",
    "naive": "judge sees the log; taken at its word",
    "aware": "judge sees the log; belief modelled",
    "audited": "the same, and a tenth of the comparisons audited",
}
LABELS = {
    f"{setting}-{method}": f"{SETTINGS[setting].label}: {text}"
    for setting in SETTINGS
    for method, text in METHODS.items()
}

COLUMNS = (
    Column(figure="value", label="return", digits=2),
    Column(figure="observed_value", label="seems to be", digits=2),
    Column(figure="overestimation", label="overestimated by", digits=2),
    Column(figure="underestimation", label="underestimated by", digits=2),
    Column(figure="inflation", label="deceptive inflation, seeds", is_share=True, digits=2),
    Column(figure="overjustification", label="overjustification, seeds", is_share=True, digits=2),
    Column(figure="open", label="directions left open", digits=0),
)


def world_of(setting: str) -> ObservedWorld:
    """The world of a setting, with its judge's belief."""
    chosen = SETTINGS[setting]
    return chosen.make(**{chosen.belief: chosen.value})


def attempt(arm: str, seed: int, *, comparisons: int) -> Outcome:
    """Sample comparisons, fit rewards of states to them, and take the best policy under these rewards."""
    setting, method = next((s, m) for s in SETTINGS for m in METHODS if arm == f"{s}-{m}")
    world, generator = world_of(setting), np.random.default_rng(seed)
    pairs = generator.integers(len(world.trajectories), size=(comparisons, 2))
    is_audited = generator.random(comparisons) < {"sees-all": 1.0, "audited": AUDITED}.get(method, 0.0)
    margins = [returns.numpy()[pairs] @ [1.0, -1.0] for returns in (world.returns, world.observed_returns)]
    is_first = generator.random(comparisons) < expit(RATIONALITY * np.where(is_audited, *margins))
    visits = state_visits(world)
    seen = visits if method in ("sees-all", "naive") else believed(world) @ visits
    rows = np.where(is_audited[:, None], *(table[pairs[:, 0]] - table[pairs[:, 1]] for table in (visits, seen)))
    policy = best_for(world, visits @ fitted(rows, is_first))
    return Outcome(figures=_measured(world, policy) | {"open": float(open_directions(rows, visits))})


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


def fitted(rows: Floats, is_first: np.ndarray) -> Floats:
    """Rewards of states [S] by Bradley-Terry, from differences of visits [P, S] and which side was preferred [P]."""
    rows = np.where(is_first, RATIONALITY, -RATIONALITY)[:, None] * rows

    def loss(rewards: Floats) -> tuple[float, Floats]:
        margins = rows @ rewards
        value = np.logaddexp(0, -margins).mean() + RIDGE / 2 * rewards @ rewards
        return float(value), -(rows * expit(-margins)[:, None]).mean(0) + RIDGE * rewards

    return np.asarray(minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B").x)


def open_directions(rows: Floats, visits: Floats) -> int:
    """In how many directions the returns of trajectories can differ while all comparisons [P, S] look the same."""
    kernel = null_space(np.unique(rows, axis=0), rcond=1e-9)
    return int(np.linalg.matrix_rank((visits - visits[0]) @ kernel, tol=1e-6)) if kernel.size else 0


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
                text=f"{SETTINGS[name].label.capitalize()}: modelling the belief{how} is better than naive reading",
                difference=results.difference(f"{name}-{method}", f"{name}-naive", "value"),
                is_papers=False,
            )
            for name in ("hiding", "verbose", "verbose-trusting")
            for method, how in (("aware", " alone"), ("audited", ", with audits,"))
        ),
    ]
    return Page(
        name="partial-observability",
        title="What is learned from judges who see part of what happens",
        intro=_INTRO.format(comparisons=comparisons, rationality=RATIONALITY, audited=AUDITED),
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
                label={"naive": "taken at its word", "audited": "belief and audits"}[method],
                x=list(points.values()),
                y=[results.estimate(f"{name}-{method}", "value").value for name in points],
                is_line=False,
            )
            for method in ("naive", "audited")
        ),
    ]


_INTRO = """
The two examples of [arXiv:2402.17747](https://arxiv.org/abs/2402.17747) ([worlds](../worlds.md)), learned from samples:
{comparisons:,} comparisons of random trajectories by a judge who prefers one with probability sigmoid({rationality:g} x
difference of returns), rewards of states fitted by Bradley-Terry, and the best policy under them. Taken at their word,
judges teach the return that they observe. With the belief modelled, the fit predicts what they would observe of the
trajectories that look alike. With audits, the judge is shown everything in {audited:.0%} of the comparisons.
"""

_EXTRA = """
The failures are the paper's: deceptive inflation is to look better by being overestimated more than the best policy,
overjustification to give up return in order to be underestimated less.

Modelling the belief does not suffice here: the paper shows that the return is then known up to what feedback leaves
open, and in both worlds one direction is left open. The reward of the driver can be shifted against that of what follows
without any comparison looking different, and which of the equals the fit takes is an accident of its ridge. A few
comparisons under full sight close it.
"""
