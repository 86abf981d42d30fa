"""What a step says of its batch: how far the policy left the sampler, by the algorithm's own ratio and range."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from poise.functional.policy_losses import (
    clipped_surrogate,
    detached_ratio,
    dual_clipped_surrogate,
    own_clip_fraction,
    reinforce,
    sequence_surrogate,
)
from poise.train.algorithms import DAPO, GRPO, GSPO, PPO, REMAX, RLOO
from poise.train.on_policy import OnPolicyTrainer
from poise.types import Scores

OLD = torch.zeros(2, 4)
MASK = torch.tensor([[True, True, True, True], [True, False, False, False]])
NOW = torch.tensor([[1.25, 1.1, 0.75, 1.0], [0.995, 9.0, 9.0, 9.0]]).log()  # ratios; those of the padding mean nothing


class Unlike:
    """A reward that differs from sample to sample, so that every group is learned from."""

    def score(self, prompts, completions):
        return [Scores(values={"reward": float(i % 3), "cost": 0.0}) for i, _ in enumerate(completions)]


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (clipped_surrogate, 2 / 5),
        (partial(clipped_surrogate, clip=0.2, clip_high=0.28), 1 / 5),
        (partial(partial(clipped_surrogate, clip=0.3), clip_high=0.05), 2 / 5),
        (partial(dual_clipped_surrogate, clip=0.05), 3 / 5),
        (detached_ratio, 0.0),  # 0 to 2
        (partial(detached_ratio, clip=0.2), 2 / 5),
        (reinforce, 0.0),
        (partial(sequence_surrogate, clip=3e-4, clip_high=4e-4), 1.0),  # mean ratios of 1.008 and 0.995
        (partial(sequence_surrogate, clip=3e-4, clip_high=0.05), 1 / 2),
        (partial(sequence_surrogate, clip=0.2), 0.0),
    ],
)
def test_the_share_outside_is_that_of_the_ratio_and_range_of_the_loss(loss, share):
    assert float(own_clip_fraction(loss, NOW, OLD, MASK)) == pytest.approx(share)


def test_a_loss_of_ones_own_says_its_range_by_its_arguments_and_another_is_not_guessed():
    def mine(logprobs, old_logprobs, advantages, mask, *, clip=0.2, clip_high=None):
        return -logprobs * advantages

    def unknown(logprobs, old_logprobs, advantages, mask):
        return -logprobs * advantages

    assert float(own_clip_fraction(partial(mine, clip_high=0.3), NOW, OLD, MASK)) == pytest.approx(1 / 5)
    assert own_clip_fraction(unknown, NOW, OLD, MASK) is None


@pytest.mark.parametrize("record", [PPO, GRPO, DAPO, GSPO, RLOO, REMAX])
def test_clip_fraction_is_that_of_the_last_pass_over_the_batch(make_trainer, prompts, monkeypatch, record):
    record = replace(record, epochs=3)
    trainer = make_trainer(algorithm=record, scorers=[Unlike()], sgd=False, optimisation={"lr": 0.02})
    passes, batches = [], []
    update, losses = OnPolicyTrainer.update, OnPolicyTrainer._policy_losses

    def noted(self, batch, rows, logprobs, advantages):
        if len(rows) == len(batch.old_logprobs):
            passes.append((rows, logprobs.detach().clone()))
        return losses(self, batch, rows, logprobs, advantages)

    def kept(self, batch, advantages, targets):
        batches.append(batch)
        return update(self, batch, advantages, targets)

    monkeypatch.setattr(OnPolicyTrainer, "_policy_losses", noted)
    monkeypatch.setattr(OnPolicyTrainer, "update", kept)
    metrics = trainer.step(prompts)
    rows, logprobs = passes[-1]
    batch = batches[-1]
    expected = own_clip_fraction(record.policy_loss, logprobs, batch.old_logprobs[rows], batch.response_mask[rows])
    assert len(passes) == 3
    assert metrics["clip_fraction"] == pytest.approx(float(expected))
    assert (metrics["clip_fraction"] > 0) is (record.policy_loss is not reinforce)


def test_of_a_single_pass_nothing_is_outside(make_trainer, prompts):
    assert make_trainer(algorithm=PPO).step(prompts)["clip_fraction"] == 0.0


def test_the_policy_is_mixed_with_the_multiplier_from_before_its_update(make_trainer, prompts):
    trainer = make_trainer()
    batch = trainer.collect(prompts)
    before = trainer.objective.multipliers["cost"]
    advantages, _ = trainer.estimate(batch)
    expected = (advantages["reward"] - before * advantages["cost"]) / (1 + before)
    given = []
    trainer.collect = lambda prompts: batch
    trainer.update = lambda batch, mixed, targets: given.append(mixed) or {}
    metrics = trainer.step(prompts)
    torch.testing.assert_close(given[0], expected)
    assert metrics["multiplier"] != before
