"""What the recipe `dpo` reports where the data say nothing of kinds or of harm: held-out preferences, and no judge."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from poise.evaluate.report import write_report
from poise.pipeline import TrainedScoreModel
from poise.recipes import _report
from poise.recipes._arms import publish
from poise.recipes._preferences import CURVES, PreferenceSettings, accuracy_rows, held_out_table, pair_summary
from poise.recipes._stages import Study
from poise.run import Run
from poise.types import Estimate

_NO_JUDGE = (
    "No answers were sampled or judged, since the data do not say which prompts are harmful and which responses are "
    "safe: give prompts a column kind and responses a safety (docs/data.md), or add the starter set: --data starter+..."
)
_NOTHING_HELD_OUT = "No feedback was held out: the set is too small, so that nothing was measured."


def report_unjudged(
    run: Run,
    study: Study[PreferenceSettings],
    scorer: TrainedScoreModel | None,
    pairs: Mapping[str, Mapping[str, Estimate]],
    *,
    target: str = "",
) -> dict[str, Any]:
    """Write report.html, report.json, dpo.md and summary.json; the summary is printed as the last line."""
    settings = study.settings
    notes = [
        *(["A smoke test with a tiny random model: the numbers mean nothing."] if settings.quick else []),
        _NO_JUDGE,
        *([] if pairs else [_NOTHING_HELD_OUT]),
        "Drifts are log-ratios to the start model; where both fall, the policy moves to other text.",
    ]
    sizes = {name: len(part.prompts) for name, part in study.splits.items()}
    text = [
        "# Preference optimisation",
        f"{settings.model} on {settings.data}: loss {settings.loss}, criterion {settings.criterion}, {settings.steps} "
        f"steps of {settings.prompts_per_step} prompts, seed {settings.seed}. {sizes['train']} prompts are learned "
        f"from, {sizes['test']} held out. In brackets 95 % intervals over prompts.",
        "## Held-out preferences",
        "Rewards are those that the loss implies; drifts are log-ratios to the start in nats.",
        held_out_table(pairs),
        "\n".join(f"- {note}" for note in notes),
    ]
    publish(run, "\n\n".join(text) + "\n", run.path / "dpo.md", target)
    page = {
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "title": "Preference optimisation",
        "subtitle": f"{settings.model} on {settings.data}, loss {settings.loss}, seed {settings.seed}",
        "curves": _report.curves(run.metrics("policy"), CURVES),
        "learned": accuracy_rows(pairs) + ([] if scorer is None else _report.learned(scorer)),
        "settings": settings.arguments,
        "provenance": {"run": run.path.name, "data": dict(study.splits["train"].provenance)},
        "notes": notes,
    }
    write_report(run.path, page)
    where = {"model": settings.model, "data": settings.data, "seed": settings.seed}
    return run.finish(pair_summary(run, settings, pairs) | where)
