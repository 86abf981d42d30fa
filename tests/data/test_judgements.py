"""What is said of an answer beside it: read, or refused, and never passed over."""

from __future__ import annotations

import pytest

from poise.data import load, merge, split_by_prompt
from poise.data.datasets.judgements import speaks_of_judgement
from poise.errors import DataError

USER = {"role": "user", "content": "Bread?"}
GOOD = {"role": "assistant", "content": "Bake it."}
ANSWERED = (
    {"prompt": "Bread?", "completion": "Bake it."},
    {"prompt": [USER], "completion": [GOOD]},
    {"messages": [USER, GOOD]},
    {"conversations": [{"from": "human", "value": "Bread?"}, {"from": "gpt", "value": "Bake it."}]},
    {"instruction": "Bread?", "output": "Bake it."},
)


@pytest.mark.parametrize("row", ANSWERED)
def test_an_answer_with_a_label_is_a_verdict_and_no_demonstration(write_rows, row):
    dataset = load(write_rows("mine.jsonl", [row | {"label": True}, row | {"label": False}]))
    assert dataset.demonstrations == ()
    assert [(v.prompt.text, v.response, v.desirable) for v in dataset.verdicts] == [
        ("Bread?", "Bake it.", True),
        ("Bread?", "Bake it.", False),
    ]


@pytest.mark.parametrize("row", ANSWERED)
@pytest.mark.parametrize(("flag", "turned"), [("safe", False), ("unsafe", True)])
def test_an_answer_with_a_safety_flag_is_a_safety_label_and_no_demonstration(write_rows, row, flag, turned):
    dataset = load(write_rows("mine.jsonl", [row | {flag: True}, row | {flag: False}]))
    assert dataset.demonstrations == ()
    assert [(label.response, label.safe) for label in dataset.labels] == [
        ("Bake it.", not turned),
        ("Bake it.", turned),
    ]


@pytest.mark.parametrize("value", ["0", "1", "yes", "t"])
def test_a_class_in_a_table_is_no_verdict_until_its_meaning_is_said(tmp_path, value):
    (tmp_path / "mine.csv").write_text(f"prompt,completion,label\nBread?,Bake it.,{value}\n")
    with pytest.raises(DataError, match=r"label should be true or false: .*--columns desirable="):
        load(tmp_path / "mine.csv")
    (verdict,) = load(tmp_path / "mine.csv", columns="desirable=label").verdicts
    assert verdict.desirable == (value != "0")


def test_a_subject_that_is_named_is_no_verdict(write_rows):
    row = ANSWERED[0] | {"topic": "safe travel", "source": "rejected", "lang": "en", "tags_of_mine": ["news"]}
    assert len(load(write_rows("mine.jsonl", [row])).demonstrations) == 1


def test_a_row_may_say_both_and_a_table_says_them_in_words(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,completion,label,safe\nBread?,Bake it.,False,true\n")
    dataset = load(tmp_path / "mine.csv")
    assert (dataset.verdicts[0].desirable, dataset.labels[0].safe) == (False, True)


@pytest.mark.parametrize("row", ANSWERED)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("score", 0.1), ("rating", "bad"), ("rank", 3), ("reward", -1.0), ("chosen", False), ("is_safe", False),
        ("harmful", True), ("toxicity", 0.9), ("quality", "low"), ("thumbs", "down"), ("thumbsUp", 0),
        ("preference", {"which": 2}), ("label", 1), ("label", "bad"), ("label", [0]), ("safe", "maybe"),
        ("user_feedback", "no"), ("isHelpful", False), ("kto_tag", False), ("meta", {"quality_score": 1}),
        ("annotators", [{"name": "x", "rating": 1}]), ("downvotes", 12), ("accepted", 0), ("HUMAN-GRADE", "F"),
        ("gold", False), ("moderated", True), ("status", "rejected"), ("result", "Fail"), ("class", "toxic"),
        ("urteil", "not safe"), ("meta", {"review": "approved"}), ("label", "yes"), ("label", 1.0),
    ],
)  # fmt: skip
def test_a_judgement_that_is_not_understood_is_an_error_that_names_its_column(write_rows, row, column, value):
    path = write_rows("mine.jsonl", [row | {column: value}] * 2)
    with pytest.raises(DataError, match=r"none of its 2 rows can be read") as caught:
        load(path)
    assert column in str(caught.value)
    (one,) = load(write_rows("some.jsonl", [row | {column: value}, row])).bad_rows
    assert column in one.reason


@pytest.mark.parametrize("row", ANSWERED)
def test_a_judgement_can_be_left_out_or_named(write_rows, row):
    path = write_rows("mine.jsonl", [row | {"is_ok": 0, "score": 3, "meta": {"rating": 1}}])
    dataset = load(path, columns="desirable=is_ok,ignore=score,ignore=rating")
    assert [verdict.desirable for verdict in dataset.verdicts] == [False]
    assert len(load(path, columns={"ignore": ["is_ok", "score", "meta"]}).demonstrations) == 1


