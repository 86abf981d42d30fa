"""Text files that survive: written whole or line by line, with errors that say what to do.

A process that is killed, or a disk that fills up, never leaves half a file behind, and at most half a last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from poise.errors import RunError
from poise.ranks import current


def expanded(name: str | Path) -> Path:
    """The path of a name, with ~ for the home folder; a name that only begins so is a path as it stands."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody, who is not there
        return Path(name)


def cache_folder() -> Path:
    """Where what is made once for this machine is kept: POISE_CACHE, or ~/.cache/poise."""
    return Path(os.environ.get("POISE_CACHE") or Path.home() / ".cache" / "poise")


_BROKEN_LINE = "Restore the file from a copy, or delete this line and the folder of its stage, which then runs again"
_INTACT = "The previous file and the last checkpoint are intact: repeat the same command to continue."
_DISK_FULL = "{free:.2f} GiB are free. Free some space (`du -sh runs/*` shows the largest runs)"
_NOT_ALLOWED = "Give yourself write permission in {folder}, or choose another --folder"
_IN_THE_WAY = "Another file has the name of a file or folder of the run: move it away, or choose another --folder"
_WAYS_OUT = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENAMETOOLONG: "Choose a shorter --folder",
}
_SEE_THERE = "See what is there, or choose another place"


def atomic_write(path: Path | str, content: str | bytes) -> None:
    """Replace a file as a whole: readers and crashes see the old content or the new, never a part.

    Of several processes the main one writes. Raises RunError if the disk is full or the folder cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> atomic_write(target, "whole")
    >>> target.read_text()
    'whole'
    """
    if not current().is_main:
        return
    path = Path(path)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with translate_os_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_jsonl_tolerant(path: Path | str) -> list[dict[str, Any]]:
    """Read one JSON object per line; a last line that a killed process left half written is left out.

    Raises RunError for any other line that is not JSON. A missing file has no lines.
    """
    return [row for _, row in lines_of(Path(path))]


def lines_of(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a .jsonl file as `read_jsonl_tolerant` reads them: their bytes, and their objects.

    Raises RunError for a line that is not a JSON object.
    """
    with translate_os_errors(path, 0, "read"):
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise RunError(f"{path}:{number} is not JSON: {line[:80]!r}. {_BROKEN_LINE}") from error
            continue
        if not isinstance(row, dict):
            raise RunError(f"{path}:{number} is not a JSON object: {line[:80]!r}. {_BROKEN_LINE}")
        yield line + b"\n", row


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read a file that holds one JSON object; raises RunError that names the file and the remedy if it is damaged."""
    remedy = remedy or f"Choose another --folder, or delete {path.parent}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}. {remedy}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason_of(error)}. {remedy}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged: expected a JSON object, found a {type(found).__name__}. {remedy}")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by one JSON object, readable by people too."""
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def require_free_space(path: Path | str, num_bytes: int) -> None:
    """Raise RunError now if the disk that holds `path` has less than `num_bytes` free, rather than fail half-way."""
    free = _free_bytes(Path(path))
    if free < num_bytes:
        raise RunError(
            f"{path} needs {num_bytes / 2**30:.1f} GiB of disk and {free / 2**30:.1f} GiB are free. "
            "Free some space (`du -sh runs/*` shows the largest runs), or choose another --folder"
        )


@contextmanager
def translate_os_errors(path: Path, num_bytes: int, verb: str = "write") -> Iterator[None]:
    """Turn an error of the disk, while `num_bytes` are written to `path` or it is read, into a RunError with a way out.

    Any such error counts: a full disk, a missing right, a folder where a file should be.
    """
    try:
        yield
    except OSError as error:
        amount = f" ({num_bytes} bytes)" if num_bytes else ""
        kept = f" {_INTACT}" if verb == "write" else ""
        raise RunError(f"cannot {verb} {path}{amount}: {reason_of(error)}. {way_out(error, path)}.{kept}") from error


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Turn an error of the disk at a path inside `folder` into a RunError; any other error stays what it is."""
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes) else None
        if path is None or not path.is_relative_to(folder.absolute()):
            raise
        raise RunError(f"cannot use {path}: {reason_of(error)}. {way_out(error, path)}") from error


def way_out(error: OSError, path: Path) -> str:
    """What to do about an error of the disk at `path`, without a full stop."""
    return _WAYS_OUT.get(error.errno or 0, _SEE_THERE).format(free=_free_bytes(path) / 2**30, folder=path.parent)


def reason_of(error: OSError) -> str:
    """The system's words for an error of the disk."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of a .jsonl file, newline included."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")


def append_line(path: Path, line: bytes) -> None:
    """Append a whole line or nothing; raises RunError if there is no room for it. The main process alone writes."""
    if not current().is_main:
        return
    with translate_os_errors(path, len(line)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line)
            except OSError:
                os.ftruncate(descriptor, length)
                raise
        finally:
            os.close(descriptor)


def truncate_partial_line(path: Path) -> None:
    """Cut off a last line that was never finished, so that the next line starts on its own."""
    with translate_os_errors(path, 0, "read"):
        data = path.read_bytes() if path.exists() else b""
    begin = data.rfind(b"\n") + 1
    if begin == len(data):
        return
    try:
        json.loads(data[begin:])
        append_line(path, b"\n")
    except (ValueError, RecursionError):
        os.truncate(path, begin)


def to_jsonable(value: Any) -> Any:
    """Reduce a value to what JSON can hold: records to objects, tensors to numbers, NaN and infinities to null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (Sequence, Set)):
        return [to_jsonable(item) for item in (sorted(value, key=str) if isinstance(value, Set) else value)]
    return _plain_object(value)


def _plain_object(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "tolist"):  # tensors, and the arrays and scalars of numpy
        return to_jsonable(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return getattr(value, "__qualname__", None) or f"{type(value).__qualname__} object"


def sync(path: Path) -> None:
    """Have the system write a file to the disk now: its new name must not outlive its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_sync(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _free_bytes(path: Path) -> int:
    place = path.absolute()
    for folder in (place, *place.parents):
        with suppress(OSError):  # not there, or not ours to look at
            return shutil.disk_usage(folder).free
    return 0
