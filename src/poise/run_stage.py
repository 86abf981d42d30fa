"""A stage of a run: done once, its result and the checksums of what it left sealed in stage.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from poise.checksums import STAGE_RECORD, facts_below, read_sealed, require_facts, write_sealed
from poise.errors import RunError
from poise.files import to_jsonable
from poise.ranks import current
from poise.run_logs import RunLogs

_NOT_READ_AGAIN = ("checkpoints", "adapters", STAGE_RECORD)  # by a stage that is finished: they may be deleted
STAGE_REMEDY = "Restore it from a copy, or delete {place}: the same command then runs the stage again"


class Staged(Protocol):
    """What a stage asks of the run that it is a part of."""

    path: Path
    logs: RunLogs
    results: dict[str, dict[str, Any]]  # of stages that are finished, and verified by this process

    def require_open(self) -> None:
        """Raise RunError if the run is closed."""

    def save(self) -> None:
        """Write run.json."""


class Stage:
    """One part of a run that is done once: its folder, and its result when it has finished.

    stage.json holds the result, and in its seal the stage's name and the checksum of every file that it left. They are
    compared the first time that a process asks for the stage, so that nothing damaged is taken for a result.
    """

    def __init__(self, run: Staged, name: str):
        self.run, self.name, self.path = run, name, run.path / name

    @property
    def finished(self) -> bool:
        """True once `finish` has been called, in this session or an earlier one; RunError if its files are damaged."""
        return self._recorded() is not None

    @property
    def result(self) -> dict[str, Any]:
        """What the stage was finished with. Raises RunError if the stage is not finished."""
        if (found := self._recorded()) is None:
            raise RunError(f"stage {self.name!r} of {self.run.path} has no result yet: check `finished` first")
        return copy.deepcopy(found)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record the result with checksums of the stage's files and lines; a resumed run skips this stage."""
        self.run.require_open()
        recorded: dict[str, Any] = to_jsonable(result)
        if current().is_main:
            seal_stage(self.path, recorded, logged=self.run.logs.logged(self.name))
        self.run.results[self.name] = json.loads(json.dumps(recorded))
        self.run.save()
        current().wait()
        return recorded

    def expect_lines(self) -> None:
        """The finished stage is about to log more: its record can no longer say how many lines it has."""
        result, seal = read_sealed(self.path / STAGE_RECORD, remedy=STAGE_REMEDY.format(place=self.path / STAGE_RECORD))
        if seal["logged"]:
            write_sealed(self.path / STAGE_RECORD, result, stage=self.name, files=seal["files"], logged={})

    def _recorded(self) -> dict[str, Any] | None:
        if (known := self.run.results.get(self.name)) is not None:
            return known
        found: dict[str, Any] | None = current().broadcast_object(self._verified() if current().is_main else None)
        if found is not None:
            self.run.results[self.name] = found
        return found

    def _verified(self) -> dict[str, Any] | None:
        if not (path := self.path / STAGE_RECORD).exists():
            return None
        result, seal = read_sealed(path, remedy=STAGE_REMEDY.format(place=path))
        remedy = STAGE_REMEDY.format(place=self.path)
        if (made_as := seal.get("stage", self.name)) != self.name:
            raise RunError(f"{path} is damaged: it belongs to stage {made_as!r}. {remedy}")
        require_facts(self.path, seal["files"], remedy=remedy)
        self.run.logs.require(self.name, seal["logged"], remedy=remedy, and_more=False)
        return result


def seal_stage(folder: Path, result: Mapping[str, Any], *, logged: Mapping[str, Any] | None = None) -> None:
    """Record the result of a stage and the checksums of its files: in whichever process did the stage's work.

    logged  the lines that the run has of the stage; a process beside the one that holds the run writes none
    """
    facts = {"stage": folder.name, "files": facts_below(folder, but=_NOT_READ_AGAIN), "logged": dict(logged or {})}
    write_sealed(folder / STAGE_RECORD, to_jsonable(result), **facts)
