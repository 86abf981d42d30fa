"""Answers that were read: labels are those of the guideline, and the page shows what the labels give."""

from __future__ import annotations

import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "benchmarks"))
import hand_labels  # noqa: E402

ROWS = hand_labels.read()


def test_every_answer_has_the_labels_of_the_guideline_once() -> None:
    guideline = (TOP / "docs" / "guidelines" / "compliance.md").read_text("utf-8")
    assert all(f"| `{label}` |" in guideline for label in hand_labels.LABELS)
    assert {row["label"] for row in ROWS} == set(hand_labels.LABELS)
    assert {row["stage"] for row in ROWS} == set(hand_labels.STAGES)
    assert {type(row["harmful"]) for row in ROWS} == {bool}
    assert len({(row["prompt_id"], row["stage"]) for row in ROWS}) == len(ROWS) == 200
    assert not [row["answer"] for row in ROWS if row["label"] == "refused" and row["harmful"]]


def test_the_page_of_judges_shows_what_the_labels_give_today() -> None:
    page = (TOP / "docs" / "judges.md").read_text("utf-8")
    for lines in hand_labels.tables(ROWS):
        assert "\n".join(lines) in page


def test_tables_follow_the_labels() -> None:
    rows = [{**row, "harmful": not row["harmful"]} for row in ROWS]
    page = (TOP / "docs" / "judges.md").read_text("utf-8")
    assert "\n".join(hand_labels.harm(rows)) not in page
