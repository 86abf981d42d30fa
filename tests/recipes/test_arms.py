"""What the recipes on language models share: differences in pairs, verdicts, and arms that are not run again."""

import pytest

from poise.recipes import _arms as arms
from poise.recipes._arms import Claim, Column, Outcome, Results
from poise.run import Run
from poise.types import Estimate


def outcome(**figures):
    return Outcome(figures=figures, curves={"x": [0.0, 1.0], "y": [figures["gain"], 2 * figures["gain"]]})


RESULTS = Results(outcomes={"a": [outcome(gain=1.0), outcome(gain=3.0)], "b": [outcome(gain=0.5), outcome(gain=2.5)]})


def test_differences_are_paired_by_seed():
    assert (RESULTS.arms, RESULTS.seeds) == (("a", "b"), 2)
    difference = RESULTS.difference("a", "b", "gain")
    assert (difference.value, difference.low) == (0.5, None)  # the seeds differ by 2, alike
    assert RESULTS.estimate("a", "gain").low < 0 < RESULTS.estimate("a", "gain").high
    line = RESULTS.series("a", "x", "y")
    assert (line.x, line.y) == ([0.0, 1.0], [2.0, 4.0])
    assert line.low[0] < 1.0
    assert line.high[0] > 3.0


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.9, "holds"), (-0.1, 0.9, "not shown"), (-0.9, -0.1, "contradicted")]
)
def test_a_claim_holds_only_if_its_whole_interval_lies_above_zero(low, high, verdict):
    assert Claim(text="", difference=Estimate(value=0.5, n=5, low=low, high=high)).verdict == verdict


def test_one_seed_shows_nothing():
    assert Claim(text="", difference=Estimate(value=0.5, n=1)).verdict == "not shown"


def test_shares_are_shown_in_per_cent_and_within_their_bounds():
    column = Column(figure="", label="", is_share=True)
    assert column.text(Estimate(value=0.5, n=2, low=-0.25, high=1.25)) == "50.0 % [0.0, 100.0]"
    assert Column(figure="", label="", digits=1).text(Estimate(value=-0.0, n=1)) == "0.0"


def plain_attempt(arm, seed, *, factor):
    return Outcome(figures={"gain": factor * seed})


def test_arms_that_are_finished_are_not_run_again(tmp_path):
    def forbidden(arm, seed, *, factor):
        raise AssertionError("run again")

    with Run.open(tmp_path / "run", recipe="arms", arguments={}) as run:
        first = arms.measure(run, plain_attempt, ["a", "b"], seeds=3, workers=1, factor=2.0)
    with Run.open(tmp_path / "run", recipe="arms", arguments={}) as run:
        again = arms.measure(run, forbidden, ["a", "b"], seeds=3, workers=1, factor=2.0)
    assert again.values("b", "gain").tolist() == first.values("b", "gain").tolist() == [0.0, 2.0, 4.0]
