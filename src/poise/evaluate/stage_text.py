"""The table of stages as text: aligned for a screen, in Markdown for pages."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from poise.types import Estimate

SAID_FIRST = ("warning", "verdict", "verdict_against_first", "limits_on_unseen_prompts", "stages")
Table = Mapping[str, Any]  # as `stages.stage_table` makes it, estimates as records or as mappings


def cell(estimate: Estimate | Mapping[str, Any] | None) -> str:
    """A figure with its interval; a dash where there is none.

    >>> cell({"value": 0.125, "n": 40, "unit": "share", "low": 0.055, "high": 0.261}), cell(None)
    ('12.5 % [5.5, 26.1]', '–')
    """
    if estimate is None:
        return "–"
    return f"{estimate if isinstance(estimate, Estimate) else Estimate(**estimate):bare}"


def screen_table(table: Table) -> str:
    """The table in columns that are aligned; the names of columns are wrapped to the width of what they hold."""
    rows = [[row["label"], *(cell(row["values"].get(name)) for name in table["columns"])] for row in table["rows"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(table["columns"]) + 1)]
    widths = [max(width, 12) for width in widths]
    labels = ["", *table["columns"].values()]
    heads = [textwrap.wrap(label, width) or [""] for label, width in zip(labels, widths, strict=True)]
    height = max(map(len, heads))
    lines = [[head[line] if line < len(head) else "" for head in heads] for line in range(height)]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [*lines, ["-" * width for width in widths], *rows]
    )


def markdown_table(table: Table) -> str:
    """The same as Markdown, with the judge's own accuracy below it where it is known.

    >>> print(markdown_table({"columns": {"harm_rate": "harm"}, "rows": [{"label": "base", "values": {}}]}))
    | | harm |
    | --- | --- |
    | base | – |
    """
    lines = [["", *table["columns"].values()], ["---"] * (len(table["columns"]) + 1)]
    lines += [[row["label"], *(cell(row["values"].get(name)) for name in table["columns"])] for row in table["rows"]]
    text = "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
    worth = judge_text(table)
    return f"{text}\n\n{worth}" if worth else text


def judge_text(table: Table) -> str:
    """What the judge itself is worth, in a sentence; "" where nobody measured it."""
    figures = [f"{name.replace('_', ' ')} {_counted(value)}" for name, value in (table.get("judge") or {}).items()]
    return f"The judge itself: {'; '.join(figures)}." if figures else ""


def closing(told: Mapping[str, Any]) -> str:
    """The last thing on the screen before the line of JSON: warning, sentence, table and the judge's worth."""
    sentences = [told.get(name) for name in ("warning", "verdict", "verdict_against_first")]
    blocks = [textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) for text in sentences if text]
    worth = textwrap.fill(judge_text(told["stages"]), 120, break_on_hyphens=False)
    return "\n".join(_joined([*blocks, screen_table(told["stages"]), worth]))


def _joined(blocks: Sequence[str]) -> list[str]:
    return [line for block in blocks if block for line in (block, "")]


def _counted(value: Estimate | Mapping[str, Any]) -> str:
    return str(value if isinstance(value, Estimate) else Estimate(**value))
