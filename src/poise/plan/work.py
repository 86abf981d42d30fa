"""What a stage will take, and a planner that is told: inside `planning(...)` stages say so instead of working."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from poise.plan.compute import Compute
from poise.run import Run

CHARACTERS_PER_TOKEN = 4.2  # where the tokenizer is not at hand
_SAMPLED_TEXTS = 64  # whose tokens are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """An estimate of one stage."""

    name: str
    seconds: float
    memory: float  # bytes of one process at the peak
    work: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How many tokens texts have; told from characters where the tokenizer is not at hand."""

    of: Callable[[str], float] = lambda text: len(text) / CHARACTERS_PER_TOKEN
    template: float = 20.0  # around a prompt

    def mean(self, texts: Sequence[str]) -> float:
        """Mean tokens of a text, by some of them.

        >>> Tokens(of=len).mean(["ab", "abcd"])
        3.0
        """
        some = texts[:: max(1, len(texts) // _SAMPLED_TEXTS)]
        return sum(map(self.of, some)) / max(1, len(some))


@dataclass(slots=True, kw_only=True)
class Planner:
    """Collects what the stages of a recipe will take; a stage that is named twice is done once."""

    compute: Compute
    tokens: Tokens = Tokens()
    folder: Path | None = None  # of the whole run
    stages: dict[str, StagePlan] = field(default_factory=dict)
    cached: set[tuple[float, str, str]] = field(default_factory=set)  # depth, prompt, response: features known by then

    def named(self, run: Run, stage: str) -> str:
        """The stage with the part of the run that it belongs to, where the run has parts."""
        return stage if run.path == self.folder else f"{run.path.name}/{stage}"

    def add(self, name: str, *, seconds: float, memory: float, work: str) -> None:
        """Note a stage: `memory` in bytes beyond the process and the weights."""
        base = self.compute.process() + self.compute.weights()
        self.stages.setdefault(name, StagePlan(name=name, seconds=seconds, memory=base + memory, work=work))


_PLANNER: ContextVar[Planner | None] = ContextVar("_PLANNER", default=None)


def current_planner() -> Planner | None:
    """The planner that stages report to; None where they shall work."""
    return _PLANNER.get()


@contextmanager
def planning(planner: Planner) -> Iterator[Planner]:
    """Have every stage inside the block report what it would take, instead of working."""
    token = _PLANNER.set(planner)
    try:
        yield planner
    finally:
        _PLANNER.reset(token)
