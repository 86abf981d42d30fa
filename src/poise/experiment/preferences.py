"""What studies of preference losses report: held-out preferences, and what a judge says where the data allow one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from poise.evaluate.report import write_report
from poise.evaluate.suite import SuiteResult
from poise.experiment.results import Results
from poise.experiment.safety import METRICS as SAFETY
from poise.experiment.safety import STARTS, Verdicts, curves, learned, safety_report, safety_trial
from poise.experiment.study import Metric, Trial
from poise.files import read_json
from poise.functional.intervals import mean
from poise.models.runs import MODEL_FOLDER
from poise.pipeline import TrainedScoreModel
from poise.pipeline.preferences import PromptValues
from poise.pipeline.safety import Material
from poise.run import Run
from poise.types import Estimate

FIGURES = {"reward_accuracy": "share", "reward_margin": "", "chosen_drift": "nats", "rejected_drift": "nats"}
METRICS = (
    *(
        Metric(name=name, label=f"{name.replace('_', ' ')}, held out", unit=unit, over="prompts")
        for name, unit in FIGURES.items()
    ),
    *(
        Metric(name=f"reward_accuracy_{name}", label=f"reward accuracy, {name} alone", unit="share", over="prompts")
        for name in ("helpful", "safe")
    ),
    *(
        each if each.table else replace(each, table="By the held-out judge, before and after")
        for each in (*STARTS, *SAFETY)
    ),
)
CURVES = (
    *("step", "loss", "reward_accuracy", "reward_margin", "chosen_drift", "rejected_drift", "chosen_logprob"),
    *("rejected_logprob", "multiplier", "mean_cost", "baseline"),
)
DRIFTS = "Drifts are log-ratios to the start model; if both fall, the policy moves to other text."
NO_JUDGE = (
    "No answers were sampled or judged, because the data do not say which prompts are harmful and which responses are "
    "safe: give prompts a column kind and responses a safety (docs/data.md), or add the starter set: --data starter+..."
)
NOTHING_HELD_OUT = "No feedback was held out, because the set is too small; nothing was measured."
SMOKE_TEST = "A smoke test with a tiny random model: the numbers mean nothing."


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of one loss: held-out preferences by criterion, and answers where there is a judge.

    held_out  criterion -> values by prompt; the first is what was learned from
    """

    material: Material
    held_out: Mapping[str, PromptValues]
    signal: TrainedScoreModel | None = None
    start: SuiteResult | None = None
    final: SuiteResult | None = None


def preference_trial(part: Run, found: Found, *, stage: str = "policy") -> Trial:
    """A trial's figures by prompt, after its page has been written into its part of the run as report.html."""
    trained, held_out = curves(part.metrics(stage), CURVES), found.held_out
    notes = [DRIFTS, *([] if held_out else [NOTHING_HELD_OUT])]
    accuracies = [
        {"label": f"Reward accuracy, held-out {name} pairs", "value": pooled(rows["reward_accuracy"], "share")}
        for name, rows in held_out.items()
        if "reward_accuracy" in rows
    ]
    about: dict[str, Any] = {"curves": trained, "learned": accuracies, "settings": part.arguments}
    title = "Preference optimisation"
    if found.start and found.final:
        judge, notes = found.material.judge, [*notes, *found.material.left_out]
        verdicts = Verdicts(
            start=found.start, final=found.final, judge=judge, signal=found.signal, notes=notes, **about
        )
        trial = safety_trial(part, title, verdicts)
    else:
        about["learned"] = [*accuracies, *(learned(found.signal) if found.signal else [])]
        page = {"title": title, "subtitle": part.path.name, "notes": [NO_JUDGE, *notes], **about}
        provenance = {"run": part.path.parent.name, "data": dict(found.material.train.provenance)}
        made = datetime.now(UTC).isoformat(timespec="minutes")
        write_report(part.path, {"created": made, "provenance": provenance, **page})
        trial = Trial(paths={"report": f"{part.path.name}/report.html"})
    last = trained[-1] if trained else {}
    trends = {
        f"trained_{name}": last[name] for name in ("chosen_drift", "rejected_drift", "multiplier") if name in last
    }
    return replace(
        trial,
        by_prompt={**trial.by_prompt, **_rows(held_out)},
        metrics={**trial.metrics, **trends},
        paths={**trial.paths, "model": f"{part.path.name}/{stage}/model"},
    )


def preference_report(run: Run, results: Results, *, criterion: str, **facts: Any) -> dict[str, Any]:
    """Write report.html, the page of the first loss beside all that were trained, and return the summary."""
    arm = next(iter(results.trials))
    first = results.trials[arm][0]
    page = read_json(run.path / f"{arm}-seed-{results.seeds[0]}" / "report.json")
    judged: Mapping[str, Any] = {}
    if "headline" in page:
        judged = safety_report(run, results, main=arm)
    else:
        smoke = [SMOKE_TEST] if run.arguments.get("quick") else []
        write_report(run.path, page | {"notes": [*smoke, *page["notes"]]})
    there = {metric.name: metric for metric in METRICS if metric.over == "prompts" and results.has(arm, metric.name)}
    measured = {
        (name if name.startswith("reward_accuracy") else f"held_out_{name}"): results.estimate(arm, metric)
        for name, metric in there.items()
        if name in FIGURES or name.startswith("reward_accuracy")
    }
    trained = {name: value for name, value in first.metrics.items() if name.removeprefix("trained_") in CURVES}
    about = {"loss": arm, "criterion": criterion, "seed": results.seeds[0], MODEL_FOLDER: first.paths["model"]}
    return {**about, **measured, **trained, **judged, **facts}


def pooled(rows: Mapping[str, Sequence[float]], unit: str) -> Estimate:
    """The mean of the values of all prompts, whose interval is over prompts."""
    values = [(value, prompt) for prompt, found in rows.items() for value in found]
    return mean([value for value, _ in values], [prompt for _, prompt in values], unit=unit)


def _rows(held_out: Mapping[str, PromptValues]) -> dict[str, Mapping[str, Sequence[float]]]:
    """The figures of what was learned from, and the accuracy of each criterion alone."""
    main = next(iter(held_out.values()), {})
    rows: dict[str, Mapping[str, Sequence[float]]] = {name: main[name] for name in FIGURES if name in main}
    for name in ("helpful", "safe"):
        if found := held_out.get(name, {}).get("reward_accuracy"):
            rows[f"reward_accuracy_{name}"] = found
    return rows
