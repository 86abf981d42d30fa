"""run.json: what was asked, and what the result depends on."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from poise.checksums import read_sealed, require_file
from poise.errors import RunError
from poise.files import to_jsonable
from poise.provenance import git_commit, machine, package_versions, poise_commit
from poise.run_folder import RECIPE, RECORD
from poise.text import hide_passwords

_REMEDY = "Restore it from a copy; without it the run cannot continue: start a new one with another --folder"
_KINDS = {"recipe": str, "arguments": dict, "sources": dict, "data": dict, "sessions": list}


def now() -> str:
    """The local time to the millisecond."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run.json; RunError unless it is as poise wrote it."""
    record, _ = read_sealed(path, remedy=_REMEDY)
    for name, kind in _KINDS.items():
        if not isinstance(record.get(name), kind):
            raise RunError(f"{path} is damaged: {name!r} is {record.get(name)!r}. {_REMEDY}")
    for session in record["sessions"]:
        numbers = [session.get(name) for name in ("minutes", "peak_rss_gib")] if isinstance(session, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise RunError(f"{path} is damaged: it has the session {session!r:.80}. {_REMEDY}")
    return record


def require_output(path: Path) -> None:
    """Raise RunError unless a file that a run wrote at its end, if a run's folder holds it, is as it was written."""
    if not (path.parent / RECORD).exists():
        return
    if expected := read_record(path.parent / RECORD).get("outputs", {}).get(path.name):
        require_file(path, expected, remedy="Repeat the run's command: it writes it again")


def require_same(path: Path, record: Mapping[str, Any], recipe: str, arguments: Mapping[str, Any]) -> None:
    """Raise RunError that lists what differs, unless the run was made by this recipe with these arguments."""
    there, here = record["arguments"], arguments
    lines = [] if record["recipe"] == recipe else [f"  recipe: {record['recipe']} there, {recipe} now"]
    for name in [*there, *(name for name in here if name not in there)]:
        if name not in there or name not in here or there[name] != here[name]:
            before, now = (repr(each[name]) if name in each else "not given" for each in (there, here))
            lines.append(f"  {name}: {before} there, {now} now")
    if lines:
        raise RunError(
            "\n".join([f"run {path} was made with other arguments:", *lines])
            + f"\nTo continue it unchanged: poise run --from {path}/run.json --folder {path}"
            + (" --trust-recipe" if (path / RECIPE).exists() else "")
            + f"\nTo start a new run: choose another --folder, or delete {path}"
        )


def new_record(recipe: str, arguments: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that begins here and now."""
    return {
        "recipe": recipe,
        "arguments": arguments,
        "sources": sources,
        "seeds": {name: value for name, value in arguments.items() if name == "seed" or name.endswith("_seed")},
        "created": now(),
        "argv": hide_passwords(sys.argv),
        "working_folder": os.getcwd(),
        "versions": package_versions(),
        "machine": machine(),
        "git": git_commit(),
        "poise": poise_commit(),
        "data": {},
        "sessions": [],
    }


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON holds them; without passwords; an infinite limit stays readable as "inf"."""
    return {
        name: (
            str(value) if isinstance(value, float) and not math.isfinite(value) else hide_passwords(to_jsonable(value))
        )
        for name, value in arguments.items()
        if name != "folder"
    }


def checksums(provenance: Any) -> list[str]:
    """The sha256 sums that a provenance names."""
    return sorted(set(re.findall(r"\b[0-9a-f]{64}\b", json.dumps(provenance))))


def difference_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Which files differ between two provenances, or their checksums where these name no files."""
    then, today = before.get("files"), after.get("files")
    if isinstance(then, Mapping) and isinstance(today, Mapping):
        changed = sorted(name for name in {**then, **today} if then.get(name) != today.get(name))
        if changed:
            return f"other contents of {', '.join(changed)}"
    return f"checksums {checksums(before)} then, {checksums(after)} now"
