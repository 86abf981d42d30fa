"""On-policy training of a table of logits: the trainer of language models, one token per response and no model.

What an algorithm and an objective do is the trainer's own code: `step`, `estimate`, `select` and `update` are
inherited. Only the edges differ: a response is an arm drawn from the table, its scores come from a world, and a critic
is a number for each context and channel. A step takes milliseconds, so that every algorithm can be held against a known
optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from poise.models.shared_rows import OwnRows, SharedRows
from poise.train.algorithms import Algorithm
from poise.train.objectives import Objective
from poise.train.on_policy import OnPolicyTrainer, Optimisation
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
        """Scores [B] by channel of playing `arms` [B] in `contexts` [B]."""
        ...


class TablePolicy:
    """A softmax policy with a logit for each context and arm, and the one it began with as its reference.

    It has what the trainer asks of a policy; a prompt is one token, its context, and a response another, its arm.
    """

    def __init__(self, start: Tensor):
        self.start, self.logits, self.version = start, nn.Parameter(start.clone()), 0
        self.trunk = SimpleNamespace(width=len(start))
        self.backbone = SimpleNamespace(device=start.device, renderer=lambda **_: None)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The table."""
        return {"logits": self.logits}

    def logprobs(self, rows: SharedRows, *, reference: bool = False, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, 1] in nats of the arms played."""
        table = self.start if reference else self.logits
        logprobs = (table[rows.prompt_ids[rows.owner, 0]] / temperature).log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1, keepdim=True)
        return logprobs.gather(-1, rows.response_ids), entropies.detach()


QUICK = Optimisation(lr=0.2, critic_lr=0.2, critic_steps=1, max_norm=None)


class TabularTrainer(OnPolicyTrainer):
    """Steps of any algorithm under any objective on a table that begins with `start` [X, A], or with equal logits.

    `samples_per_step` responses are drawn in a step: `algorithm.samples_per_prompt` for each prompt, and every context
    equally often. Prompts that an algorithm does not keep are left out and not replaced.
    """

    def __init__(
        self,
        *,
        world: TabularWorld,
        algorithm: Algorithm,
        objective: Objective,
        samples_per_step: int = 96,
        optimisation: Optimisation = QUICK,
        start: Tensor | None = None,
        seed: int = 0,
    ):
        contexts = len(world.prompts)
        prompts = tuple(world.prompts) * max(1, samples_per_step // algorithm.samples_per_prompt // contexts)
        self.world, self.generator = world, torch.Generator().manual_seed(seed)
        self.table = TablePolicy(torch.zeros(contexts, world.num_arms) if start is None else start)
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

    @property
    def probabilities(self) -> Tensor:
        """The policy [X, A]."""
        return self.table.logits.detach().softmax(-1)

    @torch.no_grad()
    def collect(self, prompts: Sequence[Prompt]) -> RolloutBatch:
        """Play an arm for every sample of every prompt, and score it."""
        samples, probabilities = self.algorithm.samples_per_prompt, self.probabilities
        contexts = torch.tensor([prompt.tags["context"] for prompt in prompts]).repeat_interleave(samples)
        arms = torch.multinomial(probabilities[contexts], 1, generator=self.generator)
        played = SharedRows(
            prompt_ids=torch.arange(len(probabilities))[:, None],
            prompt_lengths=torch.ones(len(probabilities), dtype=torch.long),
            response_ids=arms,
            response_mask=torch.ones_like(arms, dtype=torch.bool),
            owner=contexts,
        )
        features = nn.functional.one_hot(contexts, 2 * len(probabilities)).float()[:, None]
        batch = RolloutBatch(
            token_ids=torch.cat([contexts[:, None], arms], 1),
            attention_mask=torch.ones(len(arms), 2, dtype=torch.bool),
            prompt_lengths=torch.ones_like(contexts),
            response_mask=played.response_mask,
            group=torch.arange(len(prompts)).repeat_interleave(samples),
            old_logprobs=self.table.logprobs(played)[0],
            ref_logprobs=self.table.logprobs(played, reference=True)[0],
            scores=self.world.sample(contexts, arms[:, 0], self.generator),
            values=self.critics(features) if self._has_critics else {},
            extra_inputs={"rows": OwnRows.of_main(played), "critic_features": features},
        )
        if not self.algorithm.collection.greedy:
            return self._completed(batch, {})
        best = probabilities[contexts].argmax(-1)
        return self._completed(batch, self.world.sample(contexts, best, self.generator))
