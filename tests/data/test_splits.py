from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.data import load, merge, select, split_by_prompt
from poise.data.splits import split_in_strata, split_together
from poise.errors import ConfigError, DataError
from poise.types import BadRow, Comparison, Dataset, Demonstration, Prompt, SafetyLabel


def numbered(count: int, **tags: str) -> Dataset:
    prompts = tuple(Prompt.of(f"prompt {number}", **tags) for number in range(count))
    return Dataset(
        name="numbered",
        prompts=prompts,
        demonstrations=tuple(Demonstration(prompt=prompt, response="r") for prompt in prompts),
        comparisons=tuple(Comparison(prompt=prompt, responses=("a", "b"), winner=0) for prompt in prompts * 2),
        labels=tuple(SafetyLabel(prompt=prompt, response="a", safe=True) for prompt in prompts),
        bad_rows=(BadRow(path="x", line=1, reason="y"),),
    )


@given(st.integers(0, 60), st.integers(0, 5), st.floats(0.05, 0.95))
def test_every_row_is_on_exactly_the_side_of_its_prompt(count, seed, share):
    dataset = numbered(count)
    parts = split_by_prompt(dataset, {"train": share, "test": 1 - share}, seed=seed)
    sides = [{prompt.id for prompt in part.prompts} for part in parts.values()]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == count
    for part, side in zip(parts.values(), sides, strict=True):
        rows = (*part.demonstrations, *part.comparisons, *part.labels)
        assert {row.prompt.id for row in rows} == side
        assert len(rows) == 4 * len(side)


def test_shares_are_kept_within_chance_and_seeds_differ():
    dataset = numbered(1000)
    parts = split_by_prompt(dataset, {"train": 0.7, "test": 0.3})
    assert 650 < len(parts["train"].prompts) < 750  # 3.5 standard deviations
    assert parts == split_by_prompt(dataset, {"train": 0.7, "test": 0.3})
    assert parts["test"].prompts != split_by_prompt(dataset, {"train": 0.7, "test": 0.3}, seed=1)["test"].prompts


def test_a_prompt_keeps_its_side_when_others_are_added():
    small, large = (split_by_prompt(numbered(count), {"train": 0.5, "test": 0.5})["train"] for count in (50, 100))
    assert {p.id for p in small.prompts} <= {p.id for p in large.prompts}


def test_a_split_tag_that_names_a_share_is_kept_and_others_are_drawn():
    held = split_by_prompt(numbered(40, split="test"), {"train": 0.9, "test": 0.1})
    assert len(held["test"].prompts) == 40
    drawn = split_by_prompt(numbered(40, split="judge"), {"train": 0.5, "test": 0.5})
    assert len(drawn["train"].prompts) and len(drawn["test"].prompts)


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(ConfigError, match="add up to 1"):
        split_by_prompt(numbered(2), shares)


def test_merge_keeps_a_prompt_once_and_all_rows():
    first, second = numbered(3, source="a"), numbered(4, source="b")
    merged = merge([first, second])
    assert [prompt.tags["source"] for prompt in merged.prompts] == ["a", "a", "a", "b"]
    assert len(merged.comparisons) == 14
    assert len(merged.bad_rows) == 2
    assert merged.name == "numbered+numbered"


def test_a_merge_of_nothing_is_refused():
    with pytest.raises(DataError, match="at least one"):
        merge([])


def test_select_filters_all_rows_by_kind_and_split_and_comparisons_by_criterion():
    dataset = load("starter")
    chosen = select(dataset, kind=("harmful", "benign"), split="train", criterion="safe")
    for rows in (chosen.comparisons, chosen.labels):
        assert rows
        assert {row.prompt.tags["kind"] for row in rows} <= {"harmful", "benign"}
        assert {row.prompt.tags["split"] for row in rows} == {"train"}
    assert {row.criterion for row in chosen.comparisons} == {"safe"}
    assert select(dataset) == dataset


def test_a_selection_of_nothing_names_what_there_is():
    with pytest.raises(DataError, match=r"no prompt with \{'kind': \['evil'\]\}; available: \{'kind': \['benign'\]\}"):
        select(numbered(2, kind="benign"), kind="evil")


def dialogue(question: str, *turns: str) -> Prompt:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((question, *turns))]
    return Prompt.of(messages)


@given(st.integers(0, 5), st.floats(0.05, 0.95))
def test_a_question_stands_on_one_side_of_all_sets_however_it_is_written_or_goes_on(seed, share):
    questions = [f"Question number {i}?" for i in range(30)]
    one = Dataset(name="one", prompts=tuple(dialogue(q) for q in questions))
    two = Dataset(name="two", prompts=tuple(dialogue(q.upper(), "Yes.", "And then?") for q in questions))
    shares = {"train": share, "test": 1 - share}
    parts = split_together({"one": one, "two": two}, {"one": shares, "two": {"test": 1.0}}, seed=seed)
    for side in shares:
        found = [{p.messages[0]["content"].lower() for p in parts[name][side].prompts} for name in ("one", "two")]
        assert found[0] == found[1]
    assert sum(len(part.prompts) for part in parts["one"].values()) == 30


def test_the_set_named_first_decides_where_a_shared_question_stands():
    shared = Dataset(name="any", prompts=(Prompt.of("Why?"),))
    for first, second in (("held", "free"), ("free", "held")):
        shares = {"held": {"test": 1.0}, "free": {"train": 1.0}}
        parts = split_together({first: shared, second: shared}, shares)
        side = {"held": "test", "free": "train"}[first]
        assert all(len(parts[name][side].prompts) == 1 for name in shares)


def test_all_rows_of_a_set_split_together_are_kept_once():
    dataset = numbered(200)
    parts = split_together({"only": dataset}, {"only": {"train": 0.5, "judge": 0.25, "test": 0.25}})["only"]
    for name in ("prompts", "demonstrations", "comparisons", "labels"):
        rows = [row for part in parts.values() for row in getattr(part, name)]
        assert len(rows) == len(getattr(dataset, name))
    assert 70 < len(parts["train"].prompts) < 130
    with pytest.raises(ConfigError, match="add up to 1"):
        split_together({"only": dataset}, {"only": {"train": 0.5}})


@given(st.lists(st.sampled_from(["harmful", "benign", "look_alike"]), max_size=60), st.integers(0, 3))
def test_strata_have_their_share_of_every_kind_on_every_side_and_no_prompt_on_two(kinds, seed):
    prompts = tuple(Prompt.of(f"p {place}", kind=kind, split="train") for place, kind in enumerate(kinds))
    shares = {"train": 0.6, "first": 0.2, "second": 0.2}
    parts = split_in_strata(Dataset(name="rows", prompts=prompts), shares, seed=seed)
    assert sorted(p.id for part in parts.values() for p in part.prompts) == sorted(p.id for p in prompts)
    for kind in set(kinds):
        of_kind = {name: sum(p.tags["kind"] == kind for p in part.prompts) for name, part in parts.items()}
        assert all(abs(of_kind[name] - share * kinds.count(kind)) <= 1 for name, share in shares.items())


def test_strata_depend_on_prompts_and_seed_and_not_on_the_order_of_rows():
    prompts = tuple(Prompt.of(f"p {place}", kind="benign") for place in range(30))
    shares = {"train": 0.5, "rest": 0.5}
    sides = [
        {p.id for p in split_in_strata(Dataset(name="rows", prompts=rows), shares, seed=seed)["train"].prompts}
        for rows, seed in ((prompts, 0), (prompts[::-1], 0), (prompts, 1))
    ]
    assert sides[0] == sides[1] != sides[2]
