"""Physics problems whose answers are checked: a number within 5 % and the right unit.

    What is the kinetic energy of a body of 4 kg that moves at 7 m/s?     98 J

Every problem is of one of ten kinds. An answer takes three steps: a formula, a power of ten, a unit; each has one right
choice and three mistakes that pupils make (a forgotten half, a product in place of a quotient, watts for joules).

Gold: 1 for a right number with the right unit, 0 for anything else, as a checker of texts finds it. Optimum: the right
formula, scale and unit for every kind, reward 1. What goes wrong: a wrong way may give the right number by chance, and
a reward model that learned from comparisons sees how an answer looks and not whether it is right.

The problems come as text (`problems`, `PhysicsScorer`), and as a table of steps for a trainer of tables
(`PhysicsTable`).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from poise.types import Completion, Prompt, Scores

TOLERANCE = 0.05  # of the number, relative
SCALES = (1.0, 10.0, 0.1, 1000.0)
STEPS = ("formula", "scale", "unit")
_GRAVITY = 9.81
_ANSWER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(\S*)")

Quantities = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of problem; of formulas and units the first is right."""

    name: str
    text: str  # with quantities in braces
    ranges: Mapping[str, tuple[int, int]]
    formulas: tuple[Callable[..., float], ...]
    units: tuple[str, ...]

    def draw(self, generator: random.Random) -> Quantities:
        """Whole numbers for the quantities."""
        return {name: float(generator.randint(*bounds)) for name, bounds in self.ranges.items()}


KINDS = (
    Kind(
        name="speed",
        text="A car at {u:g} m/s accelerates at {a:g} m/s^2 for {t:g} s. How fast is it then?",
        ranges={"u": (2, 20), "a": (1, 6), "t": (2, 9)},
        formulas=(
            lambda u, a, t: u + a * t,
            lambda u, a, t: u - a * t,
            lambda u, a, t: a * t,
            lambda u, a, t: u + a * t * t / 2,
        ),
        units=("m/s", "m/s^2", "m", "km/h"),
    ),
    Kind(
        name="distance",
        text="A car at {u:g} m/s accelerates at {a:g} m/s^2 for {t:g} s. How far does it get?",
        ranges={"u": (2, 20), "a": (1, 6), "t": (2, 9)},
        formulas=(
            lambda u, a, t: u * t + a * t * t / 2,
            lambda u, a, t: u * t + a * t * t,
            lambda u, a, t: u * t,
            lambda u, a, t: (u + a * t) * t,
        ),
        units=("m", "m/s", "km", "m^2"),
    ),
    Kind(
        name="force",
        text="What force gives a body of {m:g} kg an acceleration of {a:g} m/s^2?",
        ranges={"m": (2, 40), "a": (2, 9)},
        formulas=(lambda m, a: m * a, lambda m, a: m / a, lambda m, a: m * a / 2, lambda m, a: m * a * _GRAVITY),
        units=("N", "J", "kg", "W"),
    ),
    Kind(
        name="kinetic energy",
        text="What is the kinetic energy of a body of {m:g} kg that moves at {v:g} m/s?",
        ranges={"m": (2, 40), "v": (2, 20)},
        formulas=(
            lambda m, v: m * v * v / 2,
            lambda m, v: m * v * v,
            lambda m, v: m * v,
            lambda m, v: m * v / 2,
        ),
        units=("J", "N", "W", "J/s"),
    ),
    Kind(
        name="potential energy",
        text="What does it take to lift {m:g} kg by {h:g} m?",
        ranges={"m": (2, 40), "h": (2, 30)},
        formulas=(
            lambda m, h: m * _GRAVITY * h,
            lambda m, h: m * h,
            lambda m, h: m * _GRAVITY * h / 2,
            lambda m, h: m * _GRAVITY / h,
        ),
        units=("J", "N", "W", "m"),
    ),
    Kind(
        name="current",
        text="A resistor of {r:g} ohm lies at {v:g} V. What current flows?",
        ranges={"r": (2, 60), "v": (3, 240)},
        formulas=(lambda r, v: v / r, lambda r, v: v * r, lambda r, v: r / v, lambda r, v: v / r / 2),
        units=("A", "V", "ohm", "W"),
    ),
    Kind(
        name="power",
        text="A resistor of {r:g} ohm lies at {v:g} V. What power does it turn into heat?",
        ranges={"r": (2, 60), "v": (3, 240)},
        formulas=(lambda r, v: v * v / r, lambda r, v: v / r, lambda r, v: v * r, lambda r, v: v * v * r),
        units=("W", "A", "V", "J"),
    ),
    Kind(
        name="parallel",
        text="Resistors of {r:g} ohm and {s:g} ohm are in parallel. What is their resistance?",
        ranges={"r": (2, 60), "s": (2, 60)},
        formulas=(
            lambda r, s: r * s / (r + s),
            lambda r, s: r + s,
            lambda r, s: (r + s) / 2,
            lambda r, s: r * s,
        ),
        units=("ohm", "A", "V", "W"),
    ),
    Kind(
        name="frequency",
        text="A wave of length {w:g} m runs at {c:g} m/s. What is its frequency?",
        ranges={"w": (2, 30), "c": (20, 400)},
        formulas=(
            lambda w, c: c / w,
            lambda w, c: c * w,
            lambda w, c: w / c,
            lambda w, c: 2 * math.pi * c / w,
        ),
        units=("Hz", "m", "s", "m/s"),
    ),
    Kind(
        name="pendulum",
        text="What is the period of a pendulum of {length:g} m?",
        ranges={"length": (1, 30)},
        formulas=(
            lambda length: 2 * math.pi * math.sqrt(length / _GRAVITY),
            lambda length: 2 * math.pi * math.sqrt(_GRAVITY / length),
            lambda length: math.sqrt(length / _GRAVITY),
            lambda length: 2 * math.pi * length / _GRAVITY,
        ),
        units=("s", "Hz", "m", "m/s"),
    ),
)


