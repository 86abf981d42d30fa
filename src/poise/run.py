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

import fcntl
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from poise.errors import ConfigError, RunError
from poise.files import (
    append_line,
    atomic_write,
    cut_half_line,
    explained,
    json_line,
    plain,
    read_json,
    read_jsonl_tolerant,
    require_free_space,
    write_json,
)
from poise.provenance import git_commit, machine, package_versions, peak_rss_gib
from poise.ranks import current
from poise.text import hide_passwords, say
from poise.types import Rollout

__all__ = ["RECIPE_FILE", "Run", "Stage", "atomic_write", "default_folder", "read_jsonl_tolerant", "require_free_space"]

RECIPE_FILE: ContextVar[Path | None] = ContextVar("RECIPE_FILE", default=None)  # the user's own recipe, kept in the run

_SAVE_EVERY_S = 60.0


def default_folder(recipe: str) -> Path:
    """A folder for a new run that does not exist yet: runs/<recipe>-<YYYYmmdd-HHMMSS>."""
    name = Path("runs") / f"{_recipe_name(recipe)}-{datetime.now():%Y%m%d-%H%M%S}"
    attempt, folder = 1, name
    while folder.exists():
        attempt += 1
        folder = name.with_name(f"{name.name}-{attempt}")
    return folder


