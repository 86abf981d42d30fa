"""Annotators that need no person: a rule, and a scorer that compares by its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from poise.errors import ConfigError, FeedbackError
from poise.feedback.annotators import ErringAnnotator, RecordedAnnotator, RuleAnnotator, ScoreAnnotator
from poise.types import Annotator, Comparison, Completion, Dataset, Prompt, SafetyLabel, Scores

HARMFUL = Prompt.of("Help me steal a bike.", kind="harmful")
BENIGN = Prompt.of("How do I mend a bike?", kind="benign")
REFUSAL = "I'm sorry, but I can't help with that."
SHORT = "Patch the tube."
LONG = "Take off the wheel, find the hole under water and patch the tube."


class LengthScorer:
    """Reward is the number of words; cost is that number less five; an empty text cannot be scored."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        counts = [len(completion.text.split()) for completion in completions]
        return [
            Scores(
                values={"reward": float(count), "cost": count - 5.0, "words": float(-count)},
                source="length",
                unscorable="" if count else "empty response",
            )
            for count in counts
        ]


def test_both_fulfil_the_protocol() -> None:
    assert isinstance(RuleAnnotator("safe"), Annotator)
    assert isinstance(ScoreAnnotator(LengthScorer(), "safe"), Annotator)


def test_a_refusal_of_a_harmful_prompt_is_the_safe_response() -> None:
    verdict = RuleAnnotator("safe").compare(HARMFUL, [LONG, REFUSAL])
    assert (verdict.winner, verdict.safe, verdict.criterion) == (1, (False, True), "safe")


def test_on_other_prompts_the_rule_sees_no_difference_in_safety() -> None:
    verdict = RuleAnnotator("safe").compare(BENIGN, [LONG, REFUSAL])
    assert (verdict.winner, verdict.probability, verdict.safe) == (None, 0.5, (True, True))


def test_two_answers_to_a_harmful_prompt_are_a_tie_and_both_unsafe() -> None:
    verdict = RuleAnnotator("safe").compare(HARMFUL, [LONG, SHORT])
    assert (verdict.winner, verdict.probability, verdict.safe) == (None, 0.5, (False, False))


@pytest.mark.parametrize(
    ("responses", "winner"), [([REFUSAL, SHORT], 1), ([LONG, SHORT], 0), ([SHORT, LONG, REFUSAL], 1)]
)
def test_the_helpful_response_answers_and_says_more(responses: list[str], winner: int) -> None:
    verdict = RuleAnnotator("helpful").compare(BENIGN, responses)
    assert (verdict.winner, verdict.safe) == (winner, None)
    assert verdict.responses == tuple(responses)


def test_repeating_a_word_does_not_make_an_answer_more_helpful() -> None:
    assert RuleAnnotator("helpful").compare(BENIGN, ["patch " * 40, SHORT]).winner == 1


def test_verdicts_say_who_gave_them() -> None:
    by_rule = RuleAnnotator("safe").compare(HARMFUL, [LONG, REFUSAL]).origin
    by_model = ScoreAnnotator(LengthScorer(), "safe").compare(HARMFUL, [LONG, SHORT]).origin
    assert (by_rule.kind, by_rule.name) == ("rule", "refusal rule")
    assert (by_model.kind, by_model.name) == ("model", "length")


def test_an_unknown_criterion_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="polite"):
        RuleAnnotator("polite")  # type: ignore[arg-type]


def test_a_reward_ranks_high_scores_first_and_a_cost_low_ones() -> None:
    helpful = ScoreAnnotator(LengthScorer(), "helpful").compare(BENIGN, [SHORT, LONG])
    safe = ScoreAnnotator(LengthScorer(), "safe").compare(BENIGN, [LONG, SHORT])
    assert (helpful.winner, helpful.safe) == (1, None)
    assert (safe.winner, safe.safe) == (1, (False, True))


def test_equal_scores_are_a_tie() -> None:
    verdict = ScoreAnnotator(LengthScorer(), "helpful").compare(BENIGN, ["one two", "three four"])
    assert (verdict.winner, verdict.probability) == (None, 0.5)


def test_another_channel_can_be_named() -> None:
    assert ScoreAnnotator(LengthScorer(), "helpful", channel="words").compare(BENIGN, [LONG, SHORT]).winner == 1


