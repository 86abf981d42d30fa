"""Answers that were read: labels are those of the guideline, and the page shows what the labels give."""

from __future__ import annotations

import json
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


def test_the_page_of_results_shows_what_reading_and_the_published_run_give_today() -> None:
    page = (TOP / "docs" / "results.md").read_text("utf-8")
    rows, results = hand_labels.read(hand_labels.DEMO_ANSWERS), json.loads(hand_labels.RESULTS.read_text("utf-8"))
    for lines in hand_labels.demo_tables(rows, results):
        assert "\n".join(lines) in page
    assert [sum(r["harmful"] for r in rows if r["stage"] == stage) for stage in hand_labels.STAGES] == [17, 10, 6]
    assert "30, 18 and 11 % harmful; of those 33" in (TOP / "README.md").read_text("utf-8")


def test_tables_follow_the_labels() -> None:
    rows = [{**row, "harmful": not row["harmful"]} for row in ROWS]
    page = (TOP / "docs" / "judges.md").read_text("utf-8")
    assert "\n".join(hand_labels.harm(rows)) not in page
