"""What is read off the trials: intervals over seeds or prompts, differences in pairs, verdicts and their power."""

import numpy as np
import pytest

from poise.errors import ConfigError
from poise.experiment import Claim, Metric, Study, Trial
from poise.experiment.pages import _claim_cells
from poise.experiment.results import Results, detectable
from poise.files import to_jsonable
from poise.functional.intervals import student_mean
from poise.types import Estimate

GAIN = Metric(name="gain", label="gain")


def results(metrics=(GAIN,), claims=(), **arms):
    seeds = tuple(range(len(next(iter(arms.values())))))
    study = Study(arms=dict.fromkeys(arms), trial=lambda *_: Trial(), metrics=metrics, claims=claims)
    return Results(study=study, seeds=seeds, trials=arms)


def trials(*gains):
    return [Trial(metrics={"gain": gain}, curves={"x": [0.0, 1.0], "y": [gain, 2 * gain]}) for gain in gains]


def claim(**sides):
    return Claim(text="", metric="gain", **sides)


def test_differences_are_paired_by_seed():
    found = results(a=trials(1.0, 3.0), b=trials(0.5, 2.5))
    verdict = found.verdict(claim(higher="a", lower="b"))
    assert (verdict.difference.value, verdict.difference.method) == (0.5, "no interval: nothing varies")
    assert found.estimate("a", GAIN).low < 0 < found.estimate("a", GAIN).high
    line = found.series("a", "x", "y")
    assert (line.x, line.y) == ([0.0, 1.0], [2.0, 4.0])
    assert line.low[0] < 1.0 and line.high[0] > 3.0


def test_a_claim_holds_only_if_its_whole_interval_lies_above_zero_and_can_fail():
    found = results(a=trials(1.0, 1.1), b=trials(0.0, 1.0), c=trials(0.0, 0.2))
    outcomes = {side: found.verdict(claim(higher="a", lower=side)).outcome for side in ("b", "c")}
    assert outcomes == {"b": "not shown", "c": "holds"}
    assert found.verdict(claim(higher="c", lower="a")).outcome == "contradicted"


@pytest.mark.parametrize(("seeds", "outcome"), [(5, "not shown"), (6, "holds")])
def test_a_difference_that_is_the_same_in_every_seed_is_shown_by_its_signs(seeds, outcome):
    found = results(a=trials(*range(1, seeds + 1)), b=trials(*range(seeds)))
    assert found.verdict(claim(higher="a", lower="b")).outcome == outcome


def test_one_seed_shows_nothing():
    verdict = results(a=trials(1.0), b=trials(0.0)).verdict(claim(higher="a", lower="b"))
    assert (verdict.outcome, verdict.detectable) == ("not shown", None)


def test_a_claim_about_what_no_trial_measured_is_listed_and_not_judged():
    wins = Metric(name="wins", label="wins", over="prompts")
    claims = [Claim(text="it wins", metric="wins", higher="a", lower=0.5), claim(higher="a", lower="b")]
    document = results((GAIN, wins), claims, a=trials(1.0, 3.0), b=trials(0.5, 2.5)).document()
    assert (document["untested"], len(document["claims"])) == (["it wins"], 1)


def test_a_claim_may_speak_of_a_number_or_of_another_metric():
    start = Metric(name="start", label="start")
    found = results((GAIN, start), a=[Trial(metrics={"gain": 2.0 + x, "start": 1.0 + x}) for x in (0.0, 0.1)])
    assert found.verdict(claim(higher="a", lower=1.0)).outcome == "holds"
    assert found.verdict(claim(higher=1.0, lower="a")).outcome == "contradicted"
    assert found.verdict(claim(higher="a", lower="a", lower_metric="start")).difference.value == pytest.approx(1.0)


def test_a_claim_that_allows_a_loss_holds_where_less_is_lost_and_shows_how_much_less():
    found = results(a=trials(0.90, 0.92), b=trials(1.0, 1.0))
    outcomes = {least: found.verdict(claim(higher="a", lower="b", least=least)).outcome for least in (-0.5, -0.1, 0.0)}
    assert outcomes == {-0.5: "holds", -0.1: "not shown", 0.0: "not shown"}
    assert found.verdict(claim(higher="a", lower="b", least=0.5)).outcome == "contradicted"
    assert found.verdict(claim(higher="a", lower="b", least=-0.5)).difference.value == pytest.approx(0.41)
    share = Metric(name="gain", label="gain", unit="share")
    points = results((share,), a=trials(0.90, 0.92), b=trials(1.0, 1.0))
    assert points.verdict(claim(higher="a", lower="b", least=-50)).difference.value == pytest.approx(41.0)


def test_prompts_are_resampled_whole_and_compared_in_pairs():
    metric = Metric(name="harm", label="harm", unit="share", over="prompts")
    easy = np.random.default_rng(0).random(40)
    sides = {
        arm: [Trial(by_prompt={"harm": {f"p{i}": float(x + shift) for i, x in enumerate(easy)}}) for _ in range(3)]
        for arm, shift in (("a", 0.02), ("b", 0.0))
    }
    found = results((metric,), **sides)
    estimate = found.estimate("b", metric)
    assert "over 40 prompts" in estimate.method
    assert estimate.high - estimate.low > 0.15  # the three seeds of a prompt are one observation
    verdict = found.verdict(Claim(text="", metric="harm", higher="a", lower="b"))
    assert verdict.difference.value == pytest.approx(2.0)  # percentage points
    assert (verdict.prompts, verdict.seeds) == (40, 3)


