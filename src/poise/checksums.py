"""What a file must still be when it is read again: checksums and row counts, and JSON that carries its own.

A file that was cut, zeroed or changed by a bit would give other figures, or a traceback far from the cause. So whatever
a run reads again is compared with what was written, once per process, before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from poise.errors import RunError
from poise.files import read_json, write_json

SEAL = "seal"  # the key of a JSON file's own checksum
STAGE_RECORD = "stage.json"
VERSION = 1  # of what a seal holds
_CHUNK = 1 << 20

Facts = dict[str, Any]  # sha256, bytes and, of lines, rows


def facts_of(path: Path) -> Facts:
    """The checksum and size of a file, and the number of rows of a .jsonl file."""
    digest, size, rows = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            rows += chunk.count(b"\n")
    found: Facts = {"sha256": digest.hexdigest(), "bytes": size}
    return found | ({"rows": rows} if path.suffix == ".jsonl" else {})


def facts_below(folder: Path, *, but: Collection[str] = ()) -> dict[str, Facts]:
    r"""The facts of every file below a folder by its path there; names in `but` and temporary files are left out.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "rows.jsonl").write_text("1\n2\n")
    >>> facts_below(folder)["rows.jsonl"]["rows"]
    2
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in but and not (path.name.startswith(".") and path.suffix == ".tmp"):
            found["/".join(parts)] = facts_of(path)
    return found


def require_facts(folder: Path, expected: Mapping[str, Facts], *, remedy: str) -> None:
    """Raise RunError that names the first file below `folder` that is not what it was when it was written."""
    for name, facts in expected.items():
        require_file(folder / name, facts, remedy=remedy)


def require_whole(folder: Path) -> None:
    """Raise RunError if a folder that a finished stage of a run left, a model say, is not what it was then."""
    for stage in (folder.resolve(), *folder.resolve().parents[:2]):
        if not (stage / STAGE_RECORD).exists() or not (stage.parent / "run.json").exists():
            continue
        remedy = f"Restore it from a copy, or delete {stage} and repeat the run's command, which runs the stage again"
        _, seal = read_sealed(stage / STAGE_RECORD, remedy=remedy)
        inside = "/".join(folder.resolve().relative_to(stage).parts)
        names = [name for name in seal.get("files", {}) if not inside or name.startswith(f"{inside}/")]
        require_facts(stage, {name: seal["files"][name] for name in names}, remedy=remedy)
        return


def require_file(path: Path, expected: Mapping[str, Any], *, remedy: str) -> None:
    """Raise RunError with the difference and the remedy, unless the file has these facts."""
    if not path.exists():
        raise RunError(f"{path} is missing. {remedy}")
    if not path.is_file():
        raise RunError(f"{path} is a {'folder' if path.is_dir() else 'device'}, but it was a file. {remedy}")
    try:
        found = facts_of(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    if found != expected:
        raise RunError(f"{path} is damaged: {difference(found, expected)}. {remedy}")


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """How a file or a stage's lines differ from what was written, in the unit that says most.

    >>> difference({"rows": 12, "sha256": "a"}, {"rows": 15, "sha256": "b"})
    'it has 12 rows but 15 were written'
    """
    for unit in ("rows", "bytes"):
        if found.get(unit) != expected.get(unit):
            return f"it has {found.get(unit, 0)} {unit} but {expected.get(unit, 0)} were written"
    return f"its contents have changed since they were written (sha256 {str(expected.get('sha256'))[:12]}...)"


def sealed(content: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """The content as JSON holds it, with its own checksum and further facts under the key `seal`.

    Raises RunError if the content already has the key `seal`.
    """
    if SEAL in content:
        raise RunError(f"the key {SEAL!r} is reserved for a file's checksum: rename it")
    plain: dict[str, Any] = json.loads(json.dumps({**content, SEAL: {"version": VERSION, **facts}}))
    plain[SEAL]["sha256"] = _digest(plain)
    return plain


def write_sealed(path: Path, content: Mapping[str, Any], **facts: Any) -> None:
    """Replace a file by one JSON object that is `sealed`."""
    write_json(path, sealed(content, **facts))


def read_sealed(path: Path, *, remedy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a file that holds what `sealed` gave, and the facts of its seal.

    Raises RunError, which ends with the remedy, unless the file is as it was written.
    """
    content = read_json(path, remedy=remedy)
    seal = content.get(SEAL)
    if not isinstance(seal, dict) or not isinstance(seal.get("sha256"), str):
        raise RunError(
            f"{path} has no checksum: it was written by an earlier version of poise, or changed by hand. {remedy}"
        )
    if seal.get("version") != VERSION:
        raise RunError(
            f"{path} was written by another version of poise: its seal has version {seal.get('version')!r}, "
            f"and this version reads {VERSION}. {remedy}"
        )
    if _digest({**content, SEAL: {name: fact for name, fact in seal.items() if name != "sha256"}}) != seal["sha256"]:
        raise RunError(f"{path} is damaged: its contents have changed since they were written. {remedy}")
    return {name: value for name, value in content.items() if name != SEAL}, seal


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
