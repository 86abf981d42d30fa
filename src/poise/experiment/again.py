"""What it takes to do a run again: command, commit, versions, machine, threads, checksums, seconds and memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.run import Run
from poise.run_folder import RECORD
from poise.run_record import read_record


def what_it_takes(run: Run) -> dict[str, Any]:
    """The rows of a page on how a run was made, from its record and those of its parts."""
    run.save()  # the time that it took so far
    record = run.record
    parts = [read_record(path) for path in sorted(run.path.glob(f"*/{RECORD}"))]
    sessions = record["sessions"]
    every = [session for each in (record, *parts) for session in each["sessions"]]
    return {
        "command": command_of(record["argv"]),
        "or": f"poise run --from {run.path / RECORD}",
        "commit": commit_text(record["poise"] or record["git"]),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "machine": machine_text(record["machine"]),
        "threads": threads_text(sessions[-1]["threads"]),
        "seconds": round(60 * sum(session["minutes"] for session in sessions), 1),
        "sessions": len(sessions),
        "peak memory": f"{max(session['peak_rss_gib'] for session in every):.2f} GiB",
        **{f"model {name}": _checksum(facts) for name, facts in _sources("models", record, *parts).items()},
        **{f"data {name}": _files(facts) for name, facts in _sources("data", record, *parts).items()},
    }


def command_of(argv: list[str]) -> str:
    """The command line that began a run, or that there was none.

    >>> command_of(["/usr/bin/poise", "run", "safe-rlhf", "--limit", "cost <= 0"])
    "poise run safe-rlhf --limit 'cost <= 0'"
    """
    first = Path(argv[0]).name if argv else ""
    is_ours = first == "poise" or (first == "__main__.py" and "poise" in argv[0])
    return shlex.join(["poise", *argv[1:]]) if is_ours else "called from Python"


def commit_text(git: Mapping[str, Any] | None) -> str:
    """A commit in words.

    >>> commit_text({"commit": "abc", "dirty": True}), commit_text(None)
    ('abc with changes that were not committed', 'unknown: poise was installed from a package')
    """
    if git is None:
        return "unknown: poise was installed from a package"
    return f"{git['commit']}{' with changes that were not committed' if git['dirty'] else ''}"


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    return f"{machine['cpu_count']} cores, {machine['cpu']}, {machine['platform']}, Python {machine['python']}"


def threads_text(threads: Mapping[str, Any]) -> str:
    """How many threads computed.

    >>> threads_text({"torch": 2, "OMP_NUM_THREADS": None})
    '2 (torch), OMP_NUM_THREADS not set'
    """
    asked = threads.get("OMP_NUM_THREADS")
    return f"{threads.get('torch')} (torch), OMP_NUM_THREADS {asked if asked is not None else 'not set'}"


def _sources(kind: str, *records: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts for record in records for name, facts in record.get(kind, {}).items()}


def _checksum(facts: Mapping[str, Any]) -> str:
    revision = f", revision {facts['revision']}" if facts.get("revision") else ""
    return f"sha256 {facts.get('checksum')}{revision}"


def _files(facts: Mapping[str, Any]) -> str:
    files = [each for each in facts.get("files") or [] if "sha256" in each]  # rows drawn from other sources have none
    return "; ".join(f"{Path(each['path']).name} sha256 {each['sha256']}" for each in files) or str(dict(facts))
