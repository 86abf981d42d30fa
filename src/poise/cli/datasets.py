"""`poise data`: list the known data sets and check one for mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path


def describe_all() -> Iterator[str]:
    """One line per data set that can be loaded by name: what it holds and under which licence."""
    from poise.data.sources import describe

    yield from describe()


def lint_lines(name: str, *, as_json: bool, quarantine: Path | None, columns: str = "") -> Iterator[str]:
    """The lines of a data set's lint report, or one JSON text."""
    from poise.data.sources import load

    dataset = load(name, columns=columns, quarantine=quarantine, most_bad=1.0)  # to show bad rows is what it is for

    from poise.data.lint import lint

    report = lint(dataset)
    if not as_json:
        yield from (line.replace("\n", "\\n") for line in report.lines())  # a row cannot add findings of its own
        return
    content = report.to_json()
    yield content if isinstance(content, str) else json.dumps(content, indent=2)
