"""What a scorer answers: numbers of any kind are taken as floats, the rest is an error that says whose and how many."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from poise.errors import ConfigError, FeedbackError
from poise.feedback.annotators import ScoreAnnotator
from poise.feedback.asking import ask, merged
from poise.types import Completion, Prompt, Scores

PROMPTS = [Prompt.of(text) for text in ("a", "b", "c")]
COMPLETIONS = [Completion(prompt_id=prompt.id, text="so") for prompt in PROMPTS]


class Giving:
    """A scorer that gives what it is told to."""

    def __init__(self, answer, name=""):
        self.answer, self.name = answer, name

    def score(self, prompts, completions):
        return self.answer


def rewards(*values):
    return Giving([Scores(values={"reward": value}) for value in values])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((7, 7.0), (True, 1.0), (False, 0.0), (-0.5, -0.5), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5)),
        *(
            (np.float32(0.5), 0.5),
            (np.int64(3), 3.0),
            (np.bool_(True), 1.0),
            (np.array(2.0), 2.0),
            (np.array([2]), 2.0),
        ),
        *((torch.tensor(0.5), 0.5), (torch.tensor([3]), 3.0), (torch.tensor(True), 1.0)),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        *((math.inf, math.inf), (10**400, math.inf)),
    ],
)
def test_a_number_of_any_kind_is_a_float(value, expected):
    found = ask(rewards(value, 0.0, 0.0), PROMPTS, COMPLETIONS)[0].values["reward"]
    assert (type(found), found) == (float, expected)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.5",
        b"1",
        [0.5],
        (),
        {},
        1j,
        object(),
        np.array("0.5"),
        np.zeros(2),
        torch.zeros(2),
        torch.zeros(0),
        np.timedelta64(5, "s"),
        np.datetime64("2026-01-01"),
        Decimal("sNaN"),
        np.complex64(1),
        torch.tensor(1j),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_an_error_that_names_scorer_channel_and_count(value):
    with pytest.raises(FeedbackError, match=r"'Giving': 2 of 3 values on channel 'reward' are not numbers"):
        ask(rewards(1.0, value, value), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_too_few_or_too_many_scores_are_an_error_that_names_the_scorer_and_both_numbers(number):
    with pytest.raises(FeedbackError, match=f"'judge' gave {number} scores for 3 completions"):
        ask(Giving([Scores(values={"reward": 1.0})] * number, name="judge"), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    "answer",
    [None, 0.5, "good", {"reward": 1.0}, Scores(values={"reward": 1.0})],
    ids=lambda value: type(value).__name__,
)
def test_an_answer_that_is_no_list_is_an_error(answer):
    with pytest.raises(FeedbackError, match=r"'Giving' gave .*expected a list of Scores"):
        ask(Giving(answer), PROMPTS, COMPLETIONS)


class Failing:
    """A scorer that fails, at once or when its scores are read."""

    def __init__(self, error, *, late):
        self.error, self.late = error, late

    def score(self, prompts, completions):
        return self._scores() if self.late else list(self._scores())

    def _scores(self):
        yield Scores(values={"reward": 1.0})
        raise self.error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [KeyError("reward"), ValueError("bad\x1b[31m"), IndexError(), TypeError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_scorer_that_fails_is_an_error_that_names_it_and_keeps_the_cause(error, late):
    with pytest.raises(FeedbackError, match=r"'Failing' failed on 3 completions: \w+Error.*unscorable") as caught:
        ask(Failing(error, late=late), PROMPTS, COMPLETIONS)
    assert caught.value.__cause__ is error
    assert "\x1b" not in str(caught.value)


def test_an_error_for_the_user_passes_through_a_scorer():
    with pytest.raises(ConfigError, match="as it was"):
        ask(Failing(ConfigError("as it was"), late=False), PROMPTS, COMPLETIONS)


def test_scores_without_end_are_an_error_and_a_coroutine_is_no_list(recwarn):
    def endless():
        while True:
            yield Scores(values={"reward": 1.0})

    async def scores():
        return []

    with pytest.raises(FeedbackError, match="gave more than 3 scores for 3 completions"):
        ask(Giving(endless()), PROMPTS, COMPLETIONS)
    with pytest.raises(FeedbackError, match=r"coroutine.*expected a list of Scores"):
        ask(Giving(scores()), PROMPTS, COMPLETIONS)
    assert not recwarn.list


@pytest.mark.parametrize(
    "row",
    [
        0.5,
        {"reward": 1.0},
        None,
        Scores(values=0.5),
        Scores(values=None),
        Scores(values={1: 0.5}),
        Scores(values={None: 0.5}),
        Scores(values={}, unscorable=5),
        Scores(values={}, explanation=["why"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_answer_that_is_no_record_of_scores_is_an_error(row):
    with pytest.raises(FeedbackError, match="'Giving': 3 of 3 answers are not Scores"):
        ask(Giving([row] * 3), PROMPTS, COMPLETIONS)


def test_any_iterable_of_scores_will_do_and_the_scorer_is_the_source():
    found = ask(Giving(iter([Scores(values={"reward": 1})] * 3)), PROMPTS, COMPLETIONS)
    assert [(each.values, each.source) for each in found] == [({"reward": 1.0}, "Giving")] * 3


def test_what_is_unscorable_has_no_value_whatever_it_was_given():
    scores = Scores(values={"reward": 0.3, "cost": -1.0}, unscorable="the response is empty")
    assert scores.values == {}
    assert ask(Giving([scores] * 3), PROMPTS, COMPLETIONS)[0].values == {}
    assert Scores(values={"reward": 0.3}).values == {"reward": 0.3}


def test_where_one_scorer_has_no_value_the_others_are_kept_and_it_is_said_who_had_none():
    judge, rule = Scores(values={}, unscorable="no verdict"), Scores(values={"refusal": 0.0}, source="rule")
    both = merged([("judge", judge), ("rule", rule)])
    assert (both.values, both.unscorable, both.explanation) == ({"refusal": 0.0}, "", "judge: no verdict")
    assert merged([("judge", judge)]).unscorable == "judge: no verdict"


def test_two_scorers_that_fill_one_channel_are_an_error_that_names_both():
    one = Scores(values={"reward": 0.0})
    with pytest.raises(ConfigError, match=r"'second' fills \['reward'\], which another scorer also fills \(first\)"):
        merged([("first", one), ("second", one)])


@pytest.mark.parametrize(("values", "said"), [({"other": 1.0}, "it fills other"), ({"reward": math.nan}, "nan")])
def test_a_comparison_by_scores_that_are_not_there_is_an_error(values, said):
    with pytest.raises(FeedbackError, match=f"on channel 'reward'.*{said}|{said}.*on channel 'reward'"):
        ScoreAnnotator(Giving([Scores(values=values)] * 2), "helpful").compare(PROMPTS[0], ["one", "two"])