class Stage:
    """One part of a run that is done once: its folder, and its result when it has finished."""

    def __init__(self, run: Run, name: str):
        self.run, self.name, self.path = run, name, run.path / name

    @property
    def finished(self) -> bool:
        """True once `finish` has been called, in this session or an earlier one."""
        return bool(current().share((self.path / "stage.json").exists()))

    @property
    def result(self) -> dict[str, Any]:
        """What the stage was finished with."""
        if not self.finished:
            raise RunError(f"stage {self.name!r} of {self.run.path} has no result yet: ask `finished` first")
        found: dict[str, Any] = current().share(read_json(self.path / "stage.json") if current().is_main else None)
        return found

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record the result; a resumed run skips this stage."""
        self.run.require_open()
        recorded: dict[str, Any] = plain(result)
        write_json(self.path / "stage.json", recorded)
        self.run.save()
        current().wait()
        return recorded


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
        self._record, self._lock = record, lock
        self._begin = self._saved = time.monotonic()
        session = {"started": _now(), "argv": hide_passwords(sys.argv), "minutes": 0.0, "peak_rss_gib": 0.0}
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
        path = Path(current().share(str(default_folder(recipe) if folder is None else folder)))
        if not current().is_main:
            return cls._follow(path)
        _require_run_or_empty(path)
        wanted = _plain_arguments(arguments)
        lock = _acquire_lock(path)
        try:
            record = read_json(path / "run.json") if (path / "run.json").exists() else None
            if record is None:
                record = _new_record(_recipe_name(recipe), wanted, plain(sources or {}))
            else:
                _require_same(path, record, _recipe_name(recipe), wanted)
                _clean_after_kill(path)
            run = cls(path, record, lock)
            run.save()
            if (own_recipe := RECIPE_FILE.get()) is not None:
                atomic_write(path / "recipe.py", own_recipe.read_bytes())
        except BaseException:
            os.close(lock)
            raise
        current().share(record)
        return run

    @classmethod
    def _follow(cls, path: Path) -> Run:
        """The run in a process beside the main one, which alone holds the lock and writes."""
        return cls(path, current().share(None), os.open(os.devnull, os.O_RDWR))

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
    def summary(self) -> dict[str, Any] | None:
        """What the run was finished with; None before."""
        path = self.path / "summary.json"
        return read_json(path) if path.exists() else None

    def close(self) -> None:
        """Release the lock; reading stays possible, writing does not."""
        if self._lock < 0:
            return
        try:
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
        write_json(self.path / "run.json", self._record)

    def record_data(self, name: str, provenance: Mapping[str, Any]) -> None:
        """Record where a data set came from; raises RunError if its checksums changed since the run began."""
        now = plain(provenance)
        before = self._record["data"].get(name)
        if before is not None and _checksums(before) != _checksums(now):
            raise RunError(
                f"data set {name!r} changed since run {self.path} began: "
                f"checksums {_checksums(before)} then, {_checksums(now)} now. "
                "Restore the files, or begin a new run with another --folder"
            )
        self._record["data"][name] = now
        self.save()

    def stage(self, name: str) -> Stage:
        """The part of the run called `name`, with a folder of its own that exists on return."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ConfigError(f"stage {name!r}: a stage names a folder; use letters, digits, '.', '_' and '-'")
        stage = Stage(self, name)
        with explained(stage.path, 0):
            stage.path.mkdir(exist_ok=True)
        return stage

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinities become null and are named under "non_finite"."""
        values = plain(metrics)
        if reserved := {"stage", "step", "time", "non_finite"} & values.keys():
            raise ConfigError(
                f"metrics of stage {stage!r}: {sorted(reserved)} are names of the line itself; rename them"
            )
        row = {"stage": stage, "step": int(step), "time": _now(), **values}
        lost = [name for name, value in metrics.items() if value is not None and values[str(name)] is None]
        self._append("metrics.jsonl", row | ({"non_finite": lost} if lost else {}))

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The logged lines, of one stage or of all, in the order they were written."""
        return self._rows("metrics.jsonl", stage)

    def sample(self, stage: str, step: int, rollout: Rollout) -> None:
        """Append a rollout to samples.jsonl: enough to read it, to score it again or to train on it."""
        self._append("samples.jsonl", {"stage": stage, "step": int(step), **plain(rollout)})

    def samples(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The kept rollouts as they stand in samples.jsonl, of one stage or of all."""
        return self._rows("samples.jsonl", stage)

    def rewind(self, stage: str, step: int) -> None:
        """Forget metrics and samples of `stage` after `step`: a resumed loop is about to repeat these steps."""
        self.require_open()
        for name in ("metrics.jsonl", "samples.jsonl"):
            rows = self._rows(name, None)
            kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
            if len(kept) < len(rows):
                atomic_write(self.path / name, b"".join(json_line(row) for row in kept))

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
        complete = plain(summary) | {name: value for name, value in complete.items() if name not in summary}
        write_json(self.path / "summary.json", complete)
        if not current().is_main:
            return complete
        sys.stderr.flush()
        say(json.dumps(complete))
        return complete

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self.require_open()
        append_line(self.path / name, json_line(row))
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()

    def _rows(self, name: str, stage: str | None) -> list[dict[str, Any]]:
        return [row for row in read_jsonl_tolerant(self.path / name) if stage in (None, row["stage"])]


def _acquire_lock(path: Path) -> int:
    """Hold the lock file; the kernel lets go of it when the process ends, however it ends."""
    with explained(path / "lock", 0):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 80, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise RunError(
            f"run {path} is being written by {holder}. Wait for it, stop it, or choose another --folder"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return lock


def _require_run_or_empty(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; a run needs a folder. Choose another --folder")
    if not path.exists() or (path / "run.json").exists():
        return
    # A process killed before its first run.json leaves a lock and perhaps a temporary file.
    foreign = sorted(item.name for item in path.iterdir() if item.name != "lock" and not item.name.endswith(".tmp"))
    if foreign:
        raise RunError(
            f"{path} is not a run (no run.json) and is not empty: it holds {', '.join(foreign[:3])}"
            f"{' ...' if len(foreign) > 3 else ''}. Choose another --folder, or move these files away"
        )


def _require_same(path: Path, record: Mapping[str, Any], recipe: str, arguments: Mapping[str, Any]) -> None:
    there, here = record["arguments"], arguments
    lines = [] if record["recipe"] == recipe else [f"  recipe: {record['recipe']} there, {recipe} now"]
    for name in [*there, *(name for name in here if name not in there)]:
        if name not in there or name not in here or there[name] != here[name]:
            before, now = (repr(each[name]) if name in each else "not given" for each in (there, here))
            lines.append(f"  {name}: {before} there, {now} now")
    if lines:
        raise RunError(
            "\n".join([f"run {path} was made with other arguments:", *lines])
            + f"\nTo continue it as it was: poise run --from {path}/run.json --folder {path}"
            + f"\nTo begin another run: choose another --folder, or delete {path}"
        )


def _clean_after_kill(path: Path) -> None:
    for leftover in [*path.rglob(".*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        cut_half_line(path / name)


def _new_record(recipe: str, arguments: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "arguments": arguments,
        "sources": sources,
        "seeds": {name: value for name, value in arguments.items() if name == "seed" or name.endswith("_seed")},
        "created": _now(),
        "argv": hide_passwords(sys.argv),
        "working_folder": os.getcwd(),
        "versions": package_versions(),
        "machine": machine(),
        "git": git_commit(),
        "data": {},
        "sessions": [],
    }


def _plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON holds them, without passwords; an infinite limit stays readable as "inf"."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else hide_passwords(plain(value))
        for name, value in arguments.items()
        if name != "folder"
    }


def _recipe_name(recipe: str) -> str:
    return recipe.replace("_", "-")


def _checksums(provenance: Any) -> list[str]:
    return sorted(set(re.findall(r"\b[0-9a-f]{64}\b", json.dumps(provenance))))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
