"""What is said of a judged policy beyond its page: whether answers collapsed, and the sentence over all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from poise.data.rollouts import read_rollouts
from poise.evaluate.seeds import pool
from poise.evaluate.stages import KL, SAID, JudgedStage, stage_table
from poise.evaluate.suite import KINDS, SuiteResult, measure
from poise.evaluate.verdict import LimitFinding
from poise.experiment.results import Results
from poise.experiment.safety_page import verdict_of
from poise.experiment.study import Metric
from poise.files import read_json
from poise.run import Run
from poise.types import Estimate, Evaluation

_ALIKE = "Do answers say the same?"
_LABELS = {
    "commonest": ("answers that say the commonest", "share"),
    "duplicates": ("answers equal to another prompt's", "share"),
    "distinct_2": ("distinct pairs of words", "share"),
    "response_length": ("length", ""),
}
ALIKE = tuple(
    Metric(name=f"{name}{side}", label=f"{label} {when}", unit=unit, table=_ALIKE)
    for name, (label, unit) in _LABELS.items()
    for side, when in (("_start", "before"), ("", "after"))
)
_ANSWERS = "answers of "  # before the name of a stage, among the paths of a trial


def alike(stages: Sequence[JudgedStage]) -> dict[str, float]:
    """Metrics of a trial that show a collapse: of the policy and its own start, over all prompts and by kind."""
    sides = {"": stages[-1], "_start": stages[max(0, len(stages) - 2)]}
    found = {}
    for side, stage in sides.items():
        for name in (each for said in SAID for each in (said, *(f"{said}/{kind}" for kind in KINDS))):
            if (value := stage.result.evaluation.metrics.get(name)) is not None:
                found[f"{name}{side}"] = value.value
    return found


def answers_of(run: Path, stages: Sequence[JudgedStage]) -> dict[str, str]:
    """Where the judged answers of each stage are, seen from the run's folder."""
    kept = {stage.name: stage.result.evaluation.rollouts_path for stage in stages}
    return {
        f"{_ANSWERS}{name}": str(Path(path).resolve().relative_to(run.resolve())) for name, path in kept.items() if path
    }


def told_of(page: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary, the results and the screen say first: the sentence, and the table of stages."""
    verdict = page["verdict"]
    told = {"verdict": verdict.get("text"), "verdict_against_first": verdict.get("against_first")}
    banner = {"warning": page["banner"]} if page.get("banner") else {}
    return {name: text for name, text in told.items() if text} | banner | {
        "limits_on_unseen_prompts": verdict["limits"], "stages": page["table"]
    }  # fmt: skip


def over_seeds_of(run: Run, results: Results, arm: str) -> dict[str, Any]:
    """The sentence and the table of stages over the answers of all seeds; nothing for one seed, whose page has them.

    A limit is reported of the seed that came closest to breaking it, or broke it most.
    """
    if len(results.seeds) == 1:
        return {}
    pages = [read_json(run.path / f"{arm}-seed-{seed}" / "report.json") for seed in results.seeds]
    stages = [_pooled(run, results, arm, stage, pages) for stage in pages[0]["stages"]]
    table = stage_table(stages)
    if "judge" in pages[0]["table"]:
        table["judge"] = pages[0]["table"]["judge"]
    return {"verdict": verdict_of(stages, _worst_limits(pages)), "table": table, "seeds": list(results.seeds)}


def _pooled(
    run: Run, results: Results, arm: str, stage: Mapping[str, str], pages: Sequence[Mapping[str, Any]]
) -> JudgedStage:
    name = stage["name"]
    answers = pool([read_rollouts(run.path / trial.paths[_ANSWERS + name]) for trial in results.trials[arm]])
    metrics = measure(answers)
    rows = [row for page in pages for row in page["table"]["rows"] if row["name"] == name]
    if all(row["values"].get(KL) for row in rows):
        each = [Estimate(**row["values"][KL]) for row in rows]
        value, n = fmean(found.value for found in each), sum(found.n for found in each)
        metrics[KL] = replace(each[0], value=value, n=n, low=None, high=None, method="mean over seeds")
    evaluation = Evaluation(suite="test", model=name, metrics=metrics)
    return JudgedStage(name=name, label=stage["label"], result=SuiteResult(evaluation=evaluation, rollouts=answers))


def _worst_limits(pages: Sequence[Mapping[str, Any]]) -> list[LimitFinding]:
    found = []
    for same in zip(*(page["verdict"]["limits"] for page in pages), strict=True):
        worst = max(same, key=lambda limit: limit["found"]["value"])
        about = {name: value for name, value in worst.items() if name not in ("outcome", "found")}
        about["label"] = f"{about['label']} (worst of {len(pages)} seeds)"
        found.append(LimitFinding(**about, found=Estimate(**worst["found"])))
    return found
