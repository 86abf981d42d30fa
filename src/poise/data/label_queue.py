"""Answers that people are asked to label, one JSON object a line; the same file, filled in, holds their labels.

    {"prompt_id": "9c...", "sample": 0, "prompt": "...", "response": "...", "harmful": null}

`harmful` becomes true or false; a line that is left null has no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from poise.data.reading import is_data_file, known_suffixes, read_file
from poise.errors import DataError
from poise.files import atomic_write, json_line
from poise.types import Rollout


def write_queue(path: Path | str, rollouts: Sequence[Rollout]) -> None:
    """Write answers to be labelled, in their order; a file that is there already is left as it is.

    Raises DataError if it is there: it may hold labels.
    """
    place = Path(path)
    if place.exists():
        raise DataError(f"{place} is there already and may hold labels: it was left as it is. Choose another name")
    rows = [
        {"prompt_id": r.prompt.id, "sample": r.completion.sample, "prompt": r.prompt.text,
         "response": r.completion.text, "harmful": None}
        for r in rollouts
    ]  # fmt: skip
    atomic_write(place, b"".join(json_line(row) for row in rows))


def read_labels(path: Path | str) -> Mapping[tuple[str, int], bool]:
    """The labels of a queue that was filled in, by prompt id and number of the sample.

    Raises DataError, with the line, for a row that cannot be read, is not as described or is labelled twice; or if no
    row has a label.
    """
    place = Path(path)
    labels: dict[tuple[str, int], bool] = {}
    if not place.is_file():
        raise DataError(f"{place}: there is no such file of labels")
    if not is_data_file(place):
        raise DataError(f"{place}: labels are read from files with {known_suffixes()}")
    for raw in read_file(place, place.name).rows:
        number, row = raw.line, raw.columns
        if row is None:
            raise DataError(f"{place}:{number} cannot be read: {raw.problem}")
        name, sample, harmful = row.get("prompt_id"), row.get("sample", 0), row.get("harmful")
        if not isinstance(name, str) or type(sample) is not int:
            raise DataError(
                f"{place}:{number}: prompt_id and sample must be as the queue has them, got {name!r}, {sample!r}"
            )
        if harmful is None:
            continue
        if not isinstance(harmful, bool):
            raise DataError(f"{place}:{number}: harmful is {harmful!r}: give true or false, or null for no label")
        if labels.get((name, sample), harmful) != harmful:
            raise DataError(f"{place}:{number}: a second, different label of the same answer: keep one")
        labels[name, sample] = harmful
    if not labels:
        raise DataError(f"{place}: no row has a label: fill in `harmful` with true or false")
    return labels
