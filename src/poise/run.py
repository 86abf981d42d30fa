"""One folder per run: what was asked, what happened and what came out.

    runs/safe-rlhf-20261121-051300/
      run.json         recipe, arguments, versions, machine, commit, data checksums, seeds, sessions
      recipe.py        the recipe, where the run was started from the user's own file
      metrics.jsonl    one line per logged step
      samples.jsonl    one line per kept rollout
      <stage>/         stage.json (the stage's result, once finished) and whatever the stage keeps
      summary.json     the last line that the run printed
      lock             held while a process writes here

Files are replaced whole or grow by whole lines, so a process that is killed at any moment leaves a folder from which
the same command continues.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

from poise.checksums import STAGE_RECORD, facts_of, write_sealed
from poise.errors import ConfigError, RunError
from poise.files import (
    atomic_write,
    in_words,
    read_json,
    read_jsonl_tolerant,
    require_free_space,
    to_jsonable,
    translate_os_errors,
    write_json,
)
from poise.provenance import peak_rss_gib, threads
from poise.ranks import current
from poise.run_folder import (
    OF_ANY_START,
    RECIPE,
    RECORD,
    SUMMARY,
    acquire_lock,
    clean_after_kill,
    default_folder,
    made_by,
    recipe_name,
    remove_failed_start,
    require_run_or_empty,
)
from poise.run_logs import LOGS, RunLogs
from poise.run_record import (
    checksums,
    difference_of,
    new_record,
    now,
    plain_arguments,
    read_record,
    require_output,
    require_same,
)
from poise.run_stage import Stage
from poise.text import hide_passwords, say
from poise.types import Rollout

__all__ = ["RECIPE_FILE", "Run", "Stage", "atomic_write", "default_folder", "read_jsonl_tolerant", "require_free_space"]

RECIPE_FILE: ContextVar[Path | None] = ContextVar("RECIPE_FILE", default=None)  # the user's own recipe, kept in the run

_SAVE_EVERY_S = 60.0
_NO_OUTPUTS = {*OF_ANY_START, *LOGS}
_LINES_REMEDY = "Restore the file from a copy, or start a new run with another --folder"


class Run:
    """A folder that records one run of a recipe, locked while it is open.

    >>> import tempfile
    >>> with Run.open(tempfile.mkdtemp(), recipe="example", arguments={"steps": 2}) as run:
    ...     run.log("train", 1, {"loss": 0.5})
    ...     if not (stage := run.stage("train")).finished:
    ...         result = stage.finish({"loss": 0.5})
    >>> run.metrics("train")[0]["loss"]
    0.5
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: int):
        self.path = path
        self.logs = RunLogs(path)
        self.results: dict[str, dict[str, Any]] = {}  # of stages that are finished, and verified by this process
        self._record, self._lock = record, lock
        self._open_ended: set[str] = set()  # stages that log after they have finished
        self._made: list[Path] | None = None  # the folders made for it, where it was begun by this process
        self._begin = self._saved = time.monotonic()
        session = {
            **{"started": now(), "argv": hide_passwords(sys.argv), "threads": threads()},
            **{"minutes": 0.0, "peak_rss_gib": 0.0},
        }
        self._session = session
        record["sessions"].append(session)

    @classmethod
    def open(
        cls,
        folder: Path | str | None,
        *,
        recipe: str,
        arguments: Mapping[str, Any],
        sources: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run, or continue the one in `folder` if it has the same recipe and arguments.

        folder     None names a new one: runs/<recipe>-<YYYYmmdd-HHMMSS>
        arguments  resolved, as the recipe received them; "folder" is left out of the comparison
        sources    anything else to keep in run.json, for instance where the arguments came from

        Raises RunError for a folder that another process holds, that belongs to another run or that is not a run.
        """
        path = Path(current().broadcast_object(str(default_folder(recipe) if folder is None else folder)))
        if not current().is_main:
            return cls._follow(path)
        require_run_or_empty(path)
        wanted, made = plain_arguments(arguments), made_by(path)
        lock = acquire_lock(path)
        try:
            run = cls._begun_or_continued(path, lock, recipe_name(recipe), wanted, sources or {})
            run._made = None if run._record["sessions"][1:] else made
            if (own_recipe := RECIPE_FILE.get()) is not None:
                atomic_write(path / RECIPE, own_recipe.read_bytes())
                run._record[RECIPE] = facts_of(path / RECIPE)
                run.save()
        except BaseException:
            os.close(lock)
            if not (path / RECORD).exists():
                remove_failed_start(path, made)
            raise
        current().broadcast_object(run._record)
        return run

    @classmethod
    def _begun_or_continued(
        cls, path: Path, lock: int, recipe: str, wanted: dict[str, Any], sources: Mapping[str, Any]
    ) -> Run:
        record = read_record(path / RECORD) if (path / RECORD).exists() else None
        if record is not None:
            require_same(path, record, recipe, wanted)
        with in_words(path):
            clean_after_kill(path)
            run = cls(path, record or new_record(recipe, wanted, to_jsonable(sources)), lock)
            run.logs.reread()
            if (logged := run._record.pop("logged", None)) is not None:
                run.logs.require_all(logged, remedy=_LINES_REMEDY)
            run.save()
        return run

    @classmethod
    def _follow(cls, path: Path) -> Run:
        """The run in a process beside the main one, which alone holds the lock and writes."""
        return cls(path, current().broadcast_object(None), os.open(os.devnull, os.O_RDWR))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(RunError):  # a disk that is full has been reported by the error under way
            self.close()
        if self._made is not None and isinstance(error, Exception):
            remove_failed_start(self.path, self._made)
        if isinstance(error, OSError):
            with in_words(self.path):
                raise error

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def recipe(self) -> str:
        """The recipe's name as on the command line, for instance safe-rlhf."""
        return str(self._record["recipe"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The resolved arguments as recorded."""
        return dict(self._record["arguments"])

    @property
    def record(self) -> dict[str, Any]:
        """All of run.json: what the run was given, and on what it depends besides."""
        return dict(self._record)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run was finished with; None before."""
        path = self.path / SUMMARY
        if not path.exists():
            return None
        require_output(path)
        return read_json(path)

    def close(self) -> None:
        """Release the lock; reading stays possible, writing does not."""
        if self._lock < 0:
            return
        try:
            if current().is_main:
                self._record["logged"] = self.logs.every_stage()
            self.save()
        finally:
            os.close(self._lock)
            self._lock = -1

    def require_open(self) -> None:
        """Raise RunError if the run has been closed: another process may write to it now."""
        if self._lock < 0:
            raise RunError(f"run {self.path} is closed: write inside its `with Run.open(...)` block, or open it again")

    def save(self) -> None:
        """Write run.json with the time and memory used so far."""
        self.require_open()
        self._saved = time.monotonic()
        self._session["minutes"] = (self._saved - self._begin) / 60
        self._session["peak_rss_gib"] = peak_rss_gib()
        if current().is_main:
            write_sealed(self.path / RECORD, self._record)

    def record_data(self, name: str, provenance: Mapping[str, Any]) -> None:
        """Record where a data set came from; raises RunError if its checksums changed since the run began."""
        self._record_source("data", "data set", name, provenance)

    def record_model(self, name: str, identity: Mapping[str, Any]) -> None:
        """Record the checksums and revision of a model; raises RunError if they changed since the run began."""
        self._record_source("models", "model", name, identity)

    def record_reading(self, name: str, reading: Any) -> None:
        """Record what an argument was understood as, beside its text: run.json, `readings`."""
        self._record.setdefault("readings", {})[name] = to_jsonable(reading)
        self.save()

    def _record_source(self, kind: str, what: str, name: str, facts: Mapping[str, Any]) -> None:
        now = to_jsonable(facts)
        before = self._record.setdefault(kind, {}).get(name)
        if before is not None and checksums(before) != checksums(now):
            raise RunError(
                f"{what} {name!r} changed since run {self.path} began: {difference_of(before, now)}. "
                "Restore the files, or start a new run with another --folder"
            )
        self._record[kind][name] = now
        self.save()

    def stage(self, name: str) -> Stage:
        """The part of the run called `name`, with a folder of its own that exists on return.

        Raises ConfigError for a name that cannot be a folder.
        """
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ConfigError(f"stage {name!r}: a stage names a folder; use letters, digits, '.', '_' and '-'")
        stage = Stage(self, name)
        with translate_os_errors(stage.path, 0):
            stage.path.mkdir(exist_ok=True)
        return stage

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinities become null and are named under "non_finite".

        Raises ConfigError for a metric with the name of one of the line's own keys.
        """
        values = to_jsonable(metrics)
        if reserved := {"stage", "step", "time", "non_finite"} & values.keys():
            raise ConfigError(f"metrics of stage {stage!r}: {sorted(reserved)} are reserved names; rename them")
        row = {"stage": stage, "step": int(step), "time": now(), **values}
        lost = [name for name, value in metrics.items() if value is not None and values[str(name)] is None]
        self._append("metrics.jsonl", stage, row | ({"non_finite": lost} if lost else {}))

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The logged lines, of one stage or of all, in the order they were written."""
        return self.logs.rows("metrics.jsonl", stage)

    def sample(self, stage: str, step: int, rollout: Rollout) -> None:
        """Append a rollout to samples.jsonl: enough to read it, to score it again or to train on it."""
        self._append("samples.jsonl", stage, {"stage": stage, "step": int(step), **to_jsonable(rollout)})

    def samples(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The kept rollouts as they stand in samples.jsonl, of one stage or of all."""
        return self.logs.rows("samples.jsonl", stage)

    def rewind(self, stage: str, step: int) -> None:
        """Forget metrics and samples of `stage` after `step`: a resumed loop is about to repeat these steps."""
        self.require_open()
        self.logs.rewind(stage, step)

    def require_logged(self, stage: str, logged: Mapping[str, Any]) -> None:
        """Raise RunError unless the stage's first lines are those of which `self.logs.logged` said this before."""
        if current().is_main:
            remedy = (
                f"Restore it from a copy, or delete {self.path / stage}: the same command then runs the stage again"
            )
            self.logs.require(stage, logged, remedy=remedy, and_more=True)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json and print the same object as one line of JSON: the last line of the output.

        Adds `minutes`, the sum over all sessions, and `peak_rss_gib`, their maximum, unless the summary has them.
        """
        self.save()
        sessions = self._record["sessions"]
        complete = {
            "minutes": round(sum(session["minutes"] for session in sessions), 2),
            "peak_rss_gib": round(max(session["peak_rss_gib"] for session in sessions), 2),
        }
        complete = to_jsonable(summary) | {name: value for name, value in complete.items() if name not in summary}
        write_json(self.path / SUMMARY, complete)
        if not current().is_main:
            return complete
        self._record["outputs"] = {
            item.name: facts_of(item)
            for item in sorted(self.path.iterdir())
            if item.is_file() and item.name not in _NO_OUTPUTS
        }
        self.save()
        sys.stderr.flush()
        say(json.dumps(complete))
        return complete

    def _append(self, name: str, stage: str, row: Mapping[str, Any]) -> None:
        self.require_open()
        if current().is_main and (self.path / stage / STAGE_RECORD).exists() and stage not in self._open_ended:
            self._open_ended.add(stage)
            Stage(self, stage).expect_lines()
        self.logs.append(name, stage, row)
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()