def test_a_response_without_a_score_is_no_verdict() -> None:
    with pytest.raises(FeedbackError, match=f"{BENIGN.id}.*empty response"):
        ScoreAnnotator(LengthScorer(), "safe").compare(BENIGN, [SHORT, " "])


@pytest.mark.parametrize("criterion", ["helpful", "safe"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_a_simulated_person_errs_as_often_as_it_says_on_both_axes_and_always_alike(criterion, rate) -> None:
    sure = RuleAnnotator(criterion)
    person = ErringAnnotator(sure, flip_rate=rate, seed=3)
    asked = [(Prompt.of(f"Help me steal bike {place}.", kind="harmful"), [LONG, REFUSAL]) for place in range(1000)]
    said = [(sure.compare(*each), person.compare(*each)) for each in asked]
    wrong = sum(a.winner != b.winner for a, b in said) / len(said)
    assert wrong == pytest.approx(rate, abs=0.04)
    if criterion == "safe":
        flags = [x != y for a, b in said for x, y in zip(a.safe, b.safe, strict=True)]
        assert sum(flags) / len(flags) == pytest.approx(rate, abs=0.03)
    assert [person.compare(*each) for each in reversed(asked)][::-1] == [b for _, b in said]
    assert f"{rate:.0%} flipped" in said[0][1].origin.name


def test_who_errs_in_half_of_the_verdicts_says_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="where labels say nothing"):
        ErringAnnotator(RuleAnnotator("safe"), flip_rate=0.5)


def test_what_people_wrote_down_is_found_in_either_order_of_the_responses_and_never_made_up() -> None:
    said = Comparison(prompt=BENIGN, responses=(LONG, SHORT), criterion="safe", winner=0, safe=(True, False))
    soft = Comparison(prompt=HARMFUL, responses=(LONG, SHORT), criterion="safe", probability=0.8)
    file = RecordedAnnotator(Dataset(name="people.jsonl", comparisons=(said, soft)), "safe")
    assert file.compare(BENIGN, [LONG, SHORT]) == said
    turned = file.compare(BENIGN, [SHORT, LONG])
    assert (turned.winner, turned.safe, turned.responses) == (1, (False, True), (SHORT, LONG))
    assert file.compare(HARMFUL, [SHORT, LONG]).probability == pytest.approx(0.2)
    with pytest.raises(FeedbackError, match=r"people.jsonl has no comparison .*'safe'.*have people compare"):
        file.compare(BENIGN, [LONG, REFUSAL])
    with pytest.raises(FeedbackError, match="'helpful'"):
        RecordedAnnotator(Dataset(name="people.jsonl", comparisons=(said,)), "helpful").compare(BENIGN, [LONG, SHORT])


def test_several_people_make_a_share_of_one_pair_and_an_answer_is_safe_where_most_say_so() -> None:
    pair: dict[str, Any] = {"prompt": BENIGN, "criterion": "safe"}
    rows = (
        Comparison(responses=(LONG, SHORT), winner=0, **pair),
        Comparison(responses=(SHORT, LONG), winner=1, **pair),
        Comparison(responses=(LONG, SHORT), winner=1, **pair),
        Comparison(responses=(LONG, SHORT), probability=0.5, **pair),
    )
    flags = [(LONG, True), (LONG, True), (LONG, False), (SHORT, True), (SHORT, False)]
    labels = tuple(SafetyLabel(prompt=BENIGN, response=text, safe=safe) for text, safe in flags)
    found = RecordedAnnotator(Dataset(name="people", comparisons=rows, labels=labels), "safe")
    verdict = found.compare(BENIGN, [SHORT, LONG])
    assert (verdict.winner, verdict.probability) == (None, pytest.approx(2.5 / 4 * -1 + 1))
    assert verdict.safe == (False, True)  # half is not most


def test_a_pair_that_people_labelled_without_preferring_one_is_undecided() -> None:
    labels = tuple(SafetyLabel(prompt=BENIGN, response=text, safe=True) for text in (LONG, SHORT))
    for criterion, flags in (("helpful", None), ("safe", (True, True))):
        verdict = RecordedAnnotator(Dataset(name="people", labels=labels), criterion).compare(BENIGN, [SHORT, LONG])
        assert (verdict.winner, verdict.probability, verdict.safe) == (None, 0.5, flags)
    with pytest.raises(FeedbackError):
        RecordedAnnotator(Dataset(name="people", labels=labels[:1]), "helpful").compare(BENIGN, [SHORT, LONG])
