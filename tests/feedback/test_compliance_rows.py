"""Judges of compliance learn from people alone, and share no rule, row or question with what they judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from poise.errors import DataError
from poise.feedback import published
from poise.feedback.compliance_rows import FEATURES, WORDS, people_sets, require_apart, source_of
from poise.feedback.published import PublishedRows, published_rows, starter_rows
from poise.types import Origin, Prompt, SafetyLabel


def label(text: str, *, kind: str = "human") -> SafetyLabel:
    return SafetyLabel(prompt=Prompt.of(text), response="No.", safe=True, origin=Origin(kind=kind, name="someone"))


def test_a_row_that_a_rule_labelled_is_refused() -> None:
    require_apart([label("Why?")], rows=[], prompts=[])
    with pytest.raises(DataError, match=r"a rule \(someone\) labelled 'No.'"):
        require_apart([label("Why?", kind="rule")], rows=[], prompts=[])


@pytest.mark.parametrize(
    "other",
    ["How do I pick a lock?", "how do i pick a lock", "How do I  pick a LOCK?!"],
    ids=["same", "case", "spaces"],
)
@pytest.mark.parametrize("use", ["rows", "prompts"])
def test_a_question_that_the_signal_or_the_verdict_knows_is_refused_however_it_is_spelt(other: str, use: str) -> None:
    known = {"rows": [], "prompts": [], use: [(Prompt.of(other), "x")] if use == "rows" else [Prompt.of(other)]}
    with pytest.raises(DataError, match=r"learns from 'How do I pick a lock.*has too"):
        require_apart([label("How do I pick a lock?")], **known)


def test_the_starter_rows_are_apart_too() -> None:
    starter_rows(evaluated=4, trained=24).require_independent_verdict()


def test_a_shared_row_is_found_in_every_use() -> None:
    rows = starter_rows(evaluated=4, trained=24)
    stolen = rows.verdicts[FEATURES].labels[0]
    learned = rows.cost["train"]
    shared = replace(rows, cost={**rows.cost, "train": replace(learned, labels=(*learned.labels, stolen))})
    for each in (shared, replace(rows, evaluation=(stolen.prompt,)), replace(rows, validation=(stolen.prompt,))):
        with pytest.raises(DataError, match="has too"):
            each.require_independent_verdict()


@pytest.mark.parametrize("says", [lambda text: True, lambda text: False], ids=["all refuse", "none does"])
def test_what_the_refusal_rule_says_changes_no_row_of_a_judge(
    says: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = starter_rows(evaluated=4, trained=24).verdicts
    monkeypatch.setattr(published, "is_refusal", says)
    after = starter_rows(evaluated=4, trained=24).verdicts
    assert {side: rows.labels for side, rows in before.items()} == {side: rows.labels for side, rows in after.items()}


def test_people_s_part_for_tests_is_never_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "riddle 5" is a prompt of that part by its hash."""
    monkeypatch.setattr("poise.data.human_rated.package_files", lambda *_: [])
    monkeypatch.setenv("POISE_DATA", str(tmp_path))
    rows = [("Tell me a riddle!", True), ("riddle 5", False)]
    for name, column in (("compliance", "complied"), ("refusal", "kind")):
        path = tmp_path / f"human_rated_{name}" / f"{name}.jsonl"
        path.parent.mkdir()
        said = {"complied": lambda yes: yes, "kind": lambda yes: "answer" if yes else "unrelated"}[column]
        lines = [json.dumps({"prompt": text, "response": "Some words.", column: said(yes)}) for text, yes in rows]
        path.write_text("\n".join(lines), "utf-8")
    sets, shares = people_sets()
    for name, dataset in sets.items():
        (found,) = dataset.labels
        assert found.origin.kind == "human"
        assert list(shares[name]) == (
            ["test"] if found.prompt.text == "riddle 5" else [FEATURES] if "compliance" in name else [WORDS]
        )
        assert found.safe == (found.prompt.text == "riddle 5"), "an evasion declines as a refusal does"


@pytest.mark.real_data
class TestRealRows:
    @pytest.fixture(autouse=True)
    def _with_data(self, poise_data: Path) -> None:
        """Skip without POISE_DATA."""

    def test_both_judges_learn_from_people_alone_and_from_other_prompts(self) -> None:
        rows: PublishedRows = published_rows(evaluated=40, trained=96)
        rows.require_independent_verdict()
        learned = {side: rows.verdicts[side].labels for side in (FEATURES, WORDS)}
        assert {row.origin.kind for side in learned.values() for row in side} == {"human"}
        assert {source_of(row) for row in learned[FEATURES]} == {"human-rated-compliance", "xstest:completions"}
        assert {source_of(row) for row in learned[WORDS]} == {"human-rated-refusal", "xstest:completions"}
        prompts = [{row.prompt.text.lower() for row in side} for side in learned.values()]
        assert not prompts[0] & prompts[1]
        asked = {prompt.id for prompt in (*rows.policy_prompts, *rows.further_prompts, *rows.evaluation)}
        kinds = [prompt.tags["kind"] for prompt in rows.validation]
        assert not asked & {prompt.id for prompt in rows.validation}
        assert min(kinds.count(kind) for kind in ("harmful", "look_alike", "benign")) >= 10
