"""Learn to answer as demonstrated: the cross-entropy of the assistant's tokens given what stands before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from poise.data.batching import epoch_order
from poise.data.chat import ChatRenderer, Encoded
from poise.errors import ConfigError
from poise.models.policy import Policy
from poise.models.shared_rows import OwnRows
from poise.models.trainable import TrainablePolicy
from poise.ranks import current
from poise.train.checkpoint import load_optimizer_state, optimizer_state, restore_parameters
from poise.train.loop import Schedule, adamw, apply_gradients, cosine, require_finite, set_learning_rate
from poise.train.responses import shared_rows
from poise.types import Demonstration


class DemonstrationBatches:
    """Demonstrations as tokens, and the gradient of their loss in micro-batches.

    Prompts are cut where every other role on the backbone cuts them, responses at half of `max_tokens`.
    `finished` says whether the model also learns to stop where they end; with `max_response_tokens` it learns how they
    begin, and where they are cut nothing about the end. With `every_turn` it also learns the assistant's turns before
    the last one, all in one row; a token weighs the same wherever it stands. `temperature` is that of the sampler whose
    words are to be learned: at 0.7, a model that imitates what it says itself at 0.7 stays as it is.
    """

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        policy: Policy,
        *,
        per_step: int = 16,
        max_tokens: int = 512,
        max_response_tokens: int | None = None,
        tokens_per_micro_batch: int = 4096,
        finished: bool = True,
        every_turn: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        if not demonstrations:
            raise ConfigError("no demonstrations to learn from")
        renderer = policy.backbone.renderer(max_response_tokens=max_response_tokens or max_tokens // 2)
        self.rows = [_encoded(renderer, d, finished=finished, every_turn=every_turn) for d in demonstrations]
        self.weights = [d.weight for d in demonstrations]
        self.seed, self.temperature = seed, temperature
        self.per_step, self.tokens = min(per_step, len(demonstrations)), tokens_per_micro_batch

    def backward(self, policy: TrainablePolicy, step: int, *, weight: float = 1.0) -> dict[str, float]:
        """Add the gradient of weight * mean token loss of the step's demonstrations; micro-batches add exactly."""
        chosen = epoch_order(len(self.rows), self.per_step, step, seed=self.seed)
        rows = [self.rows[i] for i in chosen]
        factors = [self.weights[i] for i in chosen]
        sizes = [sum(row.response_mask) for row in rows]
        total = sum(factor * size for factor, size in zip(factors, sizes, strict=True)) or 1.0
        loss_sum = 0.0
        own = OwnRows.of(shared_rows(policy, rows))
        for group, counts in own.passes(self.tokens):
            rows_of_part = policy.frozen_states(own.rows.select(group))
            logprobs, _ = policy.logprobs(rows_of_part, temperature=self.temperature)
            scale = torch.tensor(factors, device=group.device)[own.places[group]][:, None]
            loss = counts * -(logprobs * scale).sum() / total
            require_finite({"supervised loss": loss})
            (weight * loss).backward()
            loss_sum += loss.item()
        loss_sum = current().sum(torch.tensor(loss_sum, dtype=torch.float64)).item()
        return {"loss": loss_sum, "tokens": float(sum(len(row.ids) for row in rows))}


@torch.no_grad()
def answer_losses(policy: TrainablePolicy, batches: DemonstrationBatches) -> tuple[Tensor, Tensor]:
    """Of every demonstration: the cross-entropy of its learned tokens [N] in nats, and how many there are [N]."""
    own = OwnRows.of(shared_rows(policy, batches.rows))
    found = torch.zeros(len(batches.rows), dtype=torch.float64, device=policy.device)
    for group, counts in own.passes(batches.tokens):
        logprobs, _ = policy.logprobs(policy.frozen_states(own.rows.select(group)), temperature=batches.temperature)
        found[own.places[group]] = counts * -logprobs.double().sum(-1)
    tokens = torch.tensor([sum(row.response_mask) for row in batches.rows])
    return current().sum(found).cpu(), tokens


def _encoded(renderer: ChatRenderer, shown: Demonstration, *, finished: bool, every_turn: bool) -> Encoded:
    """A demonstration as tokens, of which those of the last answer or of every one are learned."""
    prompt, text, calls = shown.prompt, shown.response, shown.tool_calls
    if not every_turn:
        return renderer.encode(prompt, text, finished=finished, tool_calls=calls)
    return renderer.encode_every_turn(prompt, text, finished=finished, tool_calls=calls, passed_over=shown.passed_over)


class SupervisedTrainer:
    """Supervised fine-tuning of a policy on demonstrations."""

    def __init__(
        self,
        *,
        policy: Policy,
        batches: DemonstrationBatches,
        lr: float = 2e-4,
        steps: int = 100,
        schedule: Schedule = cosine,
        max_norm: float | None = 1.0,
        weight_decay: float = 0.0,
    ):
        self.policy, self.batches, self.steps, self.schedule, self.max_norm = policy, batches, steps, schedule, max_norm
        self.parameters = policy.parameters()
        self.optimizer = adamw(self.parameters.values(), lr=lr, weight_decay=weight_decay)

    def step_at(self, index: int) -> dict[str, float]:
        """One optimizer step."""
        set_learning_rate(self.optimizer, self.schedule(index, self.steps))
        metrics = self.batches.backward(self.policy, index)
        norm = apply_gradients(self.optimizer, self.parameters, max_norm=self.max_norm)
        self.policy.version += 1
        return metrics | {"gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {
            "policy": dict(self.parameters),
            "optimizer": optimizer_state(self.optimizer),
            "version": self.policy.version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        restore_parameters(self.parameters, state["policy"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.policy.version = state["version"]
