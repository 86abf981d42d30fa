"""Several seeds of one experiment: the interval over their pooled answers, and the standard deviation between seeds.

The two answer different questions. The interval says how well these policies are known on prompts like these; the
standard deviation says how much the next seed may differ. Neither replaces the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from poise.types import Estimate, Rollout

Answers = Sequence[Rollout]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverSeeds:
    """A figure pooled over the answers of all seeds, and the same figure for each seed."""

    pooled: Estimate
    by_seed: tuple[Estimate, ...]

    @property
    def sd(self) -> float | None:
        """The standard deviation between seeds, in the figure's unit; None for a single seed.

        >>> one, two = Estimate(value=1.0, n=9), Estimate(value=3.0, n=9)
        >>> OverSeeds(pooled=Estimate(value=2.0, n=18), by_seed=(one, two)).sd ** 2
        2.0000000000000004
        """
        values = [estimate.value for estimate in self.by_seed]
        return statistics.stdev(values) if len(values) > 1 else None


def over_seeds(measure: Callable[..., Mapping[str, Estimate]], *sides: Sequence[Answers]) -> dict[str, OverSeeds]:
    """Measure the answers of all seeds together and those of each seed; figures that a seed lacks are left out.

    measure  `measure` of the suite for one side, or `compare` for two
    sides    for each side (after, or before and after) the answers of every seed
    """
    pooled = measure(*(pool(side) for side in sides))
    each = [measure(*answers) for answers in zip(*sides, strict=True)]
    return {
        name: OverSeeds(pooled=estimate, by_seed=tuple(figures[name] for figures in each))
        for name, estimate in pooled.items()
        if all(name in figures for figures in each)
    }


def pool(runs: Sequence[Answers]) -> tuple[Rollout, ...]:
    """All answers as if one model had sampled them; samples are numbered anew, so that pairs stay pairs.

    Prompts keep their ids: the unit of intervals is a prompt with the answers of all seeds.
    """
    most = 1 + max((r.completion.sample for answers in runs for r in answers), default=0)
    return tuple(
        replace(r, completion=replace(r.completion, sample=number * most + r.completion.sample))
        for number, answers in enumerate(runs)
        for r in answers
    )
