"""Layouts that other tools write, and names of one's own for the columns."""

from __future__ import annotations

import json

import pytest

from poise.data import load
from poise.errors import ConfigError, DataError

USER = {"role": "user", "content": "Bread?"}
GOOD = {"role": "assistant", "content": "Bake it."}
BAD = {"role": "assistant", "content": "No."}
SHARED = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Bread?"}]
TRANSCRIPT = "\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Bread?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": SHARED, "chosen": {"from": "gpt", "value": "Bake it."},
         "rejected": {"from": "gpt", "value": "No."}},
        {"prompt": TRANSCRIPT, "chosen": " Bake it.", "rejected": " No."},
        {"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} Bake it.", "rejected": f"{TRANSCRIPT} No."},
        {"instruction": "Bread?", "input": "", "chosen": "Bake it.", "rejected": "No."},
        {"system": "Be kind.", "prompt": "Bread?", "chosen": "Bake it.", "rejected": "No."},
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"prompt": "Bread?", "prompt_id": "1f", "chosen": [USER, GOOD], "rejected": [USER, BAD],
         "messages": [USER, GOOD], "score_chosen": 8.5, "score_rejected": 3.0},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.5, "score_rejected": 8.5},
        {"instruction": "Bread?", "source": "x", "models": ["m", "n"], "completions": [
            {"model": "n", "response": "No.", "overall_score": 3.0},
            {"model": "m", "response": "Bake it.", "overall_score": 8.5, "annotations": {"honesty": {"Rating": "5"}}},
        ]},
        {"prompt": "Bread?", "completions": ["Bake it.", "No."], "scores": [8.5, 3]},
    ],
)  # fmt: skip
def test_a_preference_of_another_tool_is_a_comparison(write_rows, row):
    (pair,) = load(write_rows("mine.jsonl", [row]), strict=True).comparisons
    assert pair.prompt.text == "Bread?"
    assert pair.winner is not None
    assert (pair.responses[pair.winner].strip(), pair.responses[1 - pair.winner].strip()) == ("Bake it.", "No.")


def test_turns_and_margins_of_these_preferences_are_kept(write_rows):
    rows = [
        {"prompt": TRANSCRIPT, "chosen": "Bake it.", "rejected": "No."},
        {"prompt": "Bread?", "chosen": "Bake it.", "rejected": "No.", "system": "Be kind.", "chosen-rating": 4.5,
         "rejected-rating": 2.0, "chosen-model": "m"},
    ]  # fmt: skip
    first, second = load(write_rows("mine.jsonl", rows)).comparisons
    assert [message["role"] for message in first.prompt.messages] == ["user", "assistant", "user"]
    assert second.prompt.messages[0] == {"role": "system", "content": "Be kind."}
    assert (second.margin, second.prompt.tags["chosen-model"]) == (2.5, "m")


def test_scores_that_contradict_the_choice_or_are_missing_are_bad_rows(write_rows):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rated = [
        pair | {"score_chosen": 1, "score_rejected": 2},
        pair | {"score_chosen": 1},
        pair | {"score_chosen": "high", "score_rejected": "low"},
    ]
    dataset = load(write_rows("mine.jsonl", [pair, pair, *rated]), most_bad=1)
    assert len(dataset.bad_rows) == 3
    unscored = {"prompt": "p", "completions": ["a", "b"]}
    for bad in (unscored, unscored | {"scores": [1]}, unscored | {"scores": [1, None]}, unscored | {"ranks": [1, 1]}):
        with pytest.raises(DataError, match="none of its 1 rows"):
            load(write_rows("rated.jsonl", [bad]))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [*SHARED, {"from": "gpt", "value": "Bake it."}]},
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, GOOD]},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, USER, GOOD], "tools": []},
        {"instruction": "Bread?", "input": "", "output": "Bake it.", "system": "Be kind."},
        {"system": "Be kind.", "prompt": "Bread?", "completion": "Bake it."},
    ],
)
def test_a_conversation_of_another_tool_is_a_demonstration(write_rows, row):
    (one,) = load(write_rows("mine.jsonl", [row]), strict=True).demonstrations
    assert one.prompt.messages == ({"role": "system", "content": "Be kind."}, USER)
    assert (one.response, one.weight) == ("Bake it.", 1.0)


def test_earlier_turns_of_an_instruction_are_kept(write_rows):
    row = {"instruction": "Bread?", "input": "Rye.", "output": "Bake it.", "history": [["Tea?", "Yes."]]}
    (one,) = load(write_rows("mine.jsonl", [row]), strict=True).demonstrations
    assert [message["content"] for message in one.prompt.messages] == ["Tea?", "Yes.", "Bread?\n\nRye."]


def test_a_system_turn_in_two_places_is_a_bad_row(write_rows):
    row = {"system": "Be kind.", "messages": [{"role": "system", "content": "Be brief."}, USER, GOOD]}
    with pytest.raises(DataError, match="keep one"):
        load(write_rows("mine.jsonl", [row]))


ORCA = {"system": "", "question": "Bread?", "better": "Bake it.", "worse": "No.", "data": {"id": 3, "asked": "Tea?"}}


def test_columns_of_any_name_are_read_when_they_are_named(write_rows):
    path = write_rows("mine.jsonl", [ORCA])
    (pair,) = load(path, columns="prompt=question,chosen=better,rejected=worse").comparisons
    assert (pair.prompt.text, pair.responses) == ("Bread?", ("Bake it.", "No."))
    inner = {"prompt": "data.asked", "chosen": "worse", "rejected": "better"}
    for given in (inner, json.dumps(inner)):
        (pair,) = load(path, columns=given).comparisons
        assert (pair.prompt.text, pair.responses) == ("Tea?", ("No.", "Bake it."))


def test_a_choice_can_be_turned_by_naming_its_columns(write_rows):
    path = write_rows("mine.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert load(path, columns="chosen=rejected,rejected=chosen").comparisons[0].responses == ("b", "a")


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ("promt=question", ConfigError, "Did you mean prompt"),
        ("prompt", ConfigError, "is not of the form OURS=YOURS"),
        ("prompt=question,prompt=better", ConfigError, "prompt is given twice"),
        ("prompt=question,chosen=question", ConfigError, "question is used twice"),
        ("{broken", ConfigError, "look like a JSON object"),
        (
            "prompt=asked,chosen=better,rejected=worse",
            DataError,
            "no file has a column 'asked'; there are better, data",
        ),
        (
            "prompt=question,chosen=better,rejected=worse,ignore=scor",
            DataError,
            "no file has a column 'scor'; there are",
        ),
    ],
)
def test_a_name_that_cannot_be_meant_is_an_error(write_rows, columns, error, message):
    with pytest.raises(error, match=message):
        load(write_rows("mine.jsonl", [ORCA]), columns=columns)


def test_names_are_for_files_and_leave_named_sets_alone(write_rows):
    columns = "prompt=question,chosen=better,rejected=worse"
    with pytest.raises(DataError, match="only named sets were read"):
        load("starter", columns=columns)
    both = load(f"starter+{write_rows('mine.jsonl', [ORCA])}", columns=columns)
    assert both.comparisons[-1].responses == ("Bake it.", "No.")


def test_an_unknown_layout_is_told_how_to_name_its_columns(write_rows):
    with pytest.raises(DataError, match=r"--columns prompt=\.\.\."):
        load(write_rows("mine.jsonl", [ORCA]))
    with pytest.raises(DataError, match=r"If another column is the prompt, say so with --columns prompt="):
        load(write_rows("mine.jsonl", [{"question": "Bread?", "chosen": "a", "rejected": "b"}]))
