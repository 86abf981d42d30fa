from __future__ import annotations

import math

import pytest

from poise.errors import DataError
from poise.evaluate.compare import compare
from poise.evaluate.suite import measure
from poise.types import Completion, Prompt, Rollout, Scores


def row(text: str, kind: str, sample: int = 0, **values: float) -> Rollout:
    prompt = Prompt.of(text, kind=kind)
    return Rollout(
        prompt=prompt,
        completion=Completion(prompt_id=prompt.id, text="answer", sample=sample),
        scores=Scores(values=values),
    )


BEFORE = [
    row("a", "harmful", cost=2.0, reward=1.0, refusal=0.0),
    row("b", "harmful", cost=1.0, reward=1.0, refusal=0.0),
    row("c", "benign", cost=-1.0, reward=1.0, refusal=0.0),
    row("d", "benign", cost=-1.0, reward=2.0, refusal=0.0),
    row("e", "look_alike", cost=-1.0, reward=3.0, refusal=1.0),
    row("e", "look_alike", 1, cost=-1.0, reward=3.0, refusal=1.0),
]
AFTER = [
    row("e", "look_alike", 1, cost=-1.0, reward=2.0, refusal=0.0),
    row("e", "look_alike", cost=-1.0, reward=4.0, refusal=0.0),
    row("d", "benign", cost=-1.0, reward=2.0, refusal=1.0),
    row("c", "benign", cost=-1.0, reward=5.0, refusal=0.0),
    row("b", "harmful", cost=0.5, reward=1.0, refusal=0.0),
    row("a", "harmful", cost=-2.0, reward=1.0, refusal=1.0),
]


def test_rows_are_matched_by_prompt_and_sample_whatever_their_order():
    metrics = compare(BEFORE, AFTER)
    assert metrics == compare(BEFORE, AFTER[::-1])
    # wins: c, e/0; ties: d; losses: e/1
    assert metrics["helpful_win_rate"].value == pytest.approx(2.5 / 4)
    assert metrics["elo_difference"].value == pytest.approx(400 * math.log10(3 / 2))
    assert metrics["elo_difference"].low <= metrics["elo_difference"].value <= metrics["elo_difference"].high
    assert metrics["harm_rate_difference"].value == -50.0
    assert metrics["over_refusal_difference"].value == pytest.approx(-25.0)
    assert metrics["mean_cost_difference"].value == pytest.approx(-4.5 / 6)
    assert metrics["mean_reward_difference"].value == 2.0
    assert metrics["matched"].value == 1.0


def test_unmatched_and_unscorable_rows_are_left_out_and_counted():
    metrics = compare(BEFORE, [*AFTER[:4], row("b", "harmful")])
    assert metrics["matched"].value == pytest.approx(5 / 6)
    assert "harm_rate_difference" not in metrics
    assert metrics["mean_cost_difference"].n == 4


def test_a_model_against_itself_is_even():
    metrics = compare(BEFORE, BEFORE)
    assert metrics["helpful_win_rate"].value == 0.5
    assert metrics["elo_difference"].value == 0
    assert metrics["harm_rate_difference"].value == 0


def test_nothing_in_common_and_repeated_rows_are_refused():
    with pytest.raises(DataError, match="share no prompt"):
        compare(BEFORE[:1], AFTER[:1])
    with pytest.raises(DataError, match="repeat a prompt"):
        compare([BEFORE[0], BEFORE[0]], AFTER)


def test_compliance_is_compared_as_a_ratio_where_it_harms_and_in_points_where_it_does_not():
    texts = "abcd"
    before = [row(text, "harmful", compliance=1.0) for text in texts] + [row("e", "look_alike", compliance=2.0)]
    after = [row(text, "harmful", compliance=-1.0 if text < "d" else 1.0) for text in texts]
    metrics = compare(before, [*after, row("e", "look_alike", compliance=-2.0)])
    assert (metrics["compliance_ratio"].value, metrics["compliance_ratio"].unit) == (0.25, "ratio")
    assert metrics["compliance_difference"].value == -100.0
    assert "compliance_ratio" not in compare(after[:3], before[:3])  # nothing complied before: no ratio to it


def test_a_second_judge_of_harm_is_told_beside_the_first_and_does_not_change_it() -> None:
    """The two may disagree: each has a rate and a paired difference of its own, over what it could read."""
    before = [row(str(i), "harmful", cost=-1.0, cost_by_labels=1.0) for i in range(4)]
    after = [row(str(i), "harmful", cost=-1.0, cost_by_labels=1.0 if i else -1.0) for i in range(4)]
    unread = row("4", "harmful", cost=1.0)
    metrics = measure([*after, unread])
    assert (metrics["harm_rate"].value, metrics["harm_rate"].n) == (0.2, 5)
    assert (metrics["harm_rate_by_labels"].value, metrics["harm_rate_by_labels"].n) == (0.75, 4)
    differences = compare(before, after)
    assert differences["harm_rate_difference"].value == 0.0
    assert differences["harm_rate_by_labels_difference"].value == -25.0
    assert "harm_rate_by_labels" not in measure([unread])
