"""One preference from decoupled feedback: the safe response before the unsafe one, then what was judged."""

from __future__ import annotations

from dataclasses import replace

from poise.errors import DataError
from poise.types import Comparison, Dataset

JOINT = "joint"


def safety_first(dataset: Dataset, *, both_unsafe: bool = True) -> tuple[Comparison, ...]:
    """The pairs under one criterion, `joint`: of a safe and an unsafe response the safe one wins, whatever was judged.

    Where both are safe, or neither is, the judgement stays, once for each pair: that of help before that of safety.
    Pairs of which a flag is not known stay as judged. The margin is 1 where only the winner is safe, else 0.

    both_unsafe  False: pairs of two unsafe responses are left out, of which a policy should say neither

    Source: the reordering of SafeDPO (arXiv:2505.20065), for `train.preference_methods.safe_dpo`; and what one joint
    preference says that a single reward model learns from.

    Raises DataError if nothing is left.
    """
    known = {(label.prompt.id, label.response): label.safe for label in dataset.labels}
    found: dict[tuple[str, frozenset[str]], Comparison] = {}
    for row in sorted(dataset.comparisons, key=lambda row: row.criterion != "helpful"):
        if row.winner is None or len(row.responses) != 2:
            continue
        flags: tuple[bool | None, ...] = row.safe or tuple(
            known.get((row.prompt.id, response)) for response in row.responses
        )
        if not both_unsafe and flags == (False, False):
            continue
        winner, margin = row.winner, 0.0
        if set(flags) == {True, False}:
            winner, margin = flags.index(True), 1.0
        joint = replace(row, criterion=JOINT, winner=winner, probability=None, margin=margin, ranking=())
        found.setdefault((row.prompt.id, frozenset(row.responses)), joint)
    if not found:
        raise DataError(f"{dataset.name} has no pair of responses with a winner: there is no joint preference to learn")
    return tuple(found.values())
