"""The accuracy of a judge: its verdicts compared with those of people."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from poise.errors import DataError
from poise.functional.statistics import ratio_of_sums, share
from poise.types import Estimate


def check_judge(
    said: Sequence[bool], truth: Sequence[bool], clusters: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """Compare the verdicts of a judge with labels; figures without data are omitted.

    accuracy          share of rows on which both agree
    precision         share of the verdicts "yes" that are true
    recall            share of the true rows that the judge finds
    f1                2 TP / (2 TP + FP + FN)
    f1_of_the_others  the same with "no" as the class to be found: one F1 hides a judge that always says yes

    said, truth  [N] the judge's verdicts, and what people said
    clusters     [N] labels of the prompts; by default every row is its own

    Raises DataError without rows, or if the lengths differ.

    Raises DataError without rows, or if the lengths differ.

    >>> figures = check_judge([True, True, False, False], [True, False, False, False])
    >>> round(figures["f1"].value, 3), figures["recall"].value
    (0.667, 1.0)
    """
    if not said or len(said) != len(truth):
        raise DataError(f"a judge needs a verdict and a label for each row, got {len(said)} and {len(truth)}")
    pairs = list(zip(said, truth, strict=True))
    hits = [int(a and b) for a, b in pairs]
    ratios = {
        "precision": (hits, [int(a) for a, _ in pairs]),
        "recall": (hits, [int(b) for _, b in pairs]),
        "f1": _f1_parts(pairs),
        "f1_of_the_others": _f1_parts([(not a, not b) for a, b in pairs]),
    }
    figures = {"accuracy": share([a == b for a, b in pairs], clusters)}
    for name, (above, below) in ratios.items():
        if any(below):
            figures[name] = ratio_of_sums(above, below, clusters)
    return figures


def _f1_parts(pairs: Sequence[tuple[bool, bool]]) -> tuple[list[int], list[int]]:
    return [2 * (a and b) for a, b in pairs], [a + b for a, b in pairs]
