"""Learn from preferences without sampling: one trainer for every loss of `functional.preference_losses`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.data.batching import epoch_order
from poise.errors import ConfigError
from poise.functional.preference_losses import kto_baseline
from poise.functional.statistics import mean, share
from poise.models.heads import length_buckets
from poise.models.policy import Policy
from poise.ranks import current
from poise.train.checkpoint import load_optimizer_state, optimizer_state, restore_parameters
from poise.train.loop import Schedule, adamw, apply_gradients, cosine, require_finite, set_learning_rate
from poise.train.preference_feedback import Feedback
from poise.train.preference_methods import AsJudged, Labels, PreferenceMethod
from poise.train.responses import reference_logprobs, sequence_logprobs, shared_rows
from poise.types import Estimate


class PreferenceTrainer:
    """Fit a policy to preferences: the mean loss over the items of a step's prompts; micro-batches add exactly.

    Each response of a step is run once, however many pairs it stands in. The reference's log-probabilities are computed
    before the first step and kept in `cache`. For every method the metrics say how far chosen and rejected responses
    have drifted from the reference, also where the loss does not look at it.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        method: PreferenceMethod,
        feedback: Feedback,
        labels: Labels | None = None,
        prompts_per_step: int = 16,
        lr: float = 2e-4,
        steps: int = 100,
        schedule: Schedule = cosine,
        max_norm: float | None = 1.0,
        tokens_per_micro_batch: int = 4096,
        seed: int = 0,
        cache: Path | None = None,
    ):
        _require_feedback(method, feedback)
        self.policy, self.method, self.feedback, self.labels = policy, method, feedback, labels or AsJudged()
        self.per_step, self.tokens = min(prompts_per_step, len(feedback.groups)), tokens_per_micro_batch
        self.steps, self.schedule, self.max_norm, self.seed = steps, schedule, max_norm, seed
        self.reference = reference_logprobs(policy, feedback.rows, tokens=self.tokens, cache=cache)
        self.parameters = policy.parameters()
        self.optimizer = adamw(self.parameters.values(), lr=lr)

    def step_at(self, index: int) -> dict[str, float]:
        """One optimizer step on the prompts that follow from the index and the seed."""
        set_learning_rate(self.optimizer, self.schedule(index, self.steps))
        order = epoch_order(len(self.feedback.groups), self.per_step, index, seed=self.seed)
        groups = [self.feedback.groups[i] for i in order]
        count = sum(map(len, groups))
        baseline = self.baseline([item for group in groups for item in group])
        values: dict[str, list[Tensor]] = {}
        own, weight = current().partition(groups, [self._cost(group) for group in groups])
        parts = self._micro_batches(own)
        for items, counts in current().pad_to_equal_steps(parts, parts[0], weight):
            batch = self.labels.label(self._batch(items, baseline))
            result = self.method.loss(batch)
            loss = counts * result.losses.sum() / count
            require_finite({"preference loss": loss})
            loss.backward()
            found = self.feedback.metrics(batch, result)
            _append(values, found if counts else {name: each[:0] for name, each in found.items()})
        norm = apply_gradients(self.optimizer, self.parameters, max_norm=self.max_norm)
        self.policy.version += 1
        facts = {"gradient_norm": norm, "dropped": self.feedback.dropped, "beyond_window": self.feedback.beyond_window}
        return _means(values) | facts | self.labels.update(index)

    def baseline(self, items: Sequence[Any]) -> Tensor:
        """What responses to other prompts have gained on average, in nats; 0 for pairs."""
        numbers = self.feedback.mismatched(items)
        if not numbers:
            return self.reference.new_zeros(())
        rows = [self.feedback.rows[number] for number in numbers]
        logprobs = sequence_logprobs(self.policy, rows, tokens=self.tokens)
        return kto_baseline(logprobs, self.reference[numbers])

    def _batch(self, items: Sequence[Any], baseline: Tensor) -> Any:
        numbers = self.feedback.numbers(items)
        rows = [self.feedback.rows[number] for number in numbers]
        logprobs, _ = self.policy.logprobs(self.policy.frozen_states(shared_rows(self.policy, rows)))
        index = torch.tensor(numbers, device=logprobs.device)
        sums = torch.zeros_like(self.reference).index_put((index,), logprobs.sum(-1))
        return self.feedback.batch(items, sums, self.reference, baseline)

    def _cost(self, group: Sequence[Any]) -> float:
        return float(sum(len(self.feedback.rows[number].ids) for number in self.feedback.numbers(group)))

    def _micro_batches(self, groups: Sequence[list[Any]]) -> list[list[Any]]:
        """The items of whole prompts, padded size within the token budget."""
        numbers = [self.feedback.numbers(group) for group in groups]
        most = max(map(len, numbers))
        longest = [max(len(self.feedback.rows[number].ids) for number in each) for each in numbers]
        buckets = length_buckets([most * length for length in longest], self.tokens)
        return [[item for i in bucket for item in groups[i]] for bucket in buckets]

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves; the reference follows from the data."""
        return {
            "policy": dict(self.parameters),
            "optimizer": optimizer_state(self.optimizer),
            "version": self.policy.version,
            "labels": self.labels.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        restore_parameters(self.parameters, state["policy"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.policy.version = state["version"]
        self.labels.load_state_dict(state["labels"])


@torch.no_grad()
def evaluate_preferences(
    policy: Policy, method: PreferenceMethod, feedback: Feedback, *, tokens_per_pass: int = 4096
) -> dict[str, Estimate]:
    """The trainer's metrics on held-out feedback, with intervals over prompts.

    Rewards are those that the method implies. A policy that equals its reference has accuracy 0 under methods with a
    reference: all its rewards are ties.
    """
    joined, owners = preference_values(policy, method, feedback, tokens_per_pass=tokens_per_pass)
    estimates = {name: mean(found, owners[name]) for name, found in joined.items() if found}
    if hits := joined["reward_accuracy"]:
        estimates["reward_accuracy"] = share([hit > 0 for hit in hits], owners["reward_accuracy"])
    return estimates


@torch.no_grad()
def preference_values(
    policy: Policy,
    method: PreferenceMethod,
    feedback: Feedback,
    *,
    tokens_per_pass: int = 4096,
    cache: Path | None = None,
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """The trainer's metrics of every item of the feedback, and the number of the prompt that each belongs to.

    `cache` keeps the reference's log-probabilities.
    """
    _require_feedback(method, feedback)
    reference = reference_logprobs(policy, feedback.rows, tokens=tokens_per_pass, cache=cache)
    logprobs = sequence_logprobs(policy, feedback.rows, tokens=tokens_per_pass)
    items = [item for group in feedback.groups for item in group]
    numbers = feedback.mismatched(items)
    baseline = kto_baseline(logprobs[numbers], reference[numbers]) if numbers else reference.new_zeros(())
    values: dict[str, list[Tensor]] = {}
    owners: dict[str, list[int]] = {}
    for index, group in enumerate(feedback.groups):
        batch = feedback.batch(group, logprobs, reference, baseline)
        metrics = feedback.metrics(batch, method.loss(batch))
        _append(values, metrics)
        for name, found in metrics.items():
            owners.setdefault(name, []).extend([index] * len(found))
    return {name: torch.cat(parts).tolist() for name, parts in values.items()}, owners


def _append(values: dict[str, list[Tensor]], metrics: Mapping[str, Tensor]) -> None:
    for name, found in metrics.items():
        values.setdefault(name, []).append(found)


def _means(values: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """The mean of each metric over the items of all processes."""
    joined = {name: torch.cat(parts).double() for name, parts in values.items()}
    sums = [torch.stack([found.sum(), found.new_tensor(len(found))]) for found in joined.values()]
    totals = current().sum(torch.stack(sums)).tolist()
    return {name: total / count for name, (total, count) in zip(joined, totals, strict=True) if count}


def _require_feedback(method: PreferenceMethod, feedback: Feedback) -> None:
    if not isinstance(feedback, method.feedback):
        raise ConfigError(
            f"this method reads {method.feedback.__name__}, not {type(feedback).__name__}: "
            "make the feedback with method.feedback(policy, comparisons, labels, verdicts)"
        )
