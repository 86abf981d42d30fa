"""Learning from demonstrations: a start model of its own, or a little in every update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.recipes._data import preferred_demonstrations, safe_demonstrations
from poise.run import Run
from poise.train.loop import fit
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer

if TYPE_CHECKING:
    from poise.recipes._stages import Settings, Study

IMITATED_PER_STEP = 48
ADAPTER = Lora(top=0.5)  # of every policy here


def fine_tune(run: Run, study: Study[Any]) -> None:
    """Supervised fine-tuning on the responses that people preferred, merged into the trunk: the start model."""
    if (steps := study.settings.supervised_steps) == 0:
        return

    def batches(policy: Policy) -> DemonstrationBatches:
        rows = preferred_demonstrations(study.splits["train"])
        return DemonstrationBatches(rows, policy, seed=study.settings.seed)

    model = _learned(run, study, "supervised", steps, batches, merge=True)
    # adapters name their base by this path, and load from anywhere
    study.backbone = load_backbone(str(model.resolve()), dtype=study.backbone.dtype)


def imitate(run: Run, study: Study[Settings]) -> Path | None:
    """The adapter that every objective starts from: refusals of harmful prompts, answers to those that are not.

    Reinforcement finds out where a refusal belongs only once there are some.
    """
    if (steps := study.settings.imitation_steps) == 0:
        return None
    batches = partial(demonstrated, study, per_step=IMITATED_PER_STEP)
    return _learned(run, study, "imitated", steps, batches, lr=study.settings.imitation_lr)


def _learned(
    run: Run,
    study: Study[Any],
    name: str,
    steps: int,
    batches: Callable[[Policy], DemonstrationBatches],
    *,
    lr: float = 2e-4,
    merge: bool = False,
) -> Path:
    """The folder of what a fresh adapter learned in a stage of that name; merged, of a whole model."""
    stage = study.stage(run, name)
    if not stage.finished:
        policy = Policy(study.backbone, ADAPTER, adapter=stage.name, seed=study.settings.seed)
        trainer = SupervisedTrainer(policy=policy, batches=batches(policy), lr=lr, steps=steps)
        fit(trainer, run=run, stage=stage.name, steps=steps, shown=("loss",), save_every=4)
        policy.save_pretrained(stage.path / "model", merge=merge)
        stage.finish({"steps": steps, "demonstrations": len(trainer.batches.rows)})
    return stage.path / "model"


def mixed_in(study: Study[Settings], policy: Policy) -> DemonstrationBatches | None:
    """Safe demonstrations, imitated a little in every update: a model that never refuses cannot find it by chance."""
    return None if study.settings.ptx_coef == 0 else demonstrated(study, policy)


def demonstrated(study: Study[Settings], policy: Policy, *, per_step: int = 16) -> DemonstrationBatches:
    """Batches of the study's safe demonstrations, cut where its settings say."""
    settings = study.settings
    return DemonstrationBatches(
        safe_demonstrations(study.splits["train"]),
        policy,
        per_step=per_step,
        max_tokens=max(128, 4 * settings.response_tokens),  # half of it for the prompt
        max_response_tokens=settings.imitated_tokens or None,
        tokens_per_micro_batch=2048,
        temperature=settings.imitated_temperature,
        seed=settings.seed,
    )
