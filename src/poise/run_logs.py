"""metrics.jsonl and samples.jsonl of a run: lines that stages append, and what the lines of each stage came to.

Of every stage the number and the checksum of its lines are known, so that a stage's record can say which lines were
there when it finished, and a run that was stopped cleanly which lines there were at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from poise.checksums import difference
from poise.errors import RunError
from poise.files import append_line, atomic_write, json_line, lines_of, truncate_partial_line
from poise.ranks import current

LOGS = ("metrics.jsonl", "samples.jsonl")

Logged = dict[str, dict[str, Any]]  # by file: how many lines of a stage there are, and their checksum


class RunLogs:
    """The logs of the run in `folder`, as the main process writes them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tallies: dict[str, dict[str, _Tally]] = {name: {} for name in LOGS}

    def reread(self) -> None:
        """Read what is there, less a last line that a killed process left half written."""
        for name in LOGS:
            truncate_partial_line(self.folder / name)
            self._tallies[name] = {}
            for line, row in self._lines(name):
                self._tally(name, row["stage"]).add(line)

    def append(self, name: str, stage: str, row: Mapping[str, Any]) -> None:
        """Append one line of a stage."""
        line = json_line(row)
        append_line(self.folder / name, line)
        self._tally(name, stage).add(line)

    def rows(self, name: str, stage: str | None) -> list[dict[str, Any]]:
        """The lines of one stage or of all, in the order in which they were written."""
        return [row for _, row in self._lines(name) if stage in (None, row["stage"])]

    def rewind(self, stage: str, step: int) -> None:
        """Forget the lines of a stage after a step."""
        if not current().is_main:
            return
        for name in LOGS:
            lines = list(self._lines(name))
            kept = [(line, row) for line, row in lines if row["stage"] != stage or row["step"] <= step]
            if len(kept) < len(lines):
                atomic_write(self.folder / name, b"".join(line for line, _ in kept))
                self._tallies[name].pop(stage, None)
                for line, row in kept:
                    if row["stage"] == stage:
                        self._tally(name, stage).add(line)

    def logged(self, stage: str) -> Logged:
        """What the lines of a stage come to so far."""
        return {name: self._tally(name, stage).facts for name in LOGS}

    def every_stage(self) -> dict[str, Logged]:
        """What the lines of all stages come to so far."""
        return {
            stage: self.logged(stage) for stage in sorted({s for tallies in self._tallies.values() for s in tallies})
        }

    def require(self, stage: str, expected: Mapping[str, Mapping[str, Any]], *, remedy: str, and_more: bool) -> None:
        """Raise RunError unless the lines of a stage are those that were there when `expected` was noted.

        With `and_more` further lines may follow them: those of a stage that went on.
        """
        for name, facts in expected.items():
            found = self._tally(name, stage)
            if and_more and found.rows > facts["rows"]:
                found = self._first(name, stage, facts["rows"])
            if found.facts != facts:
                what = difference(found.facts, facts)
                raise RunError(f"{self.folder / name} is damaged in the lines of stage {stage!r}: {what}. {remedy}")

    def require_all(self, expected: Mapping[str, Logged], *, remedy: str) -> None:
        """Raise RunError unless the lines of all stages are those that were there when the run was stopped cleanly."""
        nothing = {name: _Tally().facts for name in LOGS}
        for stage in sorted({*expected, *self.every_stage()}):
            self.require(stage, expected.get(stage, nothing), remedy=remedy, and_more=False)

    def _tally(self, name: str, stage: str) -> _Tally:
        return self._tallies[name].setdefault(stage, _Tally())

    def _first(self, name: str, stage: str, number: int) -> _Tally:
        tally = _Tally()
        for line, row in self._lines(name):
            if row["stage"] == stage and tally.rows < number:
                tally.add(line)
        return tally

    def _lines(self, name: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path = self.folder / name
        for number, (line, row) in enumerate(lines_of(path), start=1):
            if not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
                raise RunError(
                    f"{path}, line {number}, does not belong to a run: it has no stage and step. Restore the file "
                    "from a copy"
                )
            yield line, row


class _Tally:
    """How many lines there are, and their checksum."""

    def __init__(self) -> None:
        self.rows, self._digest = 0, hashlib.sha256()

    def add(self, line: bytes) -> None:
        self.rows += 1
        self._digest.update(line)

    @property
    def facts(self) -> dict[str, Any]:
        return {"rows": self.rows, "sha256": self._digest.hexdigest()}
