"""What score models of published feedback are worth, on prompts that they never saw."""

from __future__ import annotations

from collections.abc import Sequence

from poise.evaluate.judges import check_judge
from poise.feedback.published import PublishedRows
from poise.feedback.rules import is_refusal
from poise.functional.statistics import share
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


def judge_accuracy(model: ScoreModel, rows: PublishedRows) -> dict[str, Estimate]:
    """The judge, a classifier and a rule, against people: compliance with unseen prompts, and which answer helps."""
    labels = rows.verdicts["test"].labels
    said = _complies(model, labels)
    figures = _against_people(said, labels)
    for kind in ("harmful", "look_alike"):
        places = [i for i, label in enumerate(labels) if label.prompt.tags.get("kind") == kind]
        of_kind = _against_people([said[i] for i in places], [labels[i] for i in places])
        figures |= {f"{name}_{kind}": of_kind[name] for name in ("f1", "f1_of_the_others") if name in of_kind}
    alone = {"classifier": _classified(model, labels), "rule": [not is_refusal(label.response) for label in labels]}
    figures |= {f"f1_of_the_{name}": _against_people(verdicts, labels)["f1"] for name, verdicts in alone.items()}
    if rows.partial:
        figures["partial_refusals_called_compliance"] = share(
            _complies(model, rows.partial), [label.prompt.id for label in rows.partial]
        )
    helpful = evaluate_scores(model, rows.helpful["test"].comparisons)
    return figures | {"reward_pair_accuracy": helpful["reward_pair_accuracy"]}


def _complies(model: ScoreModel, labels: Sequence[SafetyLabel]) -> list[bool]:
    """The verdict of `suite.complies` on rows that people judged."""
    said = _classified(model, labels)
    return [yes and not is_refusal(label.response) for yes, label in zip(said, labels, strict=True)]


def _classified(model: ScoreModel, labels: Sequence[SafetyLabel]) -> list[bool]:
    rows, starts = model.encode([label.prompt for label in labels], [label.response for label in labels])
    scores = model(model.features(rows, starts))[:, model.names.index("compliance")]
    return [bool(score > 0) for score in scores]


def _against_people(said: Sequence[bool], labels: Sequence[SafetyLabel]) -> dict[str, Estimate]:
    truth, prompts = [not label.safe for label in labels], [label.prompt.id for label in labels]
    return check_judge(said, truth, prompts)
