"""What a step of on-policy training reports of its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.functional.importance import logprob_gap
from poise.functional.policy_losses import own_clip_fraction
from poise.train.algorithms import Algorithm
from poise.types import RolloutBatch


@torch.no_grad()
def batch_metrics(
    batch: RolloutBatch, algorithm: Algorithm, *, first: Tensor, last: Tensor, entropies: Tensor
) -> dict[str, float]:
    """The mean scores of all rows, and what is known of the tokens that are learned from.

    in:<group>         share of the rows whose prompt belongs to a group that the objective tells apart
    kl, sequence_kl    nats per token and per response, of the sampler to the reference
    entropy            nats per token, in the last pass
    logprob_gap        nats per token between sampler and trainer, before any update
    clip_fraction      share outside the algorithm's own clip range in the last pass over the batch: of its tokens, or
                       of its responses if they have one ratio each; 0 without a clip, left out for an unknown loss

    first, last  [B, T] log-probabilities of the policy in the first and in the last pass over the batch
    entropies    [B, T] nats
    """
    mask, count = batch.response_mask, batch.response_mask.sum()
    kept = mask.any(-1).sum()
    gap = (first - batch.old_logprobs).abs()
    sequence_kl = ((batch.old_logprobs - batch.ref_logprobs) * mask).sum(-1)
    metrics = {name: float(values.mean()) for name, values in batch.scores.items()}
    metrics |= {f"in:{name}": float(inside.float().mean()) for name, inside in batch.groups.items()}
    if batch.sampled_logprobs is not None:
        metrics["engine_gap"] = float(logprob_gap(batch.old_logprobs, batch.sampled_logprobs, mask))
    outside = own_clip_fraction(algorithm.policy_loss, last, batch.old_logprobs, mask)
    if outside is not None:
        metrics["clip_fraction"] = float(outside)
    return metrics | {
        "kl": float(sequence_kl.sum() / count),
        "sequence_kl": float(sequence_kl.sum() / kept),
        "entropy": float(entropies.sum() / count),
        "logprob_gap": float((gap * mask).sum() / count),
        "response_tokens": float(count / kept),
        "kept": float(kept / len(mask)),
        "tokens": float(batch.attention_mask.sum()),
        "kl_coef": algorithm.kl_coef,
    }
