"""Rates that a judge gives stand beside what the judge is worth, and are not printed where that is too little."""

from __future__ import annotations

import pytest

from poise.errors import ConfigError
from poise.estimates import Estimate, JudgedRate
from poise.experiment.pages import _tables
from poise.experiment.results import Results
from poise.experiment.study import Claim, Metric, Study, Trial
from poise.files import to_jsonable

RATE = Estimate(value=0.55, n=240, unit="share", low=0.49, high=0.61)


def right(low: float | None, high: float | None = 0.9) -> Estimate:
    return Estimate(value=0.65, n=400, unit="share", low=low, high=high)


@pytest.mark.parametrize(
    ("worth", "is_measurable"),
    [
        (right(0.62), True),
        (right(0.601), True),
        (right(0.60), False),
        (right(0.56), False),
        (right(0.45, 0.57), False),
        (right(None, None), False),
        (None, False),
    ],
    ids=["above", "just above", "at 60 %", "includes 60 %", "below", "no interval", "not known"],
)
def test_a_rate_is_printed_only_where_the_whole_interval_of_its_judge_is_above_60_per_cent(
    worth: Estimate | None, is_measurable: bool
) -> None:
    rate = JudgedRate(rate=RATE, right=worth)
    assert rate.is_measurable == is_measurable
    for text in (str(rate), f"{rate:bare}"):
        assert ("55.0" in text) == is_measurable
        assert ("not measurable" in text) != is_measurable
        assert ("of unseen pairs" if worth else "not known") in text


def results(worth: Estimate | None) -> Results:
    study = Study(
        arms={"mine": None}, trial=lambda *_: Trial(),
        metrics=[Metric(name="wins", label="wins", unit="share", over="prompts", judged_by="judge"),
                 Metric(name="judge", label="judge", unit="share", over="facts", table="worth")],
        claims=[Claim(text="it wins", metric="wins", higher="mine", lower=0.5, source="ours")],
    )  # fmt: skip
    facts = {} if worth is None else {"judge": worth}
    found = Trial(by_prompt={"wins": {str(i): 1.0 for i in range(40)}}, facts=facts)
    return Results(study=study, seeds=(0,), trials={"mine": [found]})


@pytest.mark.parametrize(
    ("worth", "outcome", "cell"),
    [
        (right(0.62), "holds", "100.0 % [91.2, 100.0] (judge right on 65.0 % [62.0, 90.0] of unseen pairs)"),
        (right(0.55), "not measurable", "not measurable (judge right on 65.0 % [55.0, 90.0] of unseen pairs)"),
        (None, "not measurable", "not measurable (judge is not known on unseen pairs)"),
    ],
)
def test_pages_and_claims_follow_the_judge(worth: Estimate | None, outcome: str, cell: str) -> None:
    found = results(worth)
    assert found.verdict(found.study.claims[0]).outcome == outcome
    document = to_jsonable(found.document())
    first = next(iter(_tables(document)))
    assert first["rows"] == [("mine", [cell])]


def test_a_judge_that_the_study_does_not_measure_is_an_error() -> None:
    metrics = [Metric(name="wins", label="wins", unit="share", over="prompts", judged_by="juge")]
    with pytest.raises(ConfigError, match="wins is judged by 'juge', which is no fact of the study"):
        Study(arms={"mine": None}, trial=lambda *_: Trial(), metrics=metrics)
