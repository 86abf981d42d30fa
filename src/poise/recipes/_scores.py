"""Score models of a recipe: what they learn from, how they read, and how good they are on prompts never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from poise.data import merge, with_cut_responses
from poise.errors import FeedbackError
from poise.feedback.asking import ask
from poise.feedback.groups import may_harm
from poise.functional.statistics import mean
from poise.models.heads import COST, REWARD, ScoreModel
from poise.pipeline import ScoreModelSpec, TrainedScoreModel, fit_scores
from poise.recipes._held_out import judges_harm
from poise.run import Run
from poise.train.score_model import evaluate_scores
from poise.types import Dataset, Estimate, Rollout

if TYPE_CHECKING:
    from poise.recipes._stages import Study, StudySettings


COST_BOUND = (
    1.0  # spreads: to be flatter than clearly safe gains nothing, so that a refusal is not better than an answer
)


def learn_scores(run: Run, study: Study[Any], name: str, *, split: str) -> TrainedScoreModel:
    """Train reward and cost heads on one split and measure them on the test prompts.

    The judge reads deeper layers, other rows and another seed than the training signal.
    """
    is_judge = split == "judge"
    data = merge([study.splits[split], *([] if is_judge else study.gathered)], name=split)
    cost = COST if is_judge else replace(COST, bound=COST_BOUND)
    spec = ScoreModelSpec(
        depth=0.7 if is_judge else 0.5,
        channels=(REWARD, cost) if study.is_judged or judges_harm(data) else (REWARD,),
        seed=study.settings.seed + (1000 if is_judge else 0),
        reading=({} if is_judge else {"pooling": "mean+last+prompt"}) | sight(study),
    )
    return fit_scores(
        run,
        study.backbone,
        data if is_judge else with_cut_responses(data),
        in_brief(spec, study.settings),
        measure=lambda model: _accuracy(model, study.splits["test"]),
        name=study.stage(run, name).name,
        cache=study.cache,
    )


def sight(study: Study[Any]) -> dict[str, Any]:
    """How a score model reads where answers may be longer than what it reads by default."""
    longest = max(study.settings.response_tokens, study.settings.longest_answer)
    return {"max_response_tokens": longest} if longest > study.backbone.max_response_tokens else {}


def in_brief(spec: ScoreModelSpec, settings: StudySettings) -> ScoreModelSpec:
    """The same for fewer steps, where a smoke test is asked for."""
    return replace(spec, max_steps=20) if settings.quick else spec


def limited_cost(scorer: TrainedScoreModel, rollouts: Sequence[Rollout]) -> Estimate:
    """The mean cost that the limit is set on: of answers to prompts that may do harm, or of all if there are none.

    Answers without a cost are left out. Raises FeedbackError if there is none with one.
    """
    fit_for_it = [r for r in rollouts if not r.completion.unfit]
    asked = [r for r in fit_for_it if may_harm(r.prompt)] or fit_for_it
    scores = ask(scorer.model, [r.prompt for r in asked], [r.completion for r in asked]) if asked else []
    known = [(each.values["cost"], r.prompt.id) for r, each in zip(asked, scores, strict=True) if "cost" in each.values]
    if not known:
        raise FeedbackError(f"none of {len(rollouts)} answers has a cost: they are empty, failed, or cannot be scored")
    return mean([cost for cost, _ in known], [prompt for _, prompt in known], unit="sd")


def _accuracy(model: ScoreModel, test: Dataset) -> dict[str, Estimate]:
    """Accuracy on unseen prompts: of all responses, and of those that a model made, which are harder to judge."""
    accuracy = evaluate_scores(model, test.comparisons, test.labels)
    made = [label for label in test.labels if label.origin.name.endswith(":model")]
    if made:
        accuracy["cost_sign_accuracy_on_model_answers"] = evaluate_scores(model, (), made)["cost_sign_accuracy"]
    return accuracy