def is_right(text: str, answer: float, unit: str) -> bool:
    """Whether the first number of a text is within 5 % of the answer and has its unit.

    >>> is_right("It is 98.3 J.", 98.0, "J"), is_right("98 W", 98.0, "J"), is_right("about a hundred", 98.0, "J")
    (True, False, False)
    """
    found = _ANSWER.search(text)
    if found is None or found.group(2).rstrip(".,;") != unit:
        return False
    return math.isclose(float(found.group(1)), answer, rel_tol=TOLERANCE)


def problems(count: int, *, seed: int = 0) -> list[Prompt]:
    """Random problems of all kinds in turn; tags `answer`, `unit` and `kind`."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        drawn = kind.draw(generator)
        text, answer = kind.text.format(**drawn), kind.formulas[0](**drawn)
        found.append(Prompt.of(text, source="physics", kind=kind.name, answer=answer, unit=kind.units[0]))
    return found


class PhysicsScorer:
    """Scores an answer: 1.0 on the channel "reward" if its first number and unit are those of the prompt.

    >>> prompt = problems(1)[0]
    >>> texts = (f"{prompt.tags['answer']:g} {prompt.tags['unit']}", "1000000 m/s")
    >>> completions = [Completion(prompt_id=prompt.id, text=text) for text in texts]
    >>> [scores.values["reward"] for scores in PhysicsScorer().score([prompt] * 2, completions)]
    [1.0, 0.0]
    """

    name = "physics"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Check each response against the tags `answer` and `unit` of the prompt beside it."""
        return [
            Scores(values={"reward": float(is_right(each.text, prompt.tags["answer"], prompt.tags["unit"]))})
            for prompt, each in zip(prompts, completions, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class PhysicsTable:
    """The kinds as contexts and the steps as tokens: a table [X, T, A] of what is done at each step.

    What is right is found by the checker of texts, on `drawn` problems of each kind. The starting policy takes the
    right formula in 45 % of the answers, the right scale in 80 % and the right unit in 70 %, more for some kinds and
    less for others, as the seed has it.
    """

    drawn: int = 50
    seed: int = 0
    right_at_start: tuple[float, ...] = (0.45, 0.8, 0.7)
    num_arms: int = 4

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """One prompt for each kind; the tag `context` is its number."""
        return tuple(Prompt.of(f"physics: {kind.name}", source="physics", context=i) for i, kind in enumerate(KINDS))

    @cached_property
    def passes(self) -> Tensor:
        """Whether each answer [X, N, A, A, A] to each problem drawn is right."""
        generator = random.Random(self.seed)
        return torch.tensor([[_verdicts(kind, kind.draw(generator)) for _ in range(self.drawn)] for kind in KINDS])

    @cached_property
    def start(self) -> Tensor:
        """Logits [X, T, A] of the starting policy: the right choice by its step, the mistakes not all alike."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(KINDS), len(STEPS), self.num_arms)
        right = torch.tensor(self.right_at_start).logit() + 0.5 * torch.randn(shape[:2], generator=generator)
        mistakes = torch.randn(*shape[:2], self.num_arms - 1, generator=generator).log_softmax(-1)
        return torch.cat([right[..., None], mistakes], -1)

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Rewards [B] of answering problems of the kinds `contexts` [B] by the steps [B, T]; numbers are drawn."""
        drawn = torch.randint(self.drawn, contexts.shape, generator=generator)
        return {"reward": self.passes[contexts, drawn, *arms.unbind(-1)].float()}

    def accuracy_of(self, policy: Tensor) -> float:
        """How often a policy [X, T, A] is right on the problems drawn, exactly."""
        answers = torch.einsum("xa,xb,xc->xabc", *policy.double().unbind(1))
        return float((answers * self.passes.double().mean(1)).sum((1, 2, 3)).mean())

    def steps_right(self, policy: Tensor) -> float:
        """How many of its steps a policy [X, T, A] takes rightly on average, as a share."""
        return float(policy[..., 0].mean())


def _verdicts(kind: Kind, drawn: Quantities) -> list[list[list[bool]]]:
    answer, unit = kind.formulas[0](**drawn), kind.units[0]
    return [
        [[is_right(f"{scale * formula(**drawn):.4g} {said}", answer, unit) for said in kind.units] for scale in SCALES]
        for formula in kind.formulas
    ]
