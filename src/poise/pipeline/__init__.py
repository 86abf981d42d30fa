"""The stages of alignment as functions over objects: each is done once per run, resumes, and says what it will take.

    start_model -> fine_tune -> merged -> fit_scores -> align | optimise_preferences -> collect_comparisons -> evaluate

They take a run and objects (policy, scorers, `Algorithm`, `Objective`, prompts, engine); what a stage was finished
with is read back from its folder. Inside `poise.plan.work.planning(...)` they report time and memory and do nothing.
"""

from __future__ import annotations

from poise.pipeline.alignment import align
from poise.pipeline.evaluation import evaluate
from poise.pipeline.model import feature_cache, start_model
from poise.pipeline.preferences import (
    constrained_labels,
    measure_preferences,
    optimise_preferences,
    preference_feedback,
)
from poise.pipeline.rounds import collect_comparisons
from poise.pipeline.scores import ScoreModelSpec, TrainedScoreModel, fit_scores
from poise.pipeline.supervised import fine_tune, measure_demonstrations, merged
from poise.train.validation import Validation

__all__ = [
    "ScoreModelSpec",
    "TrainedScoreModel",
    "Validation",
    "align",
    "collect_comparisons",
    "constrained_labels",
    "evaluate",
    "feature_cache",
    "fine_tune",
    "fit_scores",
    "measure_demonstrations",
    "measure_preferences",
    "merged",
    "optimise_preferences",
    "preference_feedback",
    "start_model",
]
