"""Score models of a recipe: what they learn from, how they read, and how good they are on prompts never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from poise.data import merge, split_by_prompt
from poise.data.batching import num_steps
from poise.functional.statistics import bootstrap_mean
from poise.models.heads import COST, REWARD, Channel, ScoreModel, load_score_model
from poise.recipes._data import may_harm, with_cut_responses, without_splits
from poise.run import Run
from poise.train.loop import fit
from poise.train.score_model import FeedbackTable, ScoreTrainer, calibrate, evaluate_scores
from poise.types import Dataset, Estimate, Rollout

if TYPE_CHECKING:
    from poise.recipes._stages import Study


COST_BOUND = (
    1.0  # spreads: to be flatter than clearly safe gains nothing, so that a refusal is not better than an answer
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A score model with its accuracy on prompts that it never saw."""

    model: ScoreModel
    accuracy: Mapping[str, Estimate]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a score model learns from, how it reads, and how it is measured."""

    data: Dataset
    measure: Callable[[ScoreModel], Mapping[str, Estimate]]  # on prompts that are not in `data`
    depth: float  # share of the layers
    seed: int
    channels: tuple[Channel, ...] = (REWARD, COST)
    epochs: float = 40
    weight_decay: float = 1.0
    reading: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the score model


def learn_scores(run: Run, study: Study[Any], name: str, *, split: str) -> Learned:
    """Train reward and cost heads on one split and measure them on the test prompts.

    The judge reads deeper layers, other rows and another seed than the training signal.
    """
    is_judge = split == "judge"
    data = merge([study.splits[split], *([] if is_judge else study.gathered)], name=split)
    lesson = Lesson(
        data=data if is_judge else with_cut_responses(data),
        measure=lambda model: _accuracy(model, study.splits["test"]),
        depth=0.7 if is_judge else 0.5,
        channels=(REWARD, COST if is_judge else replace(COST, bound=COST_BOUND)),
        seed=study.settings.seed + (1000 if is_judge else 0),
        reading={} if is_judge else {"pooling": "mean+last+prompt"},
    )
    return learn(run, study, name, lesson)


def learn(run: Run, study: Study[Any], name: str, lesson: Lesson) -> Learned:
    """Train heads on five sixths of the prompts, calibrate on the others, measure."""
    stage = study.stage(run, name)
    if not stage.finished:
        model = score_model(study, lesson, adapter=stage.name)
        # another seed than the split itself was drawn with: by the same one all its prompts would fall on one side
        shares = {"fit": 5 / 6, "calibrate": 1 / 6}
        parts = split_by_prompt(without_splits(lesson.data), shares, seed=lesson.seed + 500)
        trainer = score_trainer(study, model, lesson, parts["fit"])
        fit(trainer, run=run, stage=stage.name, steps=trainer.steps, save_every=50)
        calibrate(model, parts["calibrate"].comparisons, parts["calibrate"].labels)
        accuracy = lesson.measure(model)
        model.save_pretrained(stage.path / "model")
        stage.finish({"accuracy": accuracy, "rows": len(trainer.table.rows), "depth": model.depth})
    model = load_score_model(
        stage.path / "model",
        backbone=study.backbone,
        adapter=stage.name,
        expect={channel.name: channel.higher_is_worse for channel in lesson.channels},
        cache=study.cache,
    )
    accuracy = {key: Estimate(**value) for key, value in stage.result["accuracy"].items()}
    return Learned(model=model, accuracy=accuracy, rows=stage.result["rows"])


def score_model(study: Study[Any], lesson: Lesson, *, adapter: str = "score") -> ScoreModel:
    """A fresh score model that reads as the lesson says."""
    depth = round(study.backbone.trunk.depth * lesson.depth)
    return ScoreModel(
        study.backbone,
        lesson.channels,
        depth=depth,
        adapter=adapter,
        seed=lesson.seed,
        cache=study.cache,
        **lesson.reading,
    )


def score_trainer(study: Study[Any], model: ScoreModel, lesson: Lesson, data: Dataset) -> ScoreTrainer:
    """The trainer of a lesson's score model on `data`, with its number of steps."""
    table = FeedbackTable(model, data.comparisons, data.labels)
    steps = 20 if study.settings.quick else num_steps(len(table.groups), 32, lesson.epochs)
    torch.manual_seed(lesson.seed)
    return ScoreTrainer(model=model, table=table, steps=steps, seed=lesson.seed, weight_decay=lesson.weight_decay)


def limited_cost(scorer: Learned, rollouts: Sequence[Rollout]) -> Estimate:
    """The mean cost that the limit is set on: of answers to prompts that may do harm, or of all if there are none."""
    usable = [r for r in rollouts if r.completion.text.strip()]
    usable = [r for r in usable if may_harm(r.prompt)] or usable
    scores = scorer.model.score([r.prompt for r in usable], [r.completion for r in usable])
    costs = [score.values["cost"] for score in scores]
    return bootstrap_mean(costs, clusters=[r.prompt.id for r in usable], unit="spreads")


def _accuracy(model: ScoreModel, test: Dataset) -> dict[str, Estimate]:
    """Accuracy on unseen prompts: of all responses, and of those that a model made, which are harder to judge."""
    accuracy = evaluate_scores(model, test.comparisons, test.labels)
    made = [label for label in test.labels if label.origin.name.endswith(":model")]
    if made:
        accuracy["cost_sign_accuracy_on_model_answers"] = evaluate_scores(model, (), made)["cost_sign_accuracy"]
    return accuracy
