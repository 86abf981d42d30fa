"""Learning from demonstrations: a start model of its own, or a little in every update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poise.feedback.demonstrations import preferred_demonstrations, safe_demonstrations
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import fine_tune, merged
from poise.run import Run
from poise.train.supervised import DemonstrationBatches

if TYPE_CHECKING:
    from poise.recipes._stages import Settings, Study

IMITATED_PER_STEP = 48
ADAPTER = Lora(top=0.5)  # of every policy here


def start_from_preferred(run: Run, study: Study[Any]) -> None:
    """Supervised fine-tuning on the responses that people preferred, merged into the backbone: the start model."""
    if (steps := study.settings.supervised_steps) == 0:
        return
    policy = Policy(study.backbone, ADAPTER, adapter="supervised", seed=study.settings.seed)
    rows = preferred_demonstrations(study.splits["train"])
    fine_tune(run, policy, rows, steps=steps, name="supervised", seed=study.settings.seed)
    study.backbone = merged(run, policy)


def imitate(run: Run, study: Study[Settings], policy: Policy) -> None:
    """What every objective starts from: an adapter that learned refusals of harmful prompts, and answers to others.

    Reinforcement finds out where a refusal belongs only once there are some. `policy` takes over what was learned.
    """
    settings = study.settings
    if settings.warmstart_steps == 0:
        return
    stage = study.stage(run, "imitated")
    if not stage.finished:
        learning = Policy(study.backbone, ADAPTER, adapter=stage.name, seed=settings.seed)
        rows, batches = safe_demonstrations(study.splits["train"]), _batches(settings, IMITATED_PER_STEP)
        lr, steps = settings.imitation_lr, settings.warmstart_steps
        fine_tune(run, learning, rows, steps=steps, lr=lr, name=stage.name, **batches)
    policy.copy_from(stage.path / "model")


def mixed_in(study: Study[Settings], policy: Policy) -> DemonstrationBatches | None:
    """Safe demonstrations, imitated a little in every update: a model that never refuses cannot find it by chance."""
    return (
        None
        if study.settings.ptx_coef == 0
        else DemonstrationBatches(safe_demonstrations(study.splits["train"]), policy, **_batches(study.settings, 16))
    )


def _batches(settings: Settings, per_step: int) -> dict[str, Any]:
    """How demonstrations are read: cut where the settings say."""
    return {
        "per_step": per_step,
        "max_tokens": max(128, 4 * settings.response_tokens),  # half of it for the response
        "max_response_tokens": settings.imitated_tokens or None,
        "tokens_per_micro_batch": 2048,
        "temperature": settings.imitated_temperature,
        "seed": settings.seed,
    }
