"""Fronts of two figures that are both to be high: which points nothing else beats, and how much they cover."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one figure and matches in the other, the first figure rising.

    >>> front([(1.0, 1.0), (0.0, 2.0), (0.5, 0.5), (1.0, 0.0)])
    [(0.0, 2.0), (1.0, 1.0)]
    """
    kept: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area between a reference point and the points: all pairs of figures that some point reaches or beats.

    Points that do not beat the reference in both figures cover nothing. The unit is the product of the figures' units.
    Source: Zitzler and Thiele (1998), for two figures.

    >>> hypervolume([(2.0, 1.0), (1.0, 3.0)], (0.0, 0.0))
    4.0
    """
    inside = front([point for point in points if point[0] > reference[0] and point[1] > reference[1]])
    area, left = 0.0, reference[0]
    for across, up in inside:
        area += (across - left) * (up - reference[1])
        left = across
    return area
