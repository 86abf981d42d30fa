"""Stages side by side: differences to the own start and to the base, collapse, and samples of different prompts."""

from __future__ import annotations

import json

import pytest

from poise.errors import DataError
from poise.evaluate.samples import GROUPS, chosen_samples
from poise.evaluate.stage_text import closing, markdown_table, screen_table
from poise.evaluate.stages import JudgedStage, changes, headline, said_alike, stage_table
from poise.evaluate.suite import SuiteResult, measure
from poise.experiment.safety_page import judge_worth, page_of, smoke_warning
from poise.files import to_jsonable
from poise.pipeline.limits import read_limits
from poise.pipeline.unseen_limits import limit_findings, validation_findings
from poise.types import Completion, Estimate, Evaluation, Prompt, Rollout, Scores

KINDS = ("harmful", "benign", "look_alike")


def answer(number: int, kind: str, text: str, **values: float) -> Rollout:
    prompt = Prompt.of(f"{kind} question {number}?", kind=kind)
    completion = Completion(prompt_id=prompt.id, text=text, sample=0)
    return Rollout(prompt=prompt, completion=completion, scores=Scores(values={"refusal": 0.0, **values}))


def stage(name: str, *, harms: int, refused: int, reward: float, same: int = 0, of_each: int = 40) -> JudgedStage:
    """So many harms and refusals among 40 prompts of each kind, and so many answers of each kind that say the same."""
    rollouts = []
    for kind in KINDS:
        for i in range(of_each):
            values = {"cost": -1.0 + 2.0 * (kind == "harmful" and i < harms), "reward": reward + i / 1000}
            values["refusal"] = float(kind != "harmful" and i < refused)
            text = "No way." if i < same else f"Word {i} of {kind}."
            rollouts.append(answer(i, kind, text, **values))
    evaluation = Evaluation(suite="test", model=name, metrics=measure(rollouts))
    return JudgedStage(
        name=name, label=f"{name} model", result=SuiteResult(evaluation=evaluation, rollouts=tuple(rollouts))
    )


BASE = stage("base", harms=30, refused=0, reward=0.0)
SFT = stage("sft", harms=20, refused=10, reward=-1.0)
FINAL = stage("final", harms=2, refused=10, reward=1.0, same=12)


def test_differences_are_paired_with_the_own_start_and_with_the_base() -> None:
    rows = {row["metric"]: row for row in headline([BASE, SFT, FINAL])}
    harm = rows["harm_rate"]
    assert list(harm["values"]) == ["base", "sft", "final"]
    assert [harm["differences"][name].value for name in ("sft", "base")] == [-45.0, -70.0]
    assert rows["helpful_win_rate"]["values"]["final"].value == 1.0
    assert rows["helpful_win_rate"]["differences"]["base"].value == 50.0
    assert rows["over_refusal/benign"]["differences"]["sft"].value == 0.0
    assert rows["over_refusal/benign"]["differences"]["base"].value == 25.0


def test_a_difference_is_that_of_the_same_prompts_and_samples() -> None:
    """Unpaired, 20 harms of 40 against 20 of 40 is no difference either way; paired, each prompt is its own control."""
    rows = [answer(i, "harmful", f"Answer {i}.", cost=1.0 if i < 20 else -1.0) for i in range(40)]
    better = [answer(i, "harmful", f"Answer {i}.", cost=1.0 if i < 10 else -1.0) for i in reversed(range(40))]
    worse = [answer(i, "harmful", f"Answer {i}.", cost=1.0 if i >= 30 else -1.0) for i in range(40)]
    stages = {}
    for name, rollouts in {"base": rows, "better": better, "worse": worse}.items():
        evaluation = Evaluation(suite="test", model=name, metrics=measure(rollouts))
        result = SuiteResult(evaluation=evaluation, rollouts=tuple(rollouts))
        stages[name] = JudgedStage(name=name, label=name, result=result)
    paired, crossed = (changes([stages["base"], stages[name]])[0].difference for name in ("better", "worse"))
    assert paired.value == crossed.value == -25.0
    assert paired.high < 0 < crossed.high  # ten gained and none lost, against twenty gained and ten lost


def test_the_sentence_speaks_of_the_own_start_unless_it_is_told_another() -> None:
    tones = {change.name: change.tone for change in changes([BASE, SFT, FINAL])}
    assert (tones["harm_rate"], tones["over_refusal/benign"]) == ("better", "no difference")
    assert tones["commonest"] == "worse"
    assert {c.name: c.tone for c in changes([BASE, SFT, FINAL], "base")}["over_refusal/benign"] == "worse"


def test_a_collapse_shows_by_kind_beside_the_stage_before() -> None:
    rows = {(row["kind"], row["stage"]): row for row in said_alike([BASE, FINAL])}
    assert len(rows) == 6
    collapsed, varied = rows["harmful", "final"], rows["harmful", "base"]
    assert (collapsed["text"], collapsed["times"], collapsed["answers"]) == ("No way.", 12, 40)
    assert collapsed["commonest"].value == 0.3 and collapsed["duplicates"].value == 0.3
    assert varied["commonest"].value == 1 / 40 and varied["duplicates"].value == 0.0
    assert collapsed["distinct_2"].value < varied["distinct_2"].value


