"""The sentence that stands first: limits, what got better, what worse, and what nobody can tell."""

from __future__ import annotations

import pytest

from poise.evaluate.verdict import Change, LimitFinding, limits_clause, sentence, wins_above_even
from poise.types import Estimate


def points(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, n=100, unit="percentage points", low=low, high=high)


def share(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, n=100, unit="share", low=low, high=high)


def harm(low: float | None, high: float | None) -> Change:
    return Change(name="harm_rate", label="harmful answers", before=share(0.21), after=share(0.067), better="lower",
                  difference=points(-14.3, low, high))  # fmt: skip


def limit(value: float, low: float | None, high: float | None, **more: str) -> LimitFinding:
    found = Estimate(value=value, n=80, low=low, high=high)
    return LimitFinding(text="-0.5", label="mean cost", at_most=-0.5, target=-0.62, found=found, **more)


@pytest.mark.parametrize(
    ("found", "outcome", "words"),
    [
        (limit(-0.7, -0.8, -0.6), "met", "The limit was met on unseen test prompts"),
        (limit(-0.7, -0.8, -0.5), "met", "The limit was met on unseen test prompts"),
        (limit(-0.3, -0.4, -0.2), "not met", "The limit was not met on unseen test prompts"),
        (
            limit(-0.6, -0.8, -0.4),
            "not told",
            "Whether the limit was met on unseen test prompts is not statistically clear",
        ),
        (limit(-0.6, None, None), "not told", "Whether the limit was met"),
        (limit(-0.7, -0.8, None), "not told", "Whether the limit was met"),
        (limit(-0.7, -0.8, -0.6, prompts="validation"), "met", "The limit was met on unseen validation prompts"),
    ],
)
def test_a_limit_is_met_where_its_whole_interval_lies_at_or_below_it(
    found: LimitFinding, outcome: str, words: str
) -> None:
    assert found.outcome == outcome
    assert limits_clause([found]).startswith(words)


def test_of_several_limits_each_says_whether_it_was_met() -> None:
    text = limits_clause([limit(-0.7, -0.8, -0.6), limit(-0.3, -0.4, -0.2)])
    assert text.startswith("1 of 2 limits were met on unseen test prompts")
    assert "at most -0.5: met; " in text and text.endswith("at most -0.5: not met)")
    assert limits_clause([limit(-0.7, -0.8, -0.6)] * 2).startswith("All 2 limits were met")
    assert limits_clause([limit(-0.3, -0.4, -0.2)] * 2).startswith("None of 2 limits was met")


@pytest.mark.parametrize(
    ("low", "high", "clause"),
    [
        (-20.1, -8.9, "better: harmful answers 21.0 → 6.7 % (-14.3 points [-20.1, -8.9]); nothing worse."),
        (-30.0, 0.5, "no difference told from chance: harmful answers -14.3 points [-30.0, 0.5]."),
        (-30.0, 0.0, "no difference told from chance: harmful answers -14.3 points [-30.0, 0.0]."),
        (None, None, "without an interval: harmful answers 21.0 → 6.7 % (-14.3 points)."),
    ],
)
def test_only_an_interval_that_leaves_out_no_difference_makes_better(
    low: float | None, high: float | None, clause: str
) -> None:
    text = sentence([harm(low, high)], [], against="the SFT start")
    assert text.endswith(clause)
    assert "against the SFT start " in text
    assert ("nothing better" in text) == (not clause.startswith("better"))


def test_what_rises_and_should_fall_is_worse_and_what_has_no_direction_is_changed() -> None:
    refused = Change(name="r", label="look-alikes refused", before=share(0.144), after=share(0.308), better="lower",
                     difference=points(16.4, 8.0, 24.0))  # fmt: skip
    length = Change(name="l", label="length", before=Estimate(value=47.0, n=9, unit="tokens"), better="",
                    after=Estimate(value=17.0, n=9, unit="tokens"),
                    difference=Estimate(value=-30.0, n=9, unit="tokens", low=-35.0, high=-25.0))  # fmt: skip
    text = sentence([refused, length], [], against="the base model")
    assert "nothing better; worse: look-alikes refused 14.4 → 30.8 % (+16.4 points [8.0, 24.0])" in text
    assert "changed: length 47.0 → 17.0 tokens (-30.0 tokens [-35.0, -25.0])" in text


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(0.55, 0.7, "better"), (0.3, 0.45, "worse"), (0.45, 0.6, "no difference")]
)
def test_wins_are_held_against_one_half(low: float, high: float, tone: str) -> None:
    rate = share((low + high) / 2, low, high)
    change = Change(name="wins", label="helpful wins", after=rate, difference=wins_above_even(rate), better="higher")
    assert change.tone == tone
