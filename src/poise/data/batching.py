"""Which rows a step sees: a pure function of the step and the seed, so that a resumed run continues where it was."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

from poise.errors import ConfigError


def epoch_order(
    size: int, per_step: int, step: int, *, seed: int, strata: Sequence[Hashable] | None = None
) -> list[int]:
    """Indices of the rows for `step`: each epoch is a new permutation, and steps run across its borders.

    With `strata`, one for each row, every stretch of an epoch holds the strata in their proportions, so that the mean
    of a small batch does not depend on how many rows of each it happened to draw.

    Raises ConfigError if `size` or `per_step` is below 1.

    >>> seen = [i for step in range(4) for i in epoch_order(6, 3, step, seed=0)]
    >>> sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    True
    """
    if size < 1 or per_step < 1:
        raise ConfigError(
            f"{size} rows, {per_step} per step: both must be at least 1; check whether a filter removed all rows"
        )
    chosen: list[int] = []
    position = step * per_step
    while len(chosen) < per_step:
        epoch, offset = divmod(position + len(chosen), size)
        order = list(range(size))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        order = order if strata is None or len(set(strata)) == 1 else _spread(order, strata)
        chosen += order[offset : offset + per_step - len(chosen)]
    return chosen


def _spread(order: Sequence[int], strata: Sequence[Hashable]) -> list[int]:
    """The rows of each stratum, in their order, at equal distances."""
    sizes, seen, place = Counter(strata), Counter[Hashable](), {}
    for row in order:
        seen[strata[row]] += 1
        place[row] = (seen[strata[row]] - 0.5) / sizes[strata[row]]
    return sorted(order, key=place.__getitem__)


def num_steps(size: int, per_step: int, epochs: float) -> int:
    """Steps that see every row `epochs` times, rounded up."""
    return max(1, -(-round(size * epochs) // per_step))