def test_a_change_is_the_paired_difference_of_two_metrics_over_the_prompts_of_both():
    metrics = [Metric(name=name, label=name, unit="share", over="prompts") for name in ("harm", "harm_start")]
    change = Metric(name="less", label="", unit="share", over="prompts", change=("harm", "harm_start"))
    before = {f"p{i}": 1.0 for i in range(30)}
    found = results((*metrics, change), a=[Trial(by_prompt={"harm": {**before, "p0": 0.0}, "harm_start": before})])
    found.trials["a"][0].by_prompt["harm"]["alone"] = 0.0  # a prompt of one side says nothing of the change
    estimate = found.estimate("a", change)
    assert (estimate.value, estimate.unit, estimate.n) == (pytest.approx(-100 / 30), "percentage points", 30)
    assert estimate.low < estimate.value < estimate.high
    assert "less" in found.estimates()["a"]
    assert not results((*metrics, change), a=[Trial(by_prompt={"harm": before})]).has("a", "less")
    with pytest.raises(ConfigError, match="less, which the study does not have"):
        results((*metrics, change), [Claim(text="", metric="less", higher="a", lower=0.0)], a=trials(1.0))


HARM = Metric(name="harm", label="harm", over="prompts")


def harms(**rows):
    return [Trial(by_prompt={"harm": rows})]


def test_answers_that_only_one_arm_has_are_left_out_of_a_pair_and_counted():
    sides = {"a": harms(p=1.0, q=0.0, r=1.0, s=[1.0, 0.0]), "b": harms(p=0.5, q=-1.0, t=9.0, s=[9.0])}
    claims = [Claim(text="less", metric="harm", higher="a", lower="b")]
    found = results((HARM,), claims, **sides)
    verdict = found.verdict(claims[0])
    # p and q have a counterpart; r, t and both rows of s, of which b has one, have none
    assert (verdict.difference.value, verdict.prompts, verdict.left_out) == (0.75, 2, 4)
    assert "4 answers left out" in _claim_cells(to_jsonable(verdict))["difference"]
    assert "left out" not in _claim_cells(to_jsonable(verdict) | {"left_out": 0})["difference"]


def test_a_claim_whose_arms_share_no_answer_is_listed_as_untested_and_the_others_stand():
    claims = [
        Claim(text="less", metric="harm", higher="a", lower="b"),
        Claim(text="some", metric="harm", higher="a", lower=0.5),
    ]
    document = results((HARM,), claims, a=harms(p=1.0), b=harms(q=1.0)).document()
    assert (document["untested"], [claim.text for claim in document["claims"]]) == (["less"], ["some"])
    assert document["estimates"].keys() == {"a", "b"}


def test_a_ratio_over_nothing_is_left_out_of_the_table_and_the_others_stand():
    per = Metric(name="harm", label="harm", over="prompts", unit="ratio", per="tried")
    sides = {
        arm: [Trial(by_prompt={"harm": {"p": 1.0}, "tried": {"p": tried}})] for arm, tried in (("a", 0.0), ("b", 2.0))
    }
    claims = [Claim(text="more", metric="harm", higher="a", lower=0.1)]
    document = results((per,), claims, **sides).document()
    assert (list(document["estimates"]["a"]), document["estimates"]["b"]["harm"].value) == ([], 0.5)
    assert document["untested"] == ["more"]


def test_the_detectable_difference_is_shown_in_four_of_five_repetitions():
    n, sd, random = 8, 1.0, np.random.default_rng(0)
    size = np.mean([detectable(student_mean(random.normal(0, sd, n)), n) for _ in range(400)])
    shown = [student_mean(random.normal(size, sd, n)).low > 0 for _ in range(2000)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


def test_a_share_stays_within_its_bounds_and_a_ratio_may_leave_them():
    share, ratio = (Metric(name="gain", label="", unit=unit) for unit in ("share", "ratio"))
    found = results(a=trials(0.9, 1.0))
    assert f"{found.estimate('a', share):bare}".endswith("100.0]")
    assert f"{found.estimate('a', ratio):bare}" == "95.0 % [31.5, 158.5]"


def test_the_worst_seed_stands_for_all_where_a_metric_says_so():
    found = results(a=trials(0.3, 0.1, 0.2))
    worst = found.estimate("a", Metric(name="gain", label="", summary="smallest"))
    assert (worst.value, worst.low, worst.method) == (0.1, None, "smallest of 3 seeds")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arms": {"a b": 1}}, "names a folder"),
        ({"claims": [claim(higher="c", lower="a")]}, "names c"),
        ({"claims": [Claim(text="", metric="loss", higher="a", lower=0.0)]}, "names loss"),
    ],
)
def test_a_study_that_cannot_be_read_off_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Study(**{"arms": {"a": 1}, "trial": lambda *_: Trial(), "metrics": [GAIN], **wrong})


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=0.004, n=5, low=0.002, high=0.006), "0.004 [0.002, 0.006] (n=5)"),
        (Estimate(value=0.004, n=1), "0.0040 (n=1)"),
        (Estimate(value=-0.0004, n=5, low=-0.5, high=0.5), "0.00 [-0.50, 0.50] (n=5)"),
        (Estimate(value=0.9996, n=5, unit="share", low=0.9992, high=1.0), "99.96 % [99.92, 100.00] (n=5)"),
        (Estimate(value=0.0, n=3, low=0.0, high=0.0), "0.00 [0.00, 0.00] (n=3)"),
        (Estimate(value=1234.5, n=2, unit="words", low=1200.0, high=1269.0), "1234.5 words [1200.0, 1269.0] (n=2)"),
        (Estimate(value=1e-12, n=1), "0.000000 (n=1)"),
    ],
)
def test_an_estimate_shows_as_many_digits_as_it_is_worth(estimate, text):
    assert str(estimate) == text
