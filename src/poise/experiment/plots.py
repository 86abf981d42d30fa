"""What pictures of studies draw: curves with bands, clouds of points, and figures over a number that arms differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from poise.evaluate.figures import Series

if TYPE_CHECKING:
    from poise.experiment.results import Results

Panels = Mapping[str, Sequence[Series]]
Known = Callable[[], Mapping[str, tuple[Sequence[float], Sequence[float]]]]  # label -> x and y, drawn dashed


def curves(x: str, y: str) -> Callable[[Results], Panels]:
    """Each arm's curve, with the band of its seeds' intervals."""
    return lambda results: {"": [results.series(arm, x, y) for arm in results.study.arms]}


def clouds(x: str, y: str, *, known: Known = dict) -> Callable[[Results], Panels]:
    """The points of each arm's curves from every seed, beside what is known exactly."""

    def draw(results: Results) -> Panels:
        found = dashed(known)
        for arm, trials in results.trials.items():
            points = [(a, b) for trial in trials for a, b in zip(trial.curves[x], trial.curves[y], strict=True)]
            across, up = zip(*points, strict=True)
            found.append(Series(label=results.study.label(arm), x=across, y=up, is_line=False))
        return {"": found}

    return draw


def over(at: Mapping[str, float], metrics: Sequence[str], *, known: Known = dict) -> Callable[[Results], Panels]:
    """Metrics of arms over the number in which the arms differ, beside what is known exactly.

    at  arm -> its number; arms that were not run are left out
    """

    def draw(results: Results) -> Panels:
        return {"": [*dashed(known), *(results.points(at, metric) for metric in metrics)]}

    return draw


def against(x: str, y: str, groups: Mapping[str, Sequence[str]]) -> Callable[[Results], Panels]:
    """One metric of arms against another, with the intervals of the latter: a cloud of points for each group of arms.

    groups  label -> arms; those that were not run are left out
    """

    def draw(results: Results) -> Panels:
        there = {label: [arm for arm in arms if arm in results.trials] for label, arms in groups.items()}
        return {
            "": [
                results.points({arm: float(results.values(arm, x).mean()) for arm in arms}, y, label)
                for label, arms in there.items()
                if arms
            ]
        }

    return draw


def dashed(known: Known) -> list[Series]:
    """Lines of what is known, drawn dashed."""
    return [Series(label=label, x=x, y=y, is_dashed=True) for label, (x, y) in known().items()]
