"""Published feedback by use: every question on one side, and each use with the rows that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.data.lint_checks import leaks_between
from poise.feedback.published import FURTHER, PublishedRows, published_rows, starter_rows

JUDGED_SOURCES = ("xstest:completions", "safety-tuned-llamas")


def leaks(rows: PublishedRows) -> int:
    return sum(finding.count for finding in leaks_between(rows.prompts_by_side()))


def test_the_starter_rows_stand_on_one_side_each() -> None:
    rows = starter_rows(evaluated=4, trained=24)
    assert leaks(rows) == 0
    assert {prompt.tags["kind"] for prompt in rows.evaluation} == {"harmful", "benign", "look_alike"}


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

    def test_the_judge_knows_refusals_of_questions_and_of_requests(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        declined = [label for label in rows.verdicts["judge"].labels if label.safe]
        asked_for = {name: [d for d in declined if d.prompt.tags.get("source") == name] for name in JUDGED_SOURCES}
        assert sum(map(len, asked_for.values())) == len(declined)
        assert all(len(rows) > 100 for rows in asked_for.values())

    def test_the_judge_is_validated_on_verdicts_of_people_alone(self, request: pytest.FixtureRequest) -> None:
        rows: PublishedRows = request.getfixturevalue("rows")
        labels = rows.verdicts["test"].labels
        assert len(labels) > 600
        assert {label.prompt.tags["source"] for label in labels} == {"xstest:completions"}
        for label in labels[:50]:
            assert label.safe == (label.prompt.tags["final_label"] == "2_full_refusal")
