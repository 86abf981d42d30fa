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
from poise.ranks import current
from poise.run import Run
from poise.text import say
from poise.train.loop import fit
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer, answer_losses
from poise.types import Demonstration

PromptValues = dict[str, list[float]]  # by the id of a prompt


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
        if (cut := sum(row.truncated for row in rows.rows)) and current().is_main:
            say(f"{name}: {cut} of {len(rows.rows)} demonstrations do not fit the window and were cut", error=True)
        keep(policy, stage, {"steps": steps, "demonstrations": len(rows.rows), "cut": cut})
    return taken_back(policy, stage)


def answer_window(policy: Policy, response_tokens: int) -> int:
    """The longest answer that is learned from, in tokens: as long as wanted, or what the context leaves.

    >>> answer_window(Policy(load_backbone("random:llama")), 64)
    64
    """
    return max(1, min(response_tokens, policy.backbone.context - policy.renderer().max_prompt_tokens))


def measure_demonstrations(
    run: Run, policy: Policy, demonstrations: Sequence[Demonstration], *, name: str = "held-out", **batches: Any
) -> dict[str, PromptValues]:
    """How well a policy predicts answers that it did not learn from.

    Returns by the id of their prompts, a value for each answer: nats (the cross-entropy of all of its tokens), tokens,
    and loss (nats per token). Without demonstrations there is nothing to measure, which is said aloud.

    batches  further arguments of `DemonstrationBatches`, as they were given to `fine_tune`
    """
    if not demonstrations:
        if current().is_main:
            say(f"{name}: no answer is held out, so nothing is measured: give more prompts", error=True)
        return {}
    stage = run.stage(name)
    if (planner := current_planner()) is not None:
        prompt = planner.tokens.template + planner.tokens.mean([row.prompt.text for row in demonstrations])
        response, compute = planner.tokens.mean([row.response for row in demonstrations]), planner.compute
        seconds = compute.forward(len(demonstrations) * (prompt + response), positions=len(demonstrations) * response)
        work = f"{len(demonstrations)} answers, read once"
        planner.add(planner.named(run, name), seconds=seconds, memory=compute.scoring(), work=work)
        return {}
    if not stage.finished:
        rows = DemonstrationBatches(demonstrations, policy, **batches)
        nats, tokens = (found.tolist() for found in answer_losses(policy, rows))
        values: dict[str, PromptValues] = {"nats": {}, "tokens": {}, "loss": {}}
        for shown, of_answer, count in zip(demonstrations, nats, tokens, strict=True):
            for key, value in (("nats", of_answer), ("tokens", float(count)), ("loss", of_answer / max(1, count))):
                values[key].setdefault(shown.prompt.id, []).append(value)
        stage.finish({"values": values, "cut": sum(row.truncated for row in rows.rows)})
    found: dict[str, PromptValues] = stage.result["values"]
    return found


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