def test_samples_show_what_is_wrong_first_and_no_prompt_twice() -> None:
    samples = chosen_samples([BASE, SFT, FINAL])
    prompts = [sample["prompt"] for sample in samples]
    assert len(set(prompts)) == len(prompts)
    groups = [sample["group"] for sample in samples]
    assert list(dict.fromkeys(groups)) == [name for name in GROUPS if name in groups]
    counts = {name: groups.count(name) for name in GROUPS}
    assert counts == {"harms": 2, "refused": 6, "losses": 0, "wins": 6, "safe": 6}
    harms = [sample for sample in samples if sample["group"] == "harms"]
    assert all(sample["kind"] == "harmful" and sample["answers"]["final"]["outcome"] == "harm" for sample in harms)
    assert list(samples[0]["answers"]) == ["base", "sft", "final"]


def test_several_answers_to_one_prompt_are_one_sample() -> None:
    prompt = Prompt.of("How?", kind="harmful")
    rows = tuple(
        Rollout(
            prompt=prompt,
            completion=Completion(prompt_id=prompt.id, text=f"Like this {i}.", sample=i),
            scores=Scores(values={"cost": float(i), "refusal": 0.0}),
        )
        for i in range(1, 4)
    )
    result = SuiteResult(evaluation=Evaluation(suite="t", model="m", metrics={}), rollouts=rows)
    both = [JudgedStage(name=name, label=name, result=result) for name in ("start", "final")]
    (only,) = chosen_samples(both)
    assert only["answers"]["final"]["cost"] == 3.0  # the worst of them


def test_the_short_table_has_a_row_for_each_stage_on_screen_and_in_markdown() -> None:
    table = stage_table([BASE, SFT, FINAL]) | {"judge": {"auc": Estimate(value=0.9, n=80, unit="share")}}
    wins = [row["values"]["helpful_win_rate"] for row in table["rows"]]
    assert wins[0] is None and [rate.value for rate in wins[1:]] == [0.0, 1.0]  # each against the stage before
    lines = screen_table(table).splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["base model", "sft model", "final model"]
    assert "75.0 % [" in lines[-3] and len(set(map(len, lines[-3:]))) < 4
    assert markdown_table(json.loads(json.dumps(to_jsonable(table)))).count("\n| ") == 4
    text = closing({"verdict": "Better.", "stages": table})
    assert text.startswith("Better.") and "auc 90.0 % (n=80)" in text


def test_stages_need_names_of_their_own() -> None:
    with pytest.raises(DataError, match="each with a name of its own"):
        headline([BASE, BASE])
    assert headline([BASE])[0]["differences"] == {}


def test_a_smoke_test_says_why_it_is_one() -> None:
    rollouts = FINAL.rollouts
    assert smoke_warning({"quick": True, "model": "smollm2-135m"}, rollouts).startswith("A smoke test (--quick)")
    assert "random weights" in smoke_warning({"model": "random:llama?layers=3"}, rollouts)
    assert smoke_warning({"model": "smollm2-135m", "quick": False}, rollouts) == ""
    few = [r for r in rollouts if r.prompt.tags["kind"] != "harmful"] + list(rollouts[:29])
    assert "only 29 harmful prompts were asked" in smoke_warning({"model": "smollm2-135m"}, few)
    assert "0 harmful and 0 harmless prompts" in smoke_warning({"model": "smollm2-135m"}, ())


def test_the_sentence_is_about_test_prompts_and_the_page_about_validation_prompts_too() -> None:
    """Validation prompts chose the policy, so that a limit that is met there proves less."""
    limits = read_limits("refusal@harmless <= 0.05")
    share = {"value": 0.01, "n": 40, "unit": "share", "low": 0.0, "high": 0.04}
    check = {"limits": [{"limit": limits[0].limit().name, "value": share}, {"limit": "other", "value": None}]}
    chosen = validation_findings(limits, check)
    broken = limit_findings(limits, {f"limit/{limits[0].limit().name}": Estimate(value=0.3, n=40, low=0.2, high=0.4)})
    assert [(each.prompts, each.outcome) for each in [*chosen, *broken]] == [("validation", "met"), ("test", "not met")]
    verdict = page_of("Title", [BASE, FINAL], limits=[*chosen, *broken])["verdict"]
    assert verdict["text"].startswith("The limit was not met on unseen test prompts")
    assert [each["outcome"] for each in verdict["limits"]] == ["met", "not met"]
    alone = page_of("Title", [BASE, FINAL], limits=chosen)["verdict"]
    assert alone["text"].startswith("The limit was met on unseen validation prompts")
    assert validation_findings(limits, None) == []


def test_the_judge_is_shown_by_peoples_ratings_where_it_has_any() -> None:
    half = Estimate(value=0.5, n=9, unit="share")
    accuracy = {"cost_sign_accuracy": half, "harm_auc": half, "harm_auc_of_length": half}
    assert [label.split(" ")[0] for label in judge_worth(accuracy)] == ["AUC", "for", "the"]
    assert "not people's ratings" in next(iter(judge_worth({"cost_sign_accuracy": half})))
    assert judge_worth({}) == {}
    page = page_of("Title", [BASE, FINAL], judge=accuracy)
    assert page["judge"]["metrics"][0]["label"] == "harm auc"
    assert page["table"]["judge"] == judge_worth(accuracy)
