"""From a rollout batch to the experience of each trained channel: where an algorithm meets an objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    greedy = objective.shape_scores(batch.greedy_scores, batch.groups) if batch.greedy_scores else {}
    logits = group_logits(batch.values, batch.response_mask)
    shaped = objective.shape_scores(batch.scores, batch.groups)
    free = {
        name: shape_rewards(
            scores,
            batch.old_logprobs,
            batch.ref_logprobs,
            batch.response_mask,
            kl_coef=algorithm.kl_coef,
            sign=1 if objective.signs[name] > 0 else -1,
            divergence=algorithm.kl.in_reward,
            token_scores=_parts(batch, objective, name),
        )
        for name, scores in shaped.items()
    }
    bound = math.inf if algorithm.kl.score_clip is None else algorithm.kl.score_clip
    rewards = {name: each.clamp(-bound, bound) for name, each in free.items()}
    mixed = objective.mix({name: each.sum(-1) for name, each in rewards.items()}, batch.groups)
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
            is_right=_is_right(batch, objective, name, scores),
            is_clipped=(free[name].abs() > bound).any(-1),
        )
        for name, scores in shaped.items()
    }


def _parts(batch: RolloutBatch, objective: Objective, name: str) -> Tensor | None:
    """Scores [B, T] of parts of the responses on the channel that is trained on; None where there are none.

    A limit is trained on under a name and in a unit of its own: its parts weigh what its `scale` says.
    """
    limit = next((each for each in getattr(objective, "limits", ()) if each.name == name), None)
    if limit is None:
        return batch.token_scores.get(name)
    parts = batch.token_scores.get(limit.channel)
    is_plain = limit.measure.name == "" and limit.measure.among is None  # of other measures the parts are no parts
    return limit.scale * parts if parts is not None and is_plain else None


def _is_right(batch: RolloutBatch, objective: Objective, name: str, scores: Tensor) -> Tensor:
    """Which responses [B] are on the right side of zero: a reward above it, a cost not above it.

    A limit trains on what its measure makes of a channel, such as a probability, whose zero means something else: there
    the channel itself is asked.
    """
    limited = {limit.name: limit.channel for limit in getattr(objective, "limits", ())}
    own = batch.scores.get(limited.get(name, name), scores)
    return own > 0 if objective.signs[name] > 0 else own <= 0


def clipped_share(seen: Iterable[Experience], mask: Tensor) -> float:
    """Share of the responses in the mask [B, T] whose reward or cost the bound holds in one of the channels."""
    live = mask.any(-1)
    held = torch.stack([each.is_clipped for each in seen if each.is_clipped is not None]).any(0)
    return float((held & live).sum() / live.sum().clamp(min=1))


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
        mix=lambda channels: objective.mix(channels, {name: inside[live] for name, inside in batch.groups.items()}),
        step=step,
        steps=steps,
    )


def critic_loss(
    batch: RolloutBatch,
    values: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    weights: Tensor,
    algorithm: Algorithm,
    objective: Objective,
) -> Tensor:
    """The sum of the losses of all critics, whose values are [B, T] by channel, and of the head that infers groups."""
    losses = []
    if algorithm.value_loss is not None:
        each = (algorithm.value_loss(values[n], batch.values[n], targets[n]) for n in targets)
        losses += [(loss * weights).sum() for loss in each]
    logits, infer = group_logits(values, batch.response_mask), algorithm.collection.infer_groups
    if logits is not None and infer is not None:
        losses.append(infer(logits, objective.mix(objective.shape_scores(batch.scores, batch.groups), batch.groups)))
    return torch.stack(losses).sum()
