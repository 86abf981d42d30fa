"""What score models of published feedback are worth, on prompts that they never saw."""

from __future__ import annotations

from collections.abc import Sequence

from poise.feedback.published import PublishedRows
from poise.models.heads import ScoreModel
from poise.train.score_model import evaluate_scores
from poise.types import Comparison, Estimate, SafetyLabel


def signal_accuracy(model: ScoreModel, rows: PublishedRows) -> dict[str, Estimate]:
    """Accuracy of the training signal on test prompts: all, and by what is harder or matters more."""
    labels = rows.cost["test"].labels
    figures = evaluate_scores(model, rows.helpful["test"].comparisons, labels)
    look_alikes = evaluate_scores(model, rows.look_alikes["test"].comparisons)
    parts = {"look_alike_pair_accuracy": look_alikes.get("reward_pair_accuracy")} | {
        f"cost_sign_accuracy_on_{name}": _sign_accuracy(model, part)
        for name, part in {
            "unsafe_answers": [label for label in labels if not label.safe],
            "safe_answers": [label for label in labels if label.safe],
            "harmful_prompts_judged_by_people": [
                label for label in labels if label.origin.kind == "human" and label.prompt.tags["kind"] == "harmful"
            ],
        }.items()
    }
    return figures | {name: value for name, value in parts.items() if value is not None}


def noisy_accuracy(model: ScoreModel, rows: PublishedRows) -> dict[str, Estimate]:
    """Accuracy on the published pairs and flags of test prompts, together and by source."""
    test = rows.noisy["test"]
    figures = evaluate_scores(model, test.comparisons, test.labels)
    by_source: dict[str, list[Comparison]] = {}
    for row in test.comparisons:
        by_source.setdefault(row.origin.name, []).append(row)
    for name, part in by_source.items() if len(by_source) > 1 else ():
        figures[f"cost_pair_accuracy_{name}"] = evaluate_scores(model, part)["cost_pair_accuracy"]
    return figures


def _sign_accuracy(model: ScoreModel, labels: Sequence[SafetyLabel]) -> Estimate | None:
    return evaluate_scores(model, (), labels)["cost_sign_accuracy"] if labels else None


def helpfulness_accuracy(model: ScoreModel, rows: PublishedRows) -> dict[str, Estimate]:
    """How often the judge of help orders a pair of unseen prompts as people did: what its win rates are worth."""
    found = evaluate_scores(model, rows.helpful["test"].comparisons)
    return {"reward_pair_accuracy": found["reward_pair_accuracy"]}
