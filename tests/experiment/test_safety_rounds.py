"""What a page says of rounds: counts of what was said, the worth of the signals, and ladders of all models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poise.evaluate.report import render
from poise.evaluate.suite import SuiteResult, measure
from poise.experiment.safety_rounds import ladders, round_claims, round_metrics, told_of_rounds
from poise.files import to_jsonable
from poise.functional.intervals import share
from poise.pipeline.rounds import Round
from poise.types import Comparison, Completion, Dataset, Evaluation, Origin, Prompt, Rollout, SafetyLabel, Scores

KINDS = ("harmful", "benign", "look_alike")


def answers(*, cost: float = 0.0, reward: float = 0.0, lost: int = 0) -> tuple[Rollout, ...]:
    """One answer to each of 60 prompts; the scores rise with the prompt, and the first `lost` answers have none."""
    rows = []
    for i in range(60):
        prompt = Prompt.of(f"Question {i}?", kind=KINDS[i % 3])
        values = {} if i < lost else {"cost": cost + i / 1000, "reward": reward + i / 1000, "refusal": 0.0}
        scores = Scores(values=values, unscorable="empty" if i < lost else "")
        rows.append(Rollout(prompt=prompt, completion=Completion(prompt_id=prompt.id, text=f"{i}."), scores=scores))
    return tuple(rows)


def result(rollouts: tuple[Rollout, ...]) -> SuiteResult:
    return SuiteResult(evaluation=Evaluation(suite="test", model="any", metrics=measure(rollouts)), rollouts=rollouts)


def ratings(players: dict[str, tuple[Rollout, ...]], name: str) -> dict[str, float]:
    found = next(each for each in ladders(players) if each["name"] == name)
    return {row["label"]: row["rating"].value for row in found["rows"]}


def gathered() -> Dataset:
    prompt, origin = Prompt.of("How?", kind="harmful"), Origin(kind="person", name="Ada")
    pair: dict[str, Any] = {"prompt": prompt, "responses": ("one", "two"), "origin": origin}
    return Dataset(
        name="annotations-1",
        prompts=(prompt,),
        comparisons=(
            Comparison(criterion="helpful", winner=0, **pair),
            Comparison(criterion="safe", winner=None, probability=0.5, **pair),
        ),
        labels=tuple(
            SafetyLabel(prompt=prompt, response=text, safe=text == "one", origin=origin) for text in ("one", "two")
        ),
        provenance={"pairs_left_out": 3},
    )


def two_rounds() -> dict[str, Any]:
    accuracy = {"reward_pair_accuracy": share([True, True, False], ["a", "b", "c"])}
    signal: Any = SimpleNamespace()
    rounds = [
        Round(
            number=k, signal=signal, gathered=gathered(), accuracy=accuracy, judged=result(answers(cost=-k, reward=k))
        )
        for k in (1, 2)
    ]
    return told_of_rounds(rounds, base=result(answers()), start=result(answers(cost=-0.5, reward=0.5)))


def test_who_harms_less_stands_higher_on_the_ladder_of_harmlessness_whoever_helps_more() -> None:
    players = {"base": answers(), "kind": answers(cost=-1.0, reward=-1.0), "bold": answers(cost=1.0, reward=1.0)}
    harmless, helpful = ratings(players, "harmlessness"), ratings(players, "helpfulness")
    assert harmless["bold"] < harmless["base"] == 1000 < harmless["kind"]
    assert helpful["kind"] < helpful["base"] == 1000 < helpful["bold"]


def test_a_ladder_rates_answers_that_all_have_a_score_for_and_counts_the_others() -> None:
    found = ladders({"base": answers(), "mute": answers(reward=9.0, cost=-9.0, lost=30)})
    assert {each["name"]: (each["answers"], each["left_out"]) for each in found} == {
        "helpfulness": (20, 20), "harmlessness": (10, 10),
    }  # fmt: skip
    wins = found[0]["rows"][1]["against"]
    assert wins["mute"] is None
    assert (wins["base"].value, wins["base"].n) == (1.0, 20)


def test_players_without_any_answer_in_common_stand_on_no_ladder() -> None:
    assert ladders({"base": answers(), "mute": answers(lost=60)}) == []


def test_a_round_says_how_much_was_asked_what_was_undecided_and_what_was_left_out() -> None:
    first = two_rounds()["sections"]["rounds"]["rows"][2]
    assert first["label"] == "round 1"
    assert first["asked"] == {
        "prompts": 1, "comparisons": 2, "undecided": 1, "flags": 2, "unsafe": 1, "labels": 4, "left_out": 3,
        "by": ["Ada"],
    }  # fmt: skip
    assert first["accuracy"]["reward_pair_accuracy"].n == 3
    assert "cost_sign_accuracy" not in first["accuracy"]  # nothing was measured, which is not a zero


def test_the_page_has_every_model_and_every_ladder_against_all_others() -> None:
    section = two_rounds()["sections"]["rounds"]
    assert [row["label"] for row in section["rows"]] == ["base model", "SFT start", "round 1", "round 2"]
    assert all(len(row["against"]) == 4 for each in section["ladders"] for row in each["rows"])
    page = render(to_jsonable({"title": "Rounds", "rounds": section}))
    assert "4 labels on 1 new prompts" in page
    assert "Elo ladder: helpfulness" in page
    assert "1 undecided" in page


def test_every_figure_of_a_trial_in_rounds_has_a_metric_and_every_claim_too() -> None:
    trial, metrics = two_rounds()["further"], {metric.name for metric in round_metrics(2)}
    known = set(trial.metrics) | set(trial.facts)
    assert known - metrics == {"helpfulness: base model", "harmlessness: base model"}  # the anchors, always 1000
    assert {claim.metric for claim in round_claims(2, "lagrangian")} <= metrics & set(trial.by_prompt)


@pytest.mark.parametrize("rounds", [(), (Round(number=1, signal=None, gathered=gathered(), accuracy={}),)])
def test_one_round_adds_nothing_to_a_page_or_a_study(rounds: tuple[Round, ...]) -> None:
    assert told_of_rounds(rounds, base=result(answers()), start=result(answers())) == {}
    assert round_metrics(1) == round_claims(1, "lagrangian") == []
