"""How far a policy has moved from its reference, by answers that it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from poise.functional.statistics import mean
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.train.rollout_batch import encode_rollouts
from poise.types import Estimate, Rollout, Scores


@torch.no_grad()
def sequence_kl(policy: Policy, answers: Sequence[Rollout], temperature: float) -> Estimate:
    """Mean over responses of the sampled log-ratio to the reference, in nats a sequence."""
    renderer, values = policy.backbone.renderer(), []
    bare = Scores(values={})  # an unscorable answer has a log-ratio too, but not every channel
    rollouts = [replace(r, scores=bare) for r in answers if r.completion.token_ids]
    for begin in range(0, len(rollouts), 16):
        part = rollouts[begin : begin + 16]
        rows = encode_rollouts(part, renderer, policy.backbone.device)
        shared = SharedRows.of(rows.token_ids, rows.prompt_lengths, rows.response_mask)
        reference, _ = policy.logprobs(shared, reference=True, temperature=temperature)
        sums = reference.sum(-1).tolist()
        values += [sum(r.completion.token_logprobs) - ref for r, ref in zip(part, sums, strict=True)]
    return mean(values, [r.prompt.id for r in rollouts], unit="nats/sequence")
