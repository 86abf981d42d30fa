from __future__ import annotations

import pytest

from poise.evaluate.diversity import distinct_estimate, duplicates, equal_commonest, is_repetitive, repeated_share
from poise.functional.statistics import distinct_n


def test_repetition_is_the_share_of_ngrams_already_said():
    assert repeated_share("a b c d a b c d a b c d") == pytest.approx(1 - 4 / 9)
    assert repeated_share("a b c") == 0
    assert is_repetitive("the end. " * 30)
    assert not is_repetitive("Mix flour and water, let the dough rest, then bake it until it is brown.")


def test_duplicates_are_answers_shared_between_prompts():
    texts = ["Yes.", "yes. ", "No.", "No."]
    assert duplicates(texts, ["a", "b", "c", "c"]) == [True, True, False, False]


def test_the_commonest_answer_is_found_whatever_its_case_and_spacing():
    assert equal_commonest(["Why?", "No.", "no. ", "Yes."]) == [False, True, True, False]
    assert equal_commonest(["a", "b"]) == [True, False]
    assert equal_commonest([]) == []


def test_distinct_estimate_is_distinct_n_with_a_jackknife_interval_no_narrower_than_students():
    texts = ["i am going", "i am going home", "lets go i i", "we go", "you go home now", "now", "i am here", "going"]
    estimate = distinct_estimate(texts, 1)
    assert estimate.value == distinct_n(texts, 1)
    left_out = [distinct_n([t for j, t in enumerate(texts) if j != i], 1) for i in range(8)]
    error = (7 / 8 * sum((d - sum(left_out) / 8) ** 2 for d in left_out)) ** 0.5
    assert estimate.low <= estimate.value - 2.36 * error
    assert estimate.high >= estimate.value + 2.36 * error
    assert estimate.n == 8


@pytest.mark.parametrize("texts", [["no"] * 5, ["a b", "c d", "e f", "g h"], ["one text", "two words"]])
def test_texts_that_do_not_vary_or_are_too_few_claim_no_certainty(texts):
    assert distinct_estimate(texts, 1).low is None


def test_texts_without_words_have_no_diversity():
    assert distinct_estimate(["", ""], 2).value == 0
