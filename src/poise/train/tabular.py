"""On-policy training of a table of logits: the trainer of language models, a few tokens per response and no model.

What an algorithm and an objective do is the trainer's own code: `step`, `estimate`, `select` and `update` are
inherited. Only the edges differ: a response is an arm drawn from the table, or one arm for each of its tokens, its
scores come from a world, and a critic is a number for each context and channel. A step takes milliseconds, so that
every algorithm can be held against a known optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poise.models.shared_rows import OwnRows, SharedRows
from poise.train.algorithms import Algorithm
from poise.train.averaging import MeanOfLast, RunningAverage, holding
from poise.train.collection import kept_rows
from poise.train.limits import group_masks
from poise.train.objectives import Objective
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.types import Prompt, RolloutBatch


class TabularWorld(Protocol):
    """Contexts with arms to play, and the scores of playing one; `poise.worlds.bandit.Bandit` is one."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """One prompt for each context; the tag `context` is its number."""
        ...

    @property
    def num_arms(self) -> int:
        """Arms of every context."""
        ...

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores [B] by channel of playing `arms` in `contexts` [B]: [B], or [B, T] if a response has T tokens."""
        ...


class TablePolicy:
    """A softmax policy with a logit for each context, token and arm, and the one it began with as its reference.

    It is a `TrainablePolicy`; a prompt is one token, its context, and a response T others, its arms.
    They are drawn independently of one another. With `is_shared` what is learned in one context is done in all of them.
    """

    def __init__(self, start: Tensor, *, is_shared: bool = False):
        self.start = start[:, None] if start.dim() == 2 else start  # [X, T, A]
        shape = (1, *self.start.shape[1:]) if is_shared else self.start.shape
        self.moved, self.version = nn.Parameter(torch.zeros(shape)), 0
        self.device, self.width, self.context = start.device, len(start), None

    def renderer(self, *, max_prompt_tokens: int | None = None, max_response_tokens: int | None = None) -> None:
        """None: rows are numbers already."""

    def frozen_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows themselves: there are no layers."""
        return rows

    def critic_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows themselves: critics are numbers of their own."""
        return rows

    def parameters(self) -> dict[str, nn.Parameter]:
        """The table of how far each logit has moved."""
        return {"moved": self.moved}

    @property
    def logits(self) -> Tensor:
        """The logits [X, T, A]."""
        return self.start + self.moved

    def logprobs(self, rows: SharedRows, *, reference: bool = False, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, T] in nats of the arms played."""
        table = self.start if reference else self.logits
        logprobs = (table[rows.prompt_ids[rows.owner, 0]] / temperature).log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, rows.response_ids[..., None]).squeeze(-1), entropies.detach()


QUICK = OptimizerSettings(lr=0.2, critic_lr=0.2, critic_steps=1, max_norm=None)


class Averaged(NamedTuple):
    """What training came to: the mean of the policies of the last steps, and of what they reported."""

    policy: NDArray[np.float64]  # [X, A], or [X, T, A]
    metrics: dict[str, float]  # means of those that every one of the steps reports


class TabularTrainer(OnPolicyTrainer):
    """Steps of any algorithm under any objective on a table that begins with `start`, or with equal logits.

    `start` is [X, A], or [X, T, A] where a response has T tokens. `samples_per_step` responses are drawn in a step:
    `algorithm.samples_per_prompt` for each prompt, and every context equally often. Prompts that an algorithm does not
    keep are left out, and replaced by random ones as often as its collection draws. `played` counts all responses.
    """

    def __init__(
        self,
        *,
        world: TabularWorld,
        algorithm: Algorithm,
        objective: Objective,
        samples_per_step: int = 96,
        optimisation: OptimizerSettings = QUICK,
        start: Tensor | None = None,
        is_shared: bool = False,
        seed: int = 0,
    ):
        contexts = len(world.prompts)
        prompts = tuple(world.prompts) * max(1, samples_per_step // algorithm.samples_per_prompt // contexts)
        self.world, self.generator, self.played = world, torch.Generator().manual_seed(seed), 0
        start = torch.zeros(contexts, world.num_arms) if start is None else start
        self.table = TablePolicy(start, is_shared=is_shared)
        edges: dict[str, Any] = {"policy": self.table, "engine": None, "scorers": ()}  # `collect` stands in for them
        super().__init__(
            **edges,
            algorithm=algorithm,
            objective=objective,
            prompts=prompts,
            prompts_per_step=len(prompts),
            optimisation=optimisation,
            seed=seed,
        )
        self.of_contexts = group_masks(objective.groups, world.prompts)  # [X] each

    @property
    def probabilities(self) -> Tensor:
        """The policy [X, A], or [X, T, A] where a response has several tokens."""
        return self.table.logits.detach().softmax(-1).squeeze(1)

    def run(self, steps: int, *, averaged: float = 0.5) -> Averaged:
        """Take steps, and average the policies of the last ones: a multiplier circles around its optimum.

        averaged  share of the steps that is averaged

        Where the settings ask for an average of the weights, the policy is the one that these make.
        """
        last = max(1, sum(index >= steps * (1 - averaged) for index in range(steps)))
        policies, reported = RunningAverage(MeanOfLast(last)), []
        for index in range(steps):
            reported.append(self.step_at(index))
            policies.add({"policy": self.probabilities.double()})
        reported = reported[-last:]
        everywhere = [name for name in reported[0] if all(name in row for row in reported)]
        means = {name: float(np.mean([row[name] for row in reported])) for name in everywhere}
        if self.average is None:
            return Averaged(policies.mean["policy"].numpy(), means)
        with holding(self.average.mean, self.parameters):
            return Averaged(self.probabilities.double().numpy(), means)

    @torch.no_grad()
    def collect(self, prompts: Sequence[Prompt]) -> RolloutBatch:
        """Play the arms of every sample of every prompt, and score them."""
        wanted, samples = len(prompts), self.algorithm.samples_per_prompt
        drawn, arms, scores = self._play(torch.tensor([prompt.tags["context"] for prompt in prompts]))
        for _ in range(1, self.algorithm.collection.draws):
            group = torch.arange(len(drawn) // samples).repeat_interleave(samples)
            kept = kept_rows(
                self.algorithm.collection, self.objective.shape_scores, scores, group, self._groups_of(drawn)
            )
            if (missing := wanted - len(group[kept].unique())) <= 0:
                break
            more = self._play(torch.randint(len(self.world.prompts), (missing,), generator=self.generator))
            drawn, arms = torch.cat([drawn, more[0]]), torch.cat([arms, more[1]])
            scores = {name: torch.cat([values, more[2][name]]) for name, values in scores.items()}
        batch = self._rollouts(drawn, arms, scores)
        if not self.algorithm.collection.greedy:
            return self._completed(batch, {})
        best = self.table.logits[drawn].argmax(-1)
        return self._completed(batch, self._score(drawn, best))

    def _play(self, contexts: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Contexts [B] of all samples of prompts with these contexts, the arms [B, T] played and their scores [B]."""
        contexts = contexts.repeat_interleave(self.algorithm.samples_per_prompt)
        probabilities = self.table.logits.softmax(-1)[contexts]
        arms = torch.multinomial(probabilities.flatten(0, 1), 1, generator=self.generator).view(len(contexts), -1)
        self.played += len(contexts)
        return contexts, arms, self._score(contexts, arms)

    def _score(self, contexts: Tensor, arms: Tensor) -> dict[str, Tensor]:
        played = arms[:, 0] if self.table.start.shape[1] == 1 else arms
        return self.world.sample(contexts, played, self.generator)

    def _groups_of(self, contexts: Tensor) -> dict[str, Tensor]:
        return {name: mask[contexts] for name, mask in self.of_contexts.items()}

    def _rollouts(self, contexts: Tensor, arms: Tensor, scores: dict[str, Tensor]) -> RolloutBatch:
        num_contexts = len(self.table.start)
        rows = SharedRows(
            prompt_ids=torch.arange(num_contexts)[:, None],
            prompt_lengths=torch.ones(num_contexts, dtype=torch.long),
            response_ids=arms,
            response_lengths=torch.ones(len(arms), dtype=torch.long) * arms.shape[1],
            response_mask=torch.ones_like(arms, dtype=torch.bool),
            owner=contexts,
        )
        features = nn.functional.one_hot(contexts, 2 * num_contexts).float()[:, None].expand(-1, arms.shape[1], -1)
        samples = self.algorithm.samples_per_prompt
        return RolloutBatch(
            token_ids=torch.cat([contexts[:, None], arms], 1),
            attention_mask=torch.ones(len(arms), 1 + arms.shape[1], dtype=torch.bool),
            prompt_lengths=torch.ones_like(contexts),
            response_mask=rows.response_mask,
            group=torch.arange(len(contexts) // samples).repeat_interleave(samples),
            old_logprobs=self.table.logprobs(rows)[0],
            ref_logprobs=self.table.logprobs(rows, reference=True)[0],
            scores=scores,
            groups=self._groups_of(contexts),
            values=self.critics(features) if self._has_critics else {},
            shared_rows=OwnRows.of_main(rows),
            critic_features=features if self._has_critics else None,
        )
