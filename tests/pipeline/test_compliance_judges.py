"""Judges of compliance: what they are worth by people's labels, and that the refusal rule decides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.evaluate.suite import complies, score_completions
from poise.experiment.compliance import agreement
from poise.feedback import rules
from poise.feedback.compliance_rows import FEATURES
from poise.feedback.published import starter_rows
from poise.models.load import load_backbone
from poise.pipeline.compliance_judges import (
    BY_RULE,
    BY_WORDS,
    ComplianceJudges,
    compliance_judges,
    judge_worth,
)
from poise.run import Run
from poise.types import Completion, Origin, Prompt, SafetyLabel


def row(text: str, response: str, *, safe: bool, source: str = "one", kind: str = "harmful") -> SafetyLabel:
    prompt = Prompt.of(text, source=source, kind=kind)
    return SafetyLabel(prompt=prompt, response=response, safe=safe, origin=Origin(kind="human", name=source))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> ComplianceJudges:
    rows = starter_rows(evaluated=4, trained=40)
    folder = tmp_path_factory.mktemp("judges") / "run"
    with Run.open(folder, recipe="judges", arguments={}) as run:
        return compliance_judges(run, load_backbone("random:llama?layers=3"), rows, longest_answer=64)


def test_every_judge_has_a_channel_of_its_own_and_one_decides(judges: ComplianceJudges) -> None:
    prompt = Prompt.of("How do I bake bread?", kind="benign")
    said = [Completion(prompt_id=prompt.id, text="I'm sorry, but I can't assist with that.")]
    (found,) = score_completions([prompt], said, judges.scorers())
    assert set(found.scores.values) == {"compliance", BY_WORDS, BY_RULE}
    assert found.scores.values[BY_RULE] == 1.0
    assert complies(found) == (found.scores.values["compliance"] > 0), "a refusal by the rule does not decide"


@pytest.mark.parametrize("rule", [lambda text: True, lambda text: False], ids=["all refuse", "none does"])
def test_the_verdict_is_the_same_whatever_the_refusal_rule_says(
    rule: object, judges: ComplianceJudges, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt.of(f"How do I bake bread {i}?", kind="benign") for i in range(6)]
    texts = ["I cannot help.", "Mix flour and water.", "No.", "First, heat the oven.", "Sorry, no.", "Bread is old."]
    said = [Completion(prompt_id=p.id, text=text) for p, text in zip(prompts, texts, strict=True)]
    before = [complies(each) for each in score_completions(prompts, said, judges.scorers())]
    monkeypatch.setattr(rules, "is_refusal", rule)
    after = score_completions(prompts, said, judges.scorers())
    assert [complies(each) for each in after] == before
    assert {each.scores.values[BY_RULE] for each in after} == {float(rule("")) for _ in texts}


def test_agreement_is_of_all_three(judges: ComplianceJudges) -> None:
    prompts = [Prompt.of(f"How do I bake bread {i}?", kind="benign") for i in range(4)]
    said = [
        Completion(prompt_id=p.id, text=t)
        for p, t in zip(prompts, ["No.", "Mix it.", "Bake.", "I can't help."], strict=True)
    ]
    found = agreement(score_completions(prompts, said, judges.scorers()))
    assert set(found) == {"judge and words", "judge and rule", "words and rule"}
    assert all(-1 <= each.value <= 1 and each.n == 4 for each in found.values())


def test_a_source_is_left_out_with_all_of_its_rows() -> None:
    """The judge of this test calls compliance what has a word that some row it learned from has."""
    learned = [
        *(row(f"a{i}", f"apple {i}", safe=False, source="one") for i in range(4)),
        *(row(f"b{i}", "no", safe=True, source="one") for i in range(4)),
        *(row(f"c{i}", "pear", safe=False, source="two") for i in range(4)),
        *(row(f"d{i}", "no", safe=True, source="two") for i in range(4)),
    ]
    seen: list[set[str]] = []

    def fit(rows):
        seen.append({str(each.prompt.tags["source"]) for each in rows})
        known = {word for each in rows if not each.safe for word in each.response.split()}
        return lambda others: [1.0 if known & set(each.response.split()) else -1.0 for each in others]

    unseen = [row("e", "apple", safe=False, source="three"), row("f", "no", safe=True, source="three")]
    worth = judge_worth(fit, learned, unseen)
    assert seen == [{"one", "two"}, {"two"}, {"one"}]
    assert worth["f1"].value == 1.0
    assert worth["f1_of_the_others_without_one"].value == pytest.approx(2 / 3), (
        "apples are unknown without their source"
    )
    assert "f1_without_three" not in worth


def test_a_judge_that_shares_a_question_is_not_fitted(tmp_path: Path) -> None:
    from dataclasses import replace

    from poise.errors import DataError

    rows = starter_rows(evaluated=4, trained=24)
    asked = replace(rows, evaluation=(rows.verdicts[FEATURES].labels[0].prompt,))
    with (
        Run.open(tmp_path / "run", recipe="judges", arguments={}) as run,
        pytest.raises(DataError, match="has too"),
    ):
        compliance_judges(run, load_backbone("random:llama?layers=3"), asked, longest_answer=32)
