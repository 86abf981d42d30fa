"""Raw rows to a Dataset: each row is read by itself, and what cannot be read is counted, kept and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.data.datasets.base import Item, Parse, Place, ScoresAs
from poise.data.reading import RawFile, RawRow
from poise.errors import DataError
from poise.files import atomic_write, json_line
from poise.types import BadRow, Comparison, Dataset, Demonstration, Prompt, Rating, SafetyLabel, Verdict


class Collector:
    """Gathers what the rows of several files hold.

    Prompts are kept once, by id. A safety label from a row that judges a pair is kept once for the same response and
    verdict, since one response stands in many pairs; labels that rows give on their own are votes, and all kept.
    """

    def __init__(self, name: str, *, strict: bool = False, scores: ScoresAs = "margins") -> None:
        self.name = name
        self.strict, self.scores = strict, scores
        self._prompts: dict[str, Prompt] = {}
        self._demonstrations: list[Demonstration] = []
        self._comparisons: list[Comparison] = []
        self._labels: list[SafetyLabel] = []
        self._verdicts: list[Verdict] = []
        self._ratings: list[Rating] = []
        self._restated: set[tuple[str, str, bool]] = set()
        self._bad_rows: list[BadRow] = []
        self._files: list[dict[str, Any]] = []
        self._repeated_prompts = 0

    def read(self, file: RawFile, parse: Parse, *, source: str, licence: str, non_commercial: bool | None) -> None:
        """Read all rows of a file with one parser; raises DataError on the first bad row if strict."""
        bad_before, judged_before, prompts_before = len(self._bad_rows), self._num_judged(), len(self._prompts)
        for row in file.rows:
            place = Place(
                dataset=source,
                file=file.label,
                line=row.line,
                split=file.split,
                untyped=file.untyped,
                scores=self.scores,
            )
            self._read_row(row, parse, place, file.path)
        num_bad = len(self._bad_rows) - bad_before
        if self._num_judged() == judged_before:  # a file of prompts alone, where one row should be one prompt
            num_new = len(self._prompts) - prompts_before
            self._repeated_prompts += max(0, len(file.rows) - num_bad - num_new)
        entry: dict[str, Any] = {"path": file.path, "sha256": file.sha256, "source": source}
        entry |= {"licence": licence, "non_commercial": non_commercial}
        entry |= {"rows_read": len(file.rows), "rows_bad": num_bad}
        self._files.append(entry)

    def dataset(self, **provenance: Any) -> Dataset:
        """All that was read, with where it came from."""
        return Dataset(
            name=self.name,
            prompts=tuple(self._prompts.values()),
            demonstrations=tuple(self._demonstrations),
            comparisons=tuple(self._comparisons),
            labels=tuple(self._labels),
            verdicts=tuple(self._verdicts),
            ratings=tuple(self._ratings),
            bad_rows=tuple(self._bad_rows),
            provenance=summed(self._files) | {"repeated_prompts": self._repeated_prompts} | provenance,
        )

    def _read_row(self, row: RawRow, parse: Parse, place: Place, path: str) -> None:
        try:
            if row.columns is None:
                raise DataError(row.problem)
            items = list(parse(row.columns, place))
        except (DataError, ValueError) as error:
            if self.strict:
                raise DataError(
                    f"{path}:{row.line}: {error} (with strict=True the first bad row is an error)"
                ) from error
            text = row.text or json.dumps(row.columns, ensure_ascii=False, default=str)
            self._bad_rows.append(BadRow(path=path, line=row.line, reason=str(error), row=text))
            return
        self._add(items)

    def _num_judged(self) -> int:
        judged = len(self._demonstrations) + len(self._comparisons) + len(self._labels)
        return judged + len(self._verdicts) + len(self._ratings)

    def _add(self, items: list[Item]) -> None:
        is_pair = sum(isinstance(item, (Comparison, SafetyLabel)) for item in items) > 1
        for item in items:
            prompt = item if isinstance(item, Prompt) else item.prompt
            self._prompts.setdefault(prompt.id, prompt)
            if isinstance(item, Demonstration):
                self._demonstrations.append(item)
            elif isinstance(item, Comparison):
                self._comparisons.append(item)
            elif isinstance(item, SafetyLabel):
                self._add_label(item, restates=is_pair)
            elif isinstance(item, Verdict):
                self._verdicts.append(item)
            elif isinstance(item, Rating):
                self._ratings.append(item)

    def _add_label(self, label: SafetyLabel, *, restates: bool) -> None:
        key = (label.prompt.id, label.response, label.safe)
        if restates and key in self._restated:
            return
        self._restated.add(key)
        self._labels.append(label)


def summed(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Provenance of several files: all licences, the strictest use, and rows added up."""
    uses = {file["non_commercial"] for file in files}
    return {
        "files": files,
        "licence": "; ".join(dict.fromkeys(file["licence"] for file in files)),
        "non_commercial": True if True in uses else (None if None in uses else False),  # None: nobody said
        "rows_read": sum(file["rows_read"] for file in files),
        "rows_bad": sum(file["rows_bad"] for file in files),
    }


def write_quarantine(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """Write one JSON line for each bad row: path, line, reason and the row itself; no bad rows leave an empty file."""
    entries = ({"path": row.path, "line": row.line, "reason": row.reason, "row": row.row} for row in bad_rows)
    atomic_write(path, b"".join(json_line(entry) for entry in entries))
