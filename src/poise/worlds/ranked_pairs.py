"""Ranked pairs of answers to physics problems: people and a judge who errs, and the reward model that they teach.

Gold: `physics`. What goes wrong: people rank some of the pairs, by which answer is right; a judge ranks the others by
how many steps are right, which is not the same, and errs. A reward fitted to both can be followed too far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poise.functional.score_losses import bradley_terry_loss
from poise.types import Prompt
from poise.worlds.physics import PhysicsTable

RIDGE = 1e-3  # on the rewards of choices, which comparisons leave open by a constant


class Pairs(NamedTuple):
    """Answers of the starting policy, ranked."""

    contexts: Tensor  # [P]
    chosen: Tensor  # [P, T]
    rejected: Tensor  # [P, T]


def ranked(world: PhysicsTable, count: int, *, people: float = 0.1, errors: float = 0.2, seed: int = 0) -> Pairs:
    """Pairs of answers, some ranked by the checker as people would, the others by a judge who counts right steps.

    people  share of the pairs that people rank
    errors  how often the judge prefers the answer with fewer right steps
    """
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randint(len(world.prompts), (count,), generator=generator)
    probabilities = world.start.softmax(-1)[contexts].flatten(0, 1)
    first, second = (torch.multinomial(probabilities, 1, generator=generator).view(count, -1) for _ in range(2))
    draws = generator.get_state()
    right = []
    for answers in (first, second):  # the same numbers for both
        generator.set_state(draws)
        right.append(world.sample(contexts, answers, generator)["reward"])
    by_people = torch.rand(count, generator=generator) < people
    errs = torch.rand(count, generator=generator) < errors
    steps = ((first == 0).sum(-1) - (second == 0).sum(-1)).float()
    verdict = torch.where(by_people, right[0] - right[1], torch.where(errs, -steps, steps))
    swapped = (verdict < 0)[:, None]
    kept = verdict != 0  # of equals nobody learns
    chosen, rejected = torch.where(swapped, second, first), torch.where(swapped, first, second)
    return Pairs(contexts[kept], chosen[kept], rejected[kept])


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The problems with a fitted reward in place of the checker's."""

    prompts: tuple[Prompt, ...]
    num_arms: int
    table: Tensor  # [X, T, A]

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Fitted rewards [B]."""
        return {"reward": summed(self.table, contexts, arms)}


def fitted(world: PhysicsTable, pairs: Pairs) -> RewardModel:
    """A reward for each choice at each step, summed over steps, by Bradley-Terry, standardised."""
    table = nn.Parameter(torch.zeros_like(world.start))
    optimizer = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        high, low = (summed(table, pairs.contexts, answers) for answers in (pairs.chosen, pairs.rejected))
        value = bradley_terry_loss(high, low).mean() + RIDGE * table.square().sum() / table.shape[0]
        value.backward()
        return value.item()

    optimizer.step(loss)
    found = table.detach()
    answers = torch.cat([pairs.chosen, pairs.rejected])
    sd = summed(found, pairs.contexts.repeat(2), answers).std()
    return RewardModel(world.prompts, world.num_arms, found / sd)


def summed(table: Tensor, contexts: Tensor, arms: Tensor) -> Tensor:
    """The sum [B] over tokens of a table [X, T, A] at the arms [B, T] in contexts [B]: log-probabilities, or rewards.

    >>> table = torch.tensor([[[0.0, 1.0], [0.0, 2.0]]])
    >>> summed(table, torch.tensor([0, 0]), torch.tensor([[1, 1], [0, 1]])).tolist()
    [3.0, 2.0]
    """
    return table[contexts].gather(-1, arms[..., None]).squeeze(-1).sum(-1)
