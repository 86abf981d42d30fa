"""Supervised fine-tuning: an adapter that learns to answer as demonstrated, and the model it makes when merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from poise.models.load import Backbone, load_backbone
from poise.models.policy import Policy
from poise.pipeline.kept import keep, taken_back
from poise.plan.compute import Compute
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.loop import fit
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer
from poise.types import Demonstration


def fine_tune(
    run: Run,
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    *,
    steps: int,
    lr: float = 2e-4,
    name: str = "supervised",
    **batches: Any,
) -> Policy:
    """Fine-tune a policy on demonstrations, and return it.

    steps    updates
    lr       peak learning rate
    batches  further arguments of `DemonstrationBatches`: per_step, max_tokens, temperature, seed ...

    The folder of the stage holds the adapter in peft's format.
    """
    stage = run.stage(name)
    per_step = min(int(batches.get("per_step", 16)), len(demonstrations))
    if (planner := current_planner()) is not None:
        prompt = planner.tokens.template + planner.tokens.mean([row.prompt.text for row in demonstrations])
        response = planner.tokens.mean([row.response for row in demonstrations])
        seconds = steps * update_seconds(planner.compute, per_step * (prompt + response), per_step * response)
        work = f"{steps} updates of {per_step} rows"
        planner.add(planner.named(run, name), seconds=seconds, memory=planner.compute.updating(), work=work)
        return policy
    if not stage.finished:
        rows = DemonstrationBatches(demonstrations, policy, **batches)
        trainer = SupervisedTrainer(policy=policy, batches=rows, lr=lr, steps=steps)
        fit(trainer, run=run, stage=stage.name, steps=steps, shown=("loss",), save_every=4)
        keep(policy, stage, {"steps": steps, "demonstrations": len(rows.rows)})
    return taken_back(policy, stage)


def merged(run: Run, policy: Policy, *, name: str = "start-model") -> Backbone:
    """The policy as a new backbone, with its adapter merged into the weights.

    The folder of the stage holds a model that transformers can load. Raises RunError if it was damaged since.
    """
    if current_planner() is not None:
        return replace(policy.backbone)
    stage = run.stage(name)
    if not stage.finished:
        policy.save_pretrained(stage.path / "model", merge=True)
        stage.finish({"adapter": policy.adapter})
    # adapters name their base by this path, and load from anywhere
    return load_backbone(str((stage.path / "model").resolve()), dtype=policy.backbone.dtype)


def update_seconds(compute: Compute, tokens: float, positions: float) -> float:
    """Estimated seconds of one update: forward through the lower layers, forward and backward through the others.

    tokens     number of tokens of prompts and responses
    positions  number of response tokens, whose logits are needed
    """
    below = compute.model.layers - compute.trained_layers
    return compute.forward(tokens, layers=below) + compute.training(tokens, positions=positions)
