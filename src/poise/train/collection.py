"""From prompts to rollouts: sample, score, draw more prompts where too few are of use, answer greedily."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor

from poise.errors import EngineError, FeedbackError
from poise.feedback.groups import PromptGroup
from poise.train.algorithms import Collection
from poise.train.limits import group_masks
from poise.train.rollout_batch import group_numbers, score_all, score_tensors
from poise.types import Engine, Prompt, Rollout, Sampling, Scorer

# scores [B] by channel, and which rows [B] belong to each group of prompts, to the channels that are trained on
ShapeScores = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Rollouts of one step."""

    rollouts: list[Rollout]
    num_asked: int  # completions that were asked for; those that failed or have no score are not among the rollouts
    greedy_scores: Mapping[str, Tensor] = field(default_factory=dict)  # channel -> [B]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """What an algorithm's `Collection` asks of an engine and its scorers."""

    engine: Engine
    scorers: Sequence[Scorer]
    sampling: Sampling
    collection: Collection
    shape_scores: ShapeScores
    pool: Sequence[Prompt]  # of which more prompts may be drawn
    groups: Sequence[PromptGroup] = ()  # that the channels tell apart

    def collect(self, prompts: Sequence[Prompt]) -> Collected:
        """Rollouts of the prompts, and of others while fewer than len(prompts) have samples to learn from."""
        spare = self._spare(prompts)
        drawn, rollouts = list(prompts), self._sample(prompts, self.sampling)
        for _ in range(1, self.collection.draws):
            more = list(islice(spare, len(prompts) - self._num_kept(rollouts)))
            if not more:
                break
            drawn += more
            rollouts += self._sample_more(more, like=rollouts[0])
        greedy = self._greedy(drawn, like=rollouts[0]) if self.collection.greedy else {}
        if self.collection.greedy:
            rollouts = [rollout for rollout in rollouts if rollout.prompt.id in greedy]
        return Collected(
            rollouts=rollouts,
            num_asked=len(drawn) * self.sampling.samples,
            greedy_scores=score_tensors([greedy[r.prompt.id].scores for r in rollouts]) if greedy else {},
        )

    def _spare(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """The other prompts, in an order that follows from the seed."""
        used = {prompt.id for prompt in prompts}
        others = {prompt.id: prompt for prompt in self.pool if prompt.id not in used}
        return iter(random.Random(self.sampling.seed).sample(list(others.values()), len(others)))

    def _sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        return score_all(self.scorers, prompts, self.engine.generate(prompts, sampling), sampling.samples)

    def _sample_more(self, prompts: Sequence[Prompt], *, like: Rollout) -> list[Rollout]:
        """Rollouts with the channels of another; none where all failed, as the step has some already."""
        try:
            found = self._sample(prompts, self.sampling)
        except (EngineError, FeedbackError):
            return []
        return [rollout for rollout in found if rollout.scores.values.keys() == like.scores.values.keys()]

    def _num_kept(self, rollouts: Sequence[Rollout]) -> int:
        group = group_numbers(rollouts)
        masks = group_masks(self.groups, [rollout.prompt for rollout in rollouts])
        kept = kept_rows(self.collection, self.shape_scores, score_tensors([r.scores for r in rollouts]), group, masks)
        return len(group[kept].unique())

    def _greedy(self, prompts: Sequence[Prompt], *, like: Rollout) -> dict[str, Rollout]:
        """The scored greedy answers by prompt id; a rollout whose prompt has none cannot be compared."""
        found = self._sample(prompts, replace(self.sampling, temperature=0.0, top_p=1.0, samples=1))
        greedy = {r.prompt.id: r for r in found if r.scores.values.keys() == like.scores.values.keys()}
        if not greedy:
            raise FeedbackError(f"none of {len(prompts)} greedy answers has a value in every channel of the samples")
        return greedy


def kept_rows(
    collection: Collection,
    shape_scores: ShapeScores,
    scores: Mapping[str, Tensor],
    group: Tensor,
    groups: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Mask [B] of the rows kept for any channel that `shape_scores` returns; all rows without a rule."""
    if collection.keep is None:
        return torch.ones_like(group, dtype=torch.bool)
    return torch.stack([collection.keep(values, group) for values in shape_scores(scores, groups).values()]).any(0)
