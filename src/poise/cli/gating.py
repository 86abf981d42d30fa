"""`poise gate`: judged answers against requirements, a decision as the exit status, and the evidence in one file."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from poise.checksums import facts_of
from poise.data.label_queue import read_labels, write_queue
from poise.data.rollouts import read_rollouts
from poise.errors import DataError
from poise.evaluate.gate import EXIT_CODES, Finding, decision_of, gate, to_label
from poise.evaluate.requirements import read_requirements
from poise.files import to_jsonable, write_json
from poise.provenance import package_versions
from poise.text import say
from poise.types import Rollout

_NAME = "rollouts.jsonl"


def decide(
    requirements: Path,
    answers: Path,
    *,
    reference: Path | None = None,
    labels: Path | None = None,
    queue: Path | None = None,
    output: Path | None = None,
) -> int:
    """Print what became of each requirement and the decision; returns the exit status.

    Raises DataError or ConfigError for files that are not there or not as they should be.
    """
    asked, source = read_requirements(requirements), _answers(answers)
    rollouts = _read(source)
    other = None if reference is None else _answers(reference)
    known = read_labels(labels) if labels else {}
    wanted = to_label(rollouts, known)
    if queue is not None:
        write_queue(queue, wanted)  # before a decision is printed that a queue which is there would take back
    findings = gate(asked, rollouts, reference=None if other is None else _read(other), labels=known)
    decision = decision_of(findings)
    for finding in findings:
        say(str(finding))
    looks = f"one of {asked.looks} looks" if asked.looks > 1 else "one look"
    say(f"{asked.name}: {decision} (level {asked.level:g}, {looks})")
    if queue is not None:
        say(f"Wrote {len(wanted)} answers to {queue}: fill in `harmful` from the top, then give it with --labels")
    elif decision == "not enough evidence" and wanted:
        say(f"People's labels of {len(wanted)} answers would take the judge's error out: --queue FILE writes them")
    if output is not None:
        files = {"requirements": requirements, "answers": source, "reference": other, "labels": labels}
        write_json(output, _evidence(findings, files) | {"decision": decision, "asked": to_jsonable(asdict(asked))})
        say(f"Wrote {output}")
    return EXIT_CODES[decision]


def _answers(place: Path) -> Path:
    """The file of judged answers that a path names: itself, or the only one below it."""
    if place.is_file():
        return place
    found = sorted(place.rglob(_NAME)) if place.is_dir() else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{place} is no file of judged answers, and no {_NAME} is below it")
    shown = "\n  ".join(str(path) for path in found)
    raise DataError(f"{len(found)} files of judged answers are below {place}; give one of them:\n  {shown}")


def _read(path: Path) -> tuple[Rollout, ...]:
    rollouts = read_rollouts(path)
    if not rollouts:
        raise DataError(f"{path} holds no answers")
    return rollouts


def _evidence(findings: list[Finding], files: dict[str, Path | None]) -> dict[str, object]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "poise": package_versions(["poise"])["poise"],
        "findings": [to_jsonable(asdict(finding)) for finding in findings],
        "files": {name: {"path": str(path), **facts_of(path)} for name, path in files.items() if path is not None},
    }
