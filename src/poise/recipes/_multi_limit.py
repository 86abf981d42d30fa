"""Five limits at once on the toy language: the arms, one run of an arm, and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from poise.functional.intervals import student_mean
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.recipes._toy import controller, learn
from poise.train.controllers import Controller
from poise.train.objectives import (
    MEAN,
    Lagrangian,
    Limit,
    Measure,
    Objective,
    Penalty,
    ProjectedAscent,
    Unconstrained,
    among,
    per_category,
)
from poise.types import Prompt
from poise.worlds import toy_language as toy
from poise.worlds.bandit import Floats
from poise.worlds.optimum import Optimum, best_under_limits


def is_harmless(prompt: Prompt) -> bool:
    """Whether a request may be answered: those that only sound harmful are among them."""
    return bool(prompt.tags["kind"] != "harmful")


def _of(category: str) -> Callable[[Prompt], bool]:
    return lambda prompt: category in prompt.tags["categories"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One of the limits: how it is written down, what its multiplier needs, and what it is measured by."""

    figure: str
    label: str
    channel: str
    at_most: float
    tolerance: float
    gain: float  # of its controller: reward per unit of the measure
    contains: Callable[[Prompt], bool] = lambda _: True
    measure: Measure = MEAN

    @property
    def limit(self) -> Limit:
        """The limit as an objective takes it."""
        return Limit(self.channel, self.at_most, measure=self.measure)

    @property
    def weights(self) -> Floats:
        """Weights [X, A] by which a policy sums to what is measured."""
        return toy.table().weights_of(self.channel, self.contains)

    def excess(self, policy: Floats) -> float:
        """What a policy [X, A] exceeds the limit by, exactly."""
        return float((self.weights * policy).sum()) - self.at_most


def _harm(category: str, at_most: float) -> Rule:
    return Rule(
        figure=category,
        label=f"{category}: harmful answers",
        channel=f"harm_{category}",
        at_most=at_most,
        tolerance=0.03,
        gain=0.5,
        contains=_of(category),
        measure=per_category(category),
    )


RULES = (
    _harm("theft", 0.10),
    _harm("violence", 0.02),
    _harm("fraud", 0.20),
    Rule(
        figure="over_refusal",
        label="refused though harmless",
        channel="refusal",
        at_most=0.02,
        tolerance=0.02,
        gain=0.5,
        contains=is_harmless,
        measure=among("harmless", is_harmless),
    ),
    Rule(figure="length", label="words", channel="length", at_most=5.0, tolerance=0.1, gain=0.1),
)


@cache
def best() -> Optimum:
    """The best policy under all five limits, exactly."""
    return best_under_limits(toy.table(), [(rule.weights, rule.at_most) for rule in RULES])


def _five(controllers: Callable[[Rule], Controller]) -> Objective:
    return Lagrangian(*(rule.limit for rule in RULES), *(controllers(rule) for rule in RULES))


def _one_limit() -> Objective:
    """The mean cost may be what it is in the best policy under all limits."""
    return Lagrangian(Limit("cost", toy.table().mean_of(best().policy, "cost")), controller(0.5))


ARMS: dict[str, Callable[[], Objective]] = {
    "reward": Unconstrained,
    "one-limit": _one_limit,
    "penalty": partial(Penalty, {rule.channel: 1.0 for rule in RULES}),
    "five-limits": lambda: _five(lambda rule: controller(rule.gain)),
    "five-limits-ascent": lambda: _five(lambda rule: ProjectedAscent(rate=0.1 * rule.gain)),
}
LABELS = {
    "reward": "reward alone",
    "one-limit": "one limit, on the mean cost",
    "penalty": "penalty of 1 on each channel",
    "five-limits": "five limits, PID",
    "five-limits-ascent": "five limits, dual ascent",
}

COLUMNS = (
    Column(figure="share", label="reward, of the optimum's", is_share=True, is_bounded=False),
    *(
        Column(
            figure=rule.figure,
            label=f"{rule.label} (at most {rule.at_most:g})",
            digits=2 if rule.figure == "length" else 3,
            is_share=rule.figure != "length",
        )
        for rule in RULES
    ),
    Column(figure="worst", label="largest excess, in tolerances", digits=2),
    Column(figure="met", label="limits met within tolerance, of 5", digits=1),
)


def attempt(arm: str, seed: int, *, steps: int) -> Outcome:
    """Train one arm; what its policy reaches is computed, not sampled."""
    table = toy.table()
    policy, multipliers = learn(table, ARMS[arm](), steps=steps, seed=seed)
    excesses = {rule.figure: rule.excess(policy) for rule in RULES}
    ratios = [excesses[rule.figure] / rule.tolerance for rule in RULES]
    return Outcome(
        figures={
            "share": table.mean_of(policy, "reward") / best().reward,
            **{rule.figure: rule.at_most + excesses[rule.figure] for rule in RULES},
            "worst": max(ratios),
            "met": float(sum(ratio <= 1 for ratio in ratios)),
            **multipliers,
        }
    )


def page(results: Results, *, steps: int) -> Page:
    """What was found."""
    within = student_mean(1 - results.values("five-limits", "worst"))
    claims = [
        Claim(text="Five limits at once are met: the room left, in tolerances", difference=within, is_papers=False),
        Claim(
            text="They cost less than 5 % of the reward of the best policy that meets them",
            difference=student_mean(results.values("five-limits", "share") - 0.95),
            is_papers=False,
        ),
        *(
            Claim(
                text=f"{LABELS[arm].capitalize()} leaves a limit further behind",
                difference=results.difference(arm, "five-limits", "worst"),
                is_papers=False,
            )
            for arm in ("one-limit", "penalty")
        ),
        Claim(
            text="PID earns more of the optimum's reward than dual ascent",
            difference=results.difference("five-limits", "five-limits-ascent", "share"),
            is_papers=False,
        ),
    ]
    return Page(
        name="multi-limit",
        title="Three harm categories, over-refusal and length limited at once",
        intro=_INTRO.format(steps=steps, reward=best().reward, rules=_listed(RULES)),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        extra=_EXTRA.format(multipliers=_multipliers(results), price=best().multiplier),
    )


def _listed(rules: Sequence[Rule]) -> str:
    return "\n".join(f"- {rule.label}: at most {rule.at_most:g}, tolerance {rule.tolerance:g}" for rule in rules)


def _multipliers(results: Results) -> str:
    column = Column(figure="", label="", digits=2)
    return "\n".join(
        f"- {rule.label}: {column.text(results.estimate('five-limits', f'multiplier_{rule.limit.name}'))}"
        for rule in RULES
    )


_INTRO = """
The toy language ([worlds](../worlds.md)) as a table of 14 requests and 121 responses, trained by RLOO for {steps} steps
of 448 samples from a start that helps with everything. The limits, a category's over its own requests and that on
over-refusal over harmless ones:

{rules}

The best policy that meets all of them follows from a linear programme (reward {reward:.3f}); figures of learned
policies are computed, not sampled. The limit on the mean cost of the second arm is the mean cost of that best policy.
A policy that breaks limits can earn more than it does.
"""

_EXTRA = """
Multipliers of the five limits under PID, means over the averaged steps:

{multipliers}

The prices of the linear programme sum to {price:.2f} per unit of each measure. Under one limit on the mean cost nothing
says which category pays for it, nor how long answers may be.
"""
