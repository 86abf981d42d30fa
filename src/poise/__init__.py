"""Keep a language model helpful and harmless, and measure both.

Recipes are functions: `poise.safe_rlhf(steps=50)` is `poise run safe-rlhf --steps 50`. Importing poise is quick: what
needs torch is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from poise.errors import (
    ConfigError,
    DataError,
    EngineError,
    FeedbackError,
    ModelError,
    NonFiniteError,
    NonFiniteScoreError,
    PoiseError,
    RunError,
    TrainingError,
)
from poise.run import Run
from poise.types import (
    Annotator,
    BadRow,
    Comparison,
    Completion,
    Dataset,
    Demonstration,
    Engine,
    Estimate,
    Evaluation,
    LossOutput,
    Message,
    Origin,
    PairBatch,
    Prompt,
    Rating,
    ResponseBatch,
    Rollout,
    RolloutBatch,
    SafetyLabel,
    Sampling,
    Scorer,
    Scores,
    Span,
    Verdict,
)

# Public names that are imported when they are first used, by the module that each comes from.
_NAMES_BY_MODULE = {
    "poise.data": ("load",),
    "poise.experiment": ("Claim", "MethodCard", "Metric", "Study", "Trial", "recipe"),
    "poise.models.heads": ("ScoreModel", "load_score_model"),
    "poise.models.load": ("load_backbone",),
    "poise.models.policy": ("Policy", "load_policy"),
    "poise.evaluate.suite": ("Suite", "measure"),
    "poise.feedback.rules": ("RefusalScorer",),
    "poise.rollout.native": ("NativeEngine",),
    "poise.train.algorithms": ("Algorithm", "DAPO", "GRPO", "PPO", "RLOO"),
    "poise.train.controllers": ("PID", "ProjectedAscent"),
    "poise.train.limits": ("among", "cvar", "per_category", "rate"),
    "poise.train.loop": ("fit",),
    "poise.train.lagrangian_reward": ("LagrangianReward",),
    "poise.feedback.named": ("named_scorers", "scorers_by_channel"),
    "poise.train.objectives": ("Lagrangian", "Limit", "Objective", "Penalty", "Unconstrained"),
    "poise.train.on_policy": ("OnPolicyTrainer", "OptimizerSettings"),
}
_LAZY = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}
_MODULES = ["pipeline"]  # that are public by their own names
# Every recipe is public: the function safe_rlhf of recipes/safe_rlhf.py is poise.safe_rlhf.
_RECIPES = [path.stem for path in (Path(__file__).parent / "recipes").glob("[!_]*.py")]

__all__ = [
    "Annotator",
    "BadRow",
    "Comparison",
    "Completion",
    "ConfigError",
    "DataError",
    "Dataset",
    "Demonstration",
    "Engine",
    "EngineError",
    "Estimate",
    "Evaluation",
    "FeedbackError",
    "LossOutput",
    "Message",
    "ModelError",
    "NonFiniteError",
    "NonFiniteScoreError",
    "Origin",
    "PairBatch",
    "PoiseError",
    "Prompt",
    "Rating",
    "ResponseBatch",
    "Rollout",
    "RolloutBatch",
    "Run",
    "RunError",
    "SafetyLabel",
    "Sampling",
    "Scorer",
    "Scores",
    "Span",
    "TrainingError",
    "Verdict",
    "__version__",
]
__all__ += sorted([*_LAZY, *_MODULES, *_RECIPES])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from poise.provenance import package_versions

        return package_versions(["poise"])["poise"]
    if name in _RECIPES:
        return getattr(import_module(f"poise.recipes.{name}"), name)
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"poise.{name}")
    raise AttributeError(f"module 'poise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