def test_a_judgement_within_a_turn_counts_too(write_rows):
    rows = [{"messages": [USER, GOOD | {"rating": 1}]}, {"messages": [USER, GOOD | {"weight": 0}]}]
    dataset = load(write_rows("mine.jsonl", rows))
    assert "'rating'" in dataset.bad_rows[0].reason
    assert [each.weight for each in dataset.demonstrations] == [0.0]


def test_a_judgement_beside_a_pair_that_may_turn_it_is_an_error(write_rows):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [pair, pair | {"label": 1}, pair | {"winner": "b"}, pair | {"chosen_model": "m", "cls": 3, "source": "s"}]
    dataset = load(write_rows("mine.jsonl", rows))
    assert [row.line for row in dataset.bad_rows] == [2, 3]


def test_flags_that_contradict_each_other_are_a_bad_row(write_rows):
    row = {"prompt": "p", "completion": "a"}
    dataset = load(write_rows("mine.jsonl", [row, row | {"safe": True, "unsafe": True}]))
    assert "contradict" in dataset.bad_rows[0].reason


def test_nothing_known_of_an_answer_is_no_judgement(write_rows):
    row = {"prompt": "p", "completion": "a", "score": None, "rating": "", "annotations": [], "reward": float("nan")}
    assert len(load(write_rows("mine.jsonl", [row])).demonstrations) == 1


def test_verdicts_are_split_merged_and_kept_with_their_prompts(write_rows):
    rows = [{"prompt": f"p{i}", "completion": "a", "label": i % 2 == 0} for i in range(40)]
    dataset = load(write_rows("mine.jsonl", rows))
    parts = split_by_prompt(dataset, {"train": 0.5, "test": 0.5})
    assert all({v.prompt.id for v in part.verdicts} == {p.id for p in part.prompts} for part in parts.values())
    assert len(merge(list(parts.values())).verdicts) == 40
    assert dataset.provenance["repeated_prompts"] == 0


def test_names_of_where_a_response_comes_from_are_no_judgements():
    for name in (
        "chosen_model",
        "rejected-source",
        "response_sha256",
        "answer_tokens",
        "category",
        "text",
        "cls",
        "id",
    ):
        assert not speaks_of_judgement(name), name
    for name in ("chosen", "reward_model", "label_source", "score_model", "preferred_model", "isSafe", "thumbs_up"):
        assert speaks_of_judgement(name), name


def test_a_judged_text_beside_a_prompt_is_an_answer_under_another_name(write_rows):
    rows = [
        {"prompt": "p", "text": "r"},
        {"prompt": "q", "text": "r", "label": False},
        {"prompt": "s", "toxicity": 0.1},
    ]
    dataset = load(write_rows("mine.jsonl", rows))
    assert [(row.line, "'label'" in row.reason) for row in dataset.bad_rows] == [(2, True)]


def test_a_foreign_column_with_a_name_of_ours_can_be_left_out(write_rows):
    path = write_rows("mine.jsonl", [{"messages": [USER, GOOD], "kind": "chat", "split": 3}])
    with pytest.raises(DataError, match=r"kind should be .*--columns ignore=NAME"):
        load(path)
    assert len(load(path, columns="ignore=kind,ignore=split").demonstrations) == 1


@pytest.mark.parametrize("answer", ["", "  \n", "\t"])
def test_an_empty_answer_is_not_there_to_be_imitated(write_rows, answer):
    turns = [USER, GOOD | {"content": answer}]
    dataset = load(write_rows("mine.jsonl", [{"messages": [USER, GOOD]}, {"messages": turns}]))
    assert [row.line for row in dataset.bad_rows] == [2]
    assert "nothing to imitate" in dataset.bad_rows[0].reason


def test_what_a_turn_holds_besides_its_text_is_not_dropped(write_rows):
    rows = [{"messages": [USER, GOOD | extra]} for extra in ({"reasoning_content": "Hm."}, {"train": False})]
    plain = [{"messages": [USER, GOOD | {"thinking": None, "train": True}]}] * len(rows)
    dataset = load(write_rows("mine.jsonl", rows + plain))
    assert [row.line for row in dataset.bad_rows] == [1, 2]
    assert "reasoning_content" in dataset.bad_rows[0].reason
    assert len(dataset.demonstrations) == len(rows)


def test_a_margin_below_zero_contradicts_the_choice(write_rows):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    dataset = load(write_rows("mine.jsonl", [pair | {"margin": 0.5}, pair | {"margin": -1}]))
    assert "margin below 0" in dataset.bad_rows[0].reason
