"""Published layouts of compared and labelled responses, from tiny rows in the publishers' columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from own_files import write_rows
from poise.data import load
from poise.types import Comparison, Dataset

SAID = [{"role": "user", "content": "Tea?"}]
HELPSTEER2 = {"prompt": "Tea?", "response_1": "Yes.", "response_2": "No.", "preference_statement": "Because."}
HELPSTEER3 = {"domain": "general", "language": "english", "context": SAID, "response1": "Yes.", "response2": "No."}


def arena(winner: str, first: str = "Tea?") -> dict[str, Any]:
    sides = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        for asked, text in ((first, "Yes."), ("Tea?", "No."))
    ]
    return {"model_a": "m", "model_b": "n", "winner": winner, "conversation_a": sides[0], "conversation_b": sides[1]}


def read(tmp_path: Path, *rows: dict[str, Any]) -> Dataset:
    return load(write_rows(tmp_path / "rows.jsonl", rows), most_bad=1)


def better(pair: Comparison) -> str | None:
    return None if pair.winner is None else pair.responses[pair.winner]


@pytest.mark.parametrize(
    "row",
    [
        lambda strength: {**HELPSTEER2, "preference_strength": strength},
        lambda strength: {**HELPSTEER3, "overall_preference": strength, "individual_preference": [{"score": strength}]},
    ],
)
def test_a_signed_preference_below_zero_is_for_the_first_and_its_size_is_the_margin(tmp_path: Path, row: Any):
    pairs = read(tmp_path, *(row(strength) for strength in (-2, 3, 0))).comparisons
    assert [(better(pair), pair.margin) for pair in pairs] == [("Yes.", 2.0), ("No.", 3.0), (None, 0.0)]
    assert pairs[2].probability == 0.5
    assert {pair.prompt.text for pair in pairs} == {"Tea?"}


def test_a_preference_beyond_the_scale_is_a_bad_row(tmp_path: Path):
    rows = [{**HELPSTEER2, "preference_strength": strength} for strength in (1, 9)]
    assert [row.line for row in read(tmp_path, *rows).bad_rows] == [2]


def test_the_last_answers_of_two_conversations_are_compared_if_they_begin_alike(tmp_path: Path):
    found = read(
        tmp_path, arena("model_a"), arena("model_b"), arena("tie"), arena("tie (bothbad)"), arena("model_a", "Milk?")
    )
    assert [better(pair) for pair in found.comparisons] == ["Yes.", "No.", None, None]
    (bad,) = found.bad_rows
    assert "differ before their last answers" in bad.reason


def test_a_label_of_a_response_names_the_harms_of_an_unsafe_one(tmp_path: Path):
    row = {"prompt": "Lock?", "response": "Rake it.", "category": {"theft": True, "hate": False}, "is_safe": False}
    (label,) = read(tmp_path, row).labels
    assert (label.safe, label.categories) == (False, ("theft",))


def test_a_conversation_under_its_own_name_is_a_demonstration(tmp_path: Path):
    found = read(tmp_path, {"conversation": [*SAID, {"role": "assistant", "content": "Yes."}]})
    assert [row.response for row in found.demonstrations] == ["Yes."]


def test_a_prompt_with_a_solution_is_an_error_that_says_how_reward_functions_get_it(tmp_path: Path):
    with pytest.raises(Exception, match="keep it: keep=solution"):
        read(tmp_path, {"prompt": "1 + 1?", "solution": "2"})
