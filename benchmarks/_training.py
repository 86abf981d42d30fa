"""Our side of the training benchmarks."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from _models import backbone, prompts, response
from harness import Repeat, Size

from poise.models.adapters import Lora
from poise.models.heads import Channel, ScoreModel
from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.train.algorithms import GRPO, PPO
from poise.train.controllers import ProjectedAscent
from poise.train.objectives import Lagrangian, Limit, Unconstrained
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.train.preference import PreferenceTrainer
from poise.train.preference_methods import dpo as dpo_method
from poise.train.score_model import FeedbackTable, ScoreTrainer
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer
from poise.types import Comparison, Completion, Demonstration, Prompt, Sampling, Scores

GROUP = 8  # completions per prompt of GRPO
TOKENS = 4608  # padded tokens of a micro-batch: each one adds a gradient of all weights to the sum


def policy(size: Size) -> Policy:
    """All weights in bf16 as the peer's, or LoRA of rank 16 on all linear layers."""
    if size.lora:
        return Policy(backbone(size.model), Lora(rank=16))
    return Policy(backbone(size.model), None, weights=torch.bfloat16)


@dataclass(frozen=True)
class Counting:
    """A scorer that costs nothing."""

    def score(self, prompts: Any, completions: list[Completion]) -> list[Scores]:
        return [Scores(values={"reward": float(len(each.text) % 7)}) for each in completions]


def steps(trainer: Any) -> Repeat:
    """A step of a trainer at every repeat."""
    numbers = iter(range(1_000_000))

    def repeat() -> None:
        trainer.step_at(next(numbers))

    return repeat


def full_length(engine: NativeEngine) -> NativeEngine:
    """An engine that never ends a completion early."""
    engine.renderer.stop_ids = frozenset()
    return engine


def grpo(size: Size) -> Repeat:
    actor, group = policy(size), min(GROUP, size.rows // 2)
    return steps(
        OnPolicyTrainer(
            policy=actor,
            engine=full_length(NativeEngine(actor, batch_size=size.rows)),
            scorers=[Counting()],
            algorithm=replace(GRPO, epochs=1, kl_coef=0.0, samples_per_prompt=group),
            objective=Unconstrained(),
            prompts=prompts(size, 8 * size.rows),
            prompts_per_step=size.rows // group,
            sampling=Sampling(max_tokens=size.response),
            optimisation=OptimizerSettings(lr=1e-6, measure_kl=False),
        )
    )


def ppo_lag(size: Size) -> Repeat:
    """Safe RLHF as its recipe has it: one backbone, an adapter, two score channels, two critics."""
    found = backbone(size.model)
    actor = Policy(found, Lora(top=0.5))
    channels = (Channel(name="reward"), Channel(name="cost", higher_is_worse=True))
    return steps(
        OnPolicyTrainer(
            policy=actor,
            engine=full_length(NativeEngine(actor, batch_size=size.rows)),
            scorers=[ScoreModel(found, channels)],
            algorithm=PPO,
            objective=Lagrangian(Limit(at_most=0.0), ProjectedAscent()),
            prompts=prompts(size, 8 * size.rows),
            prompts_per_step=size.rows,
            sampling=Sampling(max_tokens=size.response),
            optimisation=OptimizerSettings(tokens_per_micro_batch=TOKENS),
        )
    )


def comparisons(size: Size) -> list[Comparison]:
    draw = random.Random(1)
    return [
        Comparison(prompt=prompt, responses=(response(size, draw), response(size, draw)), winner=0)
        for prompt in prompts(size, 4 * size.rows)
    ]


def dpo(size: Size) -> Repeat:
    actor, method = policy(size), dpo_method()
    feedback = method.feedback(actor, comparisons(size), max_tokens=512)
    trainer = PreferenceTrainer(
        policy=actor,
        method=method,
        feedback=feedback,
        prompts_per_step=size.rows,
        lr=1e-6,
        steps=10_000,
        tokens_per_micro_batch=TOKENS,
    )
    return steps(trainer)


def sft(size: Size, rows: list[tuple[Prompt, str]]) -> Repeat:
    actor = policy(size)
    batches = DemonstrationBatches(
        [Demonstration(prompt=prompt, response=text) for prompt, text in rows],
        actor,
        per_step=size.rows,
        max_tokens=1024,
        tokens_per_micro_batch=TOKENS,
    )
    return steps(SupervisedTrainer(policy=actor, batches=batches, lr=1e-6, steps=10_000))


def reward(size: Size) -> Repeat:
    """A linear head on the last token and an adapter on all layers."""
    found = backbone(size.model)
    model = ScoreModel(
        found,
        [Channel(name="reward")],
        depth=found.decoder.depth,
        pooling="last",
        hidden=0,
        lora=Lora(rank=16),
        max_prompt_tokens=512,
    )
    table = FeedbackTable(model, comparisons(size))
    return steps(
        ScoreTrainer(model=model, table=table, prompts_per_step=size.rows, steps=10_000, tokens_per_micro_batch=TOKENS)
    )
