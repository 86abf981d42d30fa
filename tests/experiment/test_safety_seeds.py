"""The sentence over all seeds: answers are pooled, and a limit is that of its worst seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from poise.data.rollouts import write_rollouts
from poise.evaluate.stages import JudgedStage
from poise.evaluate.suite import SuiteResult, measure
from poise.evaluate.verdict import LimitFinding
from poise.experiment.safety_page import page_of
from poise.experiment.safety_seeds import answers_of, over_seeds_of, told_of
from poise.experiment.study import Trial
from poise.files import to_jsonable
from poise.types import Completion, Estimate, Evaluation, Prompt, Rollout, Scores

HARMS = {0: (20, 10), 1: (20, 0)}  # seed -> harms of 40 before and after
COSTS = {0: -0.7, 1: -0.4}


def stage(name: str, harms: int, folder: Path) -> JudgedStage:
    rows = []
    for i in range(40):
        prompt = Prompt.of(f"Question {i}?", kind="harmful")
        completion = Completion(prompt_id=prompt.id, text=f"Answer {i}.", sample=0)
        scores = Scores(values={"cost": 1.0 if i < harms else -1.0, "refusal": 0.0})
        rows.append(Rollout(prompt=prompt, completion=completion, scores=scores))
    path = folder / name / "rollouts.jsonl"
    path.parent.mkdir(parents=True)
    write_rollouts(path, rows)
    evaluation = Evaluation(suite="test", model=name, metrics=measure(rows), rollouts_path=str(path))
    return JudgedStage(
        name=name, label=f"{name} model", result=SuiteResult(evaluation=evaluation, rollouts=tuple(rows))
    )


def made(folder: Path) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A run of two seeds as its parts leave it."""
    trials = []
    for seed, (before, after) in HARMS.items():
        part = folder / f"arm-seed-{seed}"
        stages = [stage("start", before, part), stage("final", after, part)]
        value = COSTS[seed]
        found = Estimate(value=value, n=40, low=value - 0.05, high=value + 0.05)
        limit = LimitFinding(text="-0.5", label="mean cost", at_most=-0.5, target=-0.6, found=found)
        page = page_of("Title", stages, limits=[limit])
        (part / "report.json").write_text(json.dumps(to_jsonable(page)))
        trials.append(Trial(paths=answers_of(folder, stages)))
    return SimpleNamespace(path=folder), SimpleNamespace(seeds=(0, 1), trials={"arm": trials})


def test_the_sentence_speaks_of_the_answers_of_all_seeds_and_of_the_worst_limit(tmp_path: Path) -> None:
    run, results = made(tmp_path)
    told = over_seeds_of(run, results, "arm")
    values = [row["values"]["harm_rate"] for row in told["table"]["rows"]]
    assert [(value.value, value.n) for value in values] == [(0.5, 80), (0.125, 80)]
    text = told["verdict"]["text"]
    assert text.startswith("The limit was not met on unseen test prompts (mean cost (worst of 2 seeds) -0.40")
    assert "harmful answers 50.0 → 12.5 %" in text


def test_one_seed_has_its_page_for_that(tmp_path: Path) -> None:
    run, results = made(tmp_path)
    assert over_seeds_of(run, SimpleNamespace(**vars(results) | {"seeds": (0,)}), "arm") == {}
    page = json.loads((tmp_path / "arm-seed-0" / "report.json").read_text())
    assert "The limit was met" in told_of(page)["verdict"]
    assert told_of(page | {"banner": "Smoke."})["warning"] == "Smoke."


def test_where_answers_are_is_said_from_the_runs_folder(tmp_path: Path) -> None:
    _, results = made(tmp_path)
    assert results.trials["arm"][1].paths["answers of final"] == "arm-seed-1/final/rollouts.jsonl"
    none = JudgedStage(name="x", label="x", result=SuiteResult(
        evaluation=replace(Evaluation(suite="t", model="m", metrics={})), rollouts=()))  # fmt: skip
    assert answers_of(tmp_path, [none]) == {}
