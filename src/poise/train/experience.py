"""From a rollout batch to the experience of each trained channel: where an algorithm meets an objective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from poise.functional.rewards import shape_rewards
from poise.functional.risk import first_return
from poise.train.algorithms import Algorithm
from poise.train.estimators import Experience, group_logits
from poise.train.objectives import Objective
from poise.train.selection import Episodes
from poise.types import RolloutBatch


def experiences(batch: RolloutBatch, algorithm: Algorithm, objective: Objective) -> dict[str, Experience]:
    """The experience of each channel that is trained on, with the KL penalty in its rewards."""
    greedy = objective.shape(batch.greedy_scores) if batch.greedy_scores else {}
    logits = group_logits(batch.values, batch.response_mask)
    shaped = objective.shape(batch.scores)
    rewards = {
        name: shape_rewards(
            scores,
            batch.old_logprobs,
            batch.ref_logprobs,
            batch.response_mask,
            kl_coef=algorithm.kl_coef,
            sign=1 if objective.signs[name] > 0 else -1,
            clip=algorithm.score_clip,
            divergence=algorithm.kl.in_reward,
        )
        for name, scores in shaped.items()
    }
    mixed = objective.mix({name: each.sum(-1) for name, each in rewards.items()}, batch.scores)
    return {
        name: Experience(
            rewards=rewards[name],
            scores=scores,
            values=batch.values.get(name, torch.zeros_like(rewards[name])),
            mask=batch.response_mask,
            group=batch.group,
            sign=1 if objective.signs[name] > 0 else -1,
            greedy_scores=greedy.get(name),
            entropies=batch.entropies,
            membership=None if logits is None else logits.sigmoid(),
            mixed_returns=mixed,
        )
        for name, scores in shaped.items()
    }


def episodes(
    batch: RolloutBatch,
    targets: Mapping[str, Tensor],
    algorithm: Algorithm,
    objective: Objective,
    *,
    step: int,
    steps: int,
) -> Episodes:
    """What a selection is made from: the rows that are still in the response mask; the others have no say."""
    live = batch.response_mask.any(-1)
    rewards = {name: each.rewards for name, each in experiences(batch, algorithm, objective).items()}
    return Episodes(
        returns={name: each.sum(-1)[live] for name, each in rewards.items()},
        first_targets={name: first_return(each, batch.response_mask)[live] for name, each in targets.items()},
        signs=objective.signs,
        group=batch.group[live],
        mix=lambda channels: objective.mix(channels, {name: scores[live] for name, scores in batch.scores.items()}),
        step=step,
        steps=steps,
    )
