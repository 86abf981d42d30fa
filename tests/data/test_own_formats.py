"""Files of a user's own, read by the names of their columns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poise.data import load
from poise.data.datasets.formats import FORMATS
from poise.data.renaming import ColumnNames
from poise.errors import DataError

USER = {"role": "user", "content": "Bread?"}
GOOD = {"role": "assistant", "content": "Bake it."}
BAD = {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Bread?", "chosen": "Bake it.", "rejected": "No."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Bread?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": "\n\nHuman: Bread?\n\nAssistant: Bake it.", "rejected": "\n\nHuman: Bread?\n\nAssistant: No."},
    ],
)
def test_every_way_to_write_a_preference_gives_the_same_comparison(write_rows, row):
    (pair,) = load(write_rows("mine.jsonl", [row])).comparisons
    assert pair.prompt.messages == (USER,)
    assert (pair.responses, pair.winner, pair.criterion) == (("Bake it.", "No."), 0, "helpful")


def test_a_preference_may_carry_margin_criterion_and_flags(write_rows):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "criterion": "safe", "team": "red"}
    flags = {"chosen_safe": True, "rejected_safe": False}
    dataset = load(write_rows("mine.jsonl", [row | flags, row | {"chosen_safe": False, "prompt": "q"}]))
    first, second = dataset.comparisons
    assert (first.margin, first.criterion, first.safe) == (2.0, "safe", (True, False))
    assert first.prompt.tags["team"] == "red"
    assert second.safe is None
    assert [(label.response, label.safe) for label in dataset.labels] == [("a", True), ("b", False), ("a", False)]


def test_flags_and_numbers_of_a_table_are_read_as_such(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,chosen,rejected,margin,chosen_safe,rejected_safe\np,a,b,0.5,true,false\nq,c,d,,,\n")
    first, second = load(path).comparisons
    assert (first.margin, first.safe) == (0.5, (True, False))
    assert (second.margin, second.safe) == (0.0, None)


def test_demonstrations_come_as_messages_or_as_prompt_and_completion(write_rows):
    system = {"role": "system", "content": "Be brief."}
    (one,) = load(write_rows("a.jsonl", [{"messages": [system, USER, GOOD]}])).demonstrations
    (two,) = load(write_rows("b.jsonl", [{"prompt": [system, USER], "completion": [GOOD]}])).demonstrations
    (three,) = load(write_rows("c.jsonl", [{"prompt": "Bread?", "completion": "Bake it."}])).demonstrations
    assert one.prompt.id == two.prompt.id != three.prompt.id
    assert one.response == two.response == three.response == "Bake it."


def test_a_conversation_that_ends_with_the_user_is_a_prompt(write_rows):
    dataset = load(write_rows("a.jsonl", [{"messages": [USER]}]))
    assert (len(dataset.prompts), dataset.demonstrations) == (1, ())


def test_safety_labels_keep_categories_and_repeated_votes(write_rows):
    row = {"prompt": "p", "response": "r", "safe": False, "categories": ["theft"]}
    labels = load(write_rows("a.jsonl", [row, row, row | {"safe": True}])).labels
    assert [(label.safe, label.categories) for label in labels] == [(False, ("theft",))] * 2 + [(True, ("theft",))]


def test_prompts_keep_kind_category_and_split_and_stand_once(write_rows):
    rows = [{"prompt": "p", "kind": "harmful", "category": "theft", "split": "test"}, {"prompt": "p"}, {"prompt": "q"}]
    dataset = load(write_rows("mine.jsonl", rows))
    assert {"kind": "harmful", "categories": ("theft",), "split": "test"}.items() <= dataset.prompts[0].tags.items()
    assert len(dataset.prompts) == 2
    assert dataset.provenance["repeated_prompts"] == 1


def test_in_our_formats_the_name_of_a_file_is_the_split(tmp_path, write_rows):
    write_rows("mine/train.jsonl", [{"prompt": "p"}, {"prompt": "q", "split": "test"}])
    write_rows("mine/validation.jsonl", [{"prompt": "r"}])
    splits = {prompt.text: prompt.tags["split"] for prompt in load(tmp_path / "mine").prompts}
    assert splits == {"p": "train", "q": "test", "r": "validation"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "column 'rejected' is missing"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin should be a finite number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "kind": "evil"}, "kind should be 'harmful', 'benign' or"),
        ({"prompt": "p", "chosen": [USER], "rejected": [BAD]}, "chosen must add one assistant turn"),
        ({"prompt": "p", "chosen": "\ud800", "rejected": "b"}, "surrogates not allowed"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt must end with a user turn"),
        ({"prompt": [{"role": "user", "content": ""}], "chosen": "a", "rejected": "b"}, "last user turn is empty"),
    ],
)
def test_a_bad_row_of_a_preference_file_stays_one_of_that_file(write_rows, bad, reason):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    dataset = load(write_rows("mine.jsonl", [good, bad, good]))
    assert len(dataset.comparisons) == 2
    assert [row.line for row in dataset.bad_rows] == [2]
    assert reason in dataset.bad_rows[0].reason


@pytest.mark.parametrize(
    "row", [{"question": "p"}, {"prompt": "p", "response": "r"}, {"prompt": "p", "response": ["safe", "unsafe"]}]
)
def test_columns_of_no_format_are_named_instead_of_guessed(write_rows, row):
    with pytest.raises(DataError, match=r"mine\.jsonl: its columns .* are none of the formats"):
        load(write_rows("mine.jsonl", [row]))


def documented_files() -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    return re.findall(r"```jsonl\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("content", documented_files())
def test_every_file_in_the_documentation_loads_without_a_bad_row(tmp_path, content):
    (tmp_path / "mine.jsonl").write_text(content, encoding="utf-8")
    assert load(tmp_path / "mine.jsonl", strict=True).prompts


def test_the_documentation_names_every_format_and_shows_its_commands_as_they_are_read():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for each in FORMATS:
        if not each.name.startswith(("XSTest", "AdvBench")):
            assert all(any(f"`{name}`" in text for name in column.split("|")) for column in each.required), each.name
    given = re.findall(r"--columns ('.*?'|\S+)", text)
    named = [columns.strip("'") for columns in given if "=" in columns]
    assert len([ColumnNames.of(columns) for columns in named]) == 3


def test_the_documentation_shows_every_kind_of_file():
    assert len(documented_files()) == 16
