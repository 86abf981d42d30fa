"""How far a policy has moved from its reference, by answers that it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from poise.data.chat import Encoded
from poise.functional.statistics import mean
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.train.responses import sequence_logprobs
from poise.train.rollout_batch import encode_rollouts
from poise.types import Estimate, Rollout, Scores

_TOKENS_PER_PASS = 4096


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


def forward_sequence_kl(policy: Policy, answers: Sequence[Rollout]) -> Estimate:
    """Mean over the reference's own responses of its log-ratio to the policy: KL(reference, policy), nats a sequence.

    answers  [N] sampled from the policy's reference at temperature 1, with their token ids: a text read anew may have
             other tokens than those that were sampled
    """
    said = [each for each in answers if each.completion.token_ids]
    rows = as_sampled(policy, said)
    before, after = (
        sequence_logprobs(policy, rows, tokens=_TOKENS_PER_PASS, reference=reference) for reference in (True, False)
    )
    return mean((before - after).tolist(), [each.prompt.id for each in said], unit="nats/sequence")


def as_sampled(policy: Policy, rollouts: Sequence[Rollout]) -> list[Encoded]:
    """Prompts with the very tokens that were sampled [N]."""
    renderer, rows = policy.backbone.renderer(), []
    for rollout in rollouts:
        head, _ = renderer.prompt_ids(rollout.prompt.messages)
        rows.append(Encoded(ids=(*head, *rollout.completion.token_ids), prompt_length=len(head)))
    return rows
