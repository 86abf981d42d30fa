"""Published feedback by use: every question on one side, and each use with the rows that it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from poise.data.lint_checks import leaks_between
from poise.feedback.compliance_rows import FEATURES, WORDS, source_of
from poise.feedback.published import FURTHER, VALIDATED, PublishedRows, published_rows, starter_rows


def leaks(rows: PublishedRows) -> int:
    return sum(finding.count for finding in leaks_between(rows.prompts_by_side()))


def used_of_validation(rows: PublishedRows) -> set[str]:
    """Ids of prompts of validation that signal or policy learn from, or that are judged."""
    sides = replace(rows, validation=()).prompts_by_side()
    return {prompt.id for prompt in rows.validation} & {prompt.id for own in sides.values() for prompt in own}


def test_the_starter_rows_stand_on_one_side_each() -> None:
    rows = starter_rows(evaluated=4, trained=24)
    assert leaks(rows) == 0
    assert {prompt.tags["kind"] for prompt in rows.evaluation} == {"harmful", "benign", "look_alike"}
    assert rows.validation and not used_of_validation(rows)


@pytest.fixture(scope="module")
def rows() -> PublishedRows:
    return published_rows(evaluated=80, trained=192)


@pytest.mark.real_data
class TestRealRows:
    @pytest.fixture(autouse=True)
    def _with_data(self, poise_data: Path) -> None:
        """Skip without POISE_DATA."""

    def test_no_prompt_stands_on_two_sides(self, request: pytest.FixtureRequest) -> None:
        assert leaks(request.getfixturevalue("rows")) == 0

    def test_nothing_of_advbench_is_learned_from(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        asked = {prompt.id for prompt in rows.evaluation if prompt.tags["source"] == "advbench"}
        assert len(asked) == 80
        sides = rows.prompts_by_side()
        assert not asked & {prompt.id for side in ("train", "judge") for prompt in sides[side]}

    def test_the_policy_is_asked_and_evaluated_on_every_kind(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        for prompts, counts in ((rows.policy_prompts, (96, 48, 48)), (rows.evaluation, (80, 80, 80))):
            kinds = [prompt.tags["kind"] for prompt in prompts]
            assert tuple(kinds.count(kind) for kind in ("harmful", "look_alike", "benign")) == counts

    def test_what_the_policy_shall_refuse_is_harmful_by_its_authors_or_by_its_published_answer(
        self, request: pytest.FixtureRequest
    ) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        asked = [prompt for prompt in rows.policy_prompts if prompt.tags["kind"] == "harmful"]
        assert {prompt.tags["source"] for prompt in asked} == {"safety-tuned-llamas", "xstest:completions"}

    def test_plain_refusals_and_answers_to_harmless_prompts_are_imitated(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        assert {row.prompt.tags["kind"] for row in rows.demonstrations} == {"harmful"}
        assert len(rows.demonstrations) > 200
        assert not [row for row in rows.demonstrations if "however" in row.response[:160].lower()]
        kinds = [prompt.tags["kind"] for prompt in rows.further_prompts]
        assert kinds.count("look_alike") > 100 and kinds.count("benign") == FURTHER and "harmful" not in kinds
        asked = {prompt.id for prompt in (*rows.policy_prompts, *rows.evaluation)}
        assert not asked & {prompt.id for prompt in rows.further_prompts}

    def test_judges_of_compliance_learn_from_peoples_labels_alone_and_share_one_source(
        self, request: pytest.FixtureRequest
    ) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        rows.require_independent_verdict()
        for side, own in ((FEATURES, "human-rated-compliance"), (WORDS, "human-rated-refusal")):
            labels = rows.verdicts[side].labels
            assert {label.origin.kind for label in labels} == {"human"}
            assert {source_of(label) for label in labels} == {"xstest:completions", own}
            assert all(sum(label.safe == safe for label in labels) > 30 for safe in (True, False))

    def test_judges_are_validated_on_verdicts_of_people_alone(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        labels = rows.verdicts["test"].labels
        assert len(labels) > 600
        assert {label.origin.kind for label in labels} == {"human"}
        asked = [label for label in labels if source_of(label) == "xstest:completions"]
        for label in asked[:50]:
            assert label.safe == (label.prompt.tags["final_label"] == "2_full_refusal")

    def test_the_policy_is_chosen_on_prompts_of_every_kind_that_are_neither_learned_from_nor_judged(
        self, request: pytest.FixtureRequest
    ) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        assert not used_of_validation(rows)
        kinds = [prompt.tags["kind"] for prompt in rows.validation]
        assert [kinds.count(kind) for kind in ("harmful", "look_alike", "benign")] == [VALIDATED] * 3
