"""The folder of a run: its name, its lock, what may lie in it, and what is removed from it."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from poise.errors import RunError
from poise.files import translate_os_errors

LOCK = "lock"
RECORD = "run.json"
SUMMARY = "summary.json"  # the last line that the run printed
RECIPE = "recipe.py"  # the user's own
OF_ANY_START = {LOCK, RECORD, RECIPE, "model/stage.json"}  # what a run holds before it has done anything


def default_folder(recipe: str) -> Path:
    """A folder for a new run that does not exist yet: runs/<recipe>-<YYYYmmdd-HHMMSS>."""
    name = Path("runs") / f"{recipe_name(recipe)}-{datetime.now():%Y%m%d-%H%M%S}"
    attempt, folder = 1, name
    while folder.exists():
        attempt += 1
        folder = name.with_name(f"{name.name}-{attempt}")
    return folder


def recipe_name(recipe: str) -> str:
    """The recipe's name as on the command line."""
    return recipe.replace("_", "-")


def made_by(path: Path) -> list[Path]:
    """The folders, innermost first, that making `path` will make: what a failed start must take back."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def acquire_lock(path: Path) -> int:
    """Hold the lock file; the kernel lets go of it when the process ends, however it ends.

    Raises RunError if another process holds it.
    """
    with translate_os_errors(path / LOCK, 0, "make"):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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


def require_run_or_empty(path: Path) -> None:
    """Raise RunError for a file, and for a folder that holds something and is not a run."""
    with translate_os_errors(path, 0, "read"):
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder. Choose another --folder")
        if not path.exists() or (path / RECORD).exists():
            return
        # a process killed before its first run.json leaves a lock and perhaps a temporary file
        foreign = sorted(item.name for item in path.iterdir() if item.name != LOCK and not _is_temporary(item))
    if foreign:
        raise RunError(
            f"{path} is not a run (no run.json) and is not empty: it holds {', '.join(foreign[:3])}"
            f"{' ...' if len(foreign) > 3 else ''}. Choose another --folder, or move these files away"
        )


def clean_after_kill(path: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in [item for item in path.rglob(".*.tmp") if _is_temporary(item)]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def remove_failed_start(path: Path, made: list[Path]) -> None:
    """Take back a run that failed before it did anything: its files, and the folders that were made for it.

    A folder with a stage's files, logged lines or anything that the user put there stays.
    """
    with suppress(OSError):  # the error that ended the run is the one to tell of
        files = [item for item in path.rglob("*") if not item.is_dir()]
        if {str(item.relative_to(path)) for item in files if item.stat().st_size} - OF_ANY_START:
            return
        for file in files:
            file.unlink()
        for folder in sorted((item for item in path.rglob("*")), reverse=True):
            folder.rmdir()
        for folder in made:
            folder.rmdir()


def _is_temporary(item: Path) -> bool:
    return item.name.startswith(".") and item.name.endswith(".tmp")
