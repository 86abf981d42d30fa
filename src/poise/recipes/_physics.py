"""PPO, DPO and ReMax on physics problems: the feedback, one run of an arm, and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from poise.evaluate.figures import chart
from poise.functional.preference_losses import dpo_loss
from poise.functional.score_losses import bradley_terry_loss
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.train.algorithms import PPO, REMAX, Algorithm
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer, TabularWorld
from poise.types import Prompt
from poise.worlds.physics import PhysicsTable

BUDGETS = (0.25, 0.5, 1.0)  # nats of KL(policy || start) per answer
PEOPLE = 0.1  # share of the pairs that people rank: by the checker, where it parts the two answers
JUDGES_ERRORS = 0.2  # how often the model that ranks the rest prefers the answer with fewer right steps
BETA, RIDGE = 0.1, 1e-3
SAMPLES = 160  # of a step of PPO and ReMax
GRID = np.linspace(0.0, 2.5, 26)  # of the picture, nats

LABELS = {
    "ppo": "PPO on the reward model",
    "remax": "ReMax on the reward model",
    "dpo": "DPO on the same pairs",
    "ppo-checked": "PPO on the checker",
    "remax-checked": "ReMax on the checker",
}
COLUMNS = (
    *(Column(figure=f"accuracy_{budget:g}", label=f"right at {budget:g} nats", is_share=True) for budget in BUDGETS),
    Column(figure=f"steps_{BUDGETS[-1]:g}", label=f"steps right at {BUDGETS[-1]:g} nats", is_share=True),
    Column(figure="accuracy", label="right at the end", is_share=True),
    Column(figure="kl", label="KL at the end, nats/answer", digits=2),
    Column(figure="start", label="right at the start", is_share=True),
)


class Pairs(NamedTuple):
    """Answers of the starting policy, ranked."""

    contexts: Tensor  # [P]
    chosen: Tensor  # [P, T]
    rejected: Tensor  # [P, T]


def ranked(world: PhysicsTable, count: int, seed: int) -> Pairs:
    """Pairs of answers: a tenth ranked by the checker as people would, the others by a judge who counts right steps."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randint(len(world.prompts), (count,), generator=generator)
    probabilities = world.start.softmax(-1)[contexts].flatten(0, 1)
    first, second = (torch.multinomial(probabilities, 1, generator=generator).view(count, -1) for _ in range(2))
    draws = generator.get_state()
    right = []
    for answers in (first, second):  # the same numbers for both
        generator.set_state(draws)
        right.append(world.sample(contexts, answers, generator)["reward"])
    by_people = torch.rand(count, generator=generator) < PEOPLE
    errs = torch.rand(count, generator=generator) < JUDGES_ERRORS
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
        return {"reward": _summed(self.table, contexts, arms)}


def fitted(world: PhysicsTable, pairs: Pairs) -> RewardModel:
    """A reward for each choice at each step, summed over steps, by Bradley-Terry; in units of its spread."""
    table = nn.Parameter(torch.zeros_like(world.start))
    optimizer = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        high, low = (_summed(table, pairs.contexts, answers) for answers in (pairs.chosen, pairs.rejected))
        value = bradley_terry_loss(high, low).mean() + RIDGE * table.square().sum() / table.shape[0]
        value.backward()
        return value.item()

    optimizer.step(loss)
    found = table.detach()
    answers = torch.cat([pairs.chosen, pairs.rejected])
    spread = _summed(found, pairs.contexts.repeat(2), answers).std()
    return RewardModel(world.prompts, world.num_arms, found / spread)


def _summed(table: Tensor, contexts: Tensor, arms: Tensor) -> Tensor:
    return table[contexts].gather(-1, arms[..., None]).squeeze(-1).sum(-1)


def by_policy_gradient(
    world: TabularWorld, start: Tensor, algorithm: Algorithm, steps: int, seed: int
) -> Iterator[Tensor]:
    """The policy [X, T, A] after each step of an algorithm."""
    trainer = TabularTrainer(
        world=world,
        algorithm=replace(algorithm, kl_coef=0.02),
        objective=Unconstrained(),
        samples_per_step=SAMPLES,
        optimisation=replace(QUICK, lr=0.03),
        start=start,
        seed=seed,
    )
    for index in range(steps):
        trainer.step_at(index)
        yield trainer.probabilities


def by_preferences(start: Tensor, pairs: Pairs, steps: int) -> Iterator[Tensor]:
    """The policy [X, T, A] after each step of DPO on all pairs."""
    logits = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([logits], lr=0.03, betas=(0.9, 0.95), weight_decay=0.0)
    reference = start.log_softmax(-1)
    for _ in range(steps):
        policy = logits.log_softmax(-1)
        sums = [
            _summed(table, pairs.contexts, a) for table in (policy, reference) for a in (pairs.chosen, pairs.rejected)
        ]
        optimizer.zero_grad()
        dpo_loss(*sums, beta=BETA).losses.mean().backward()
        optimizer.step()
        yield logits.detach().softmax(-1)


def attempt(arm: str, seed: int, *, pairs: int, steps: int) -> Outcome:
    """Train one arm; how often each of its policies is right is computed, and read off at equal KL."""
    world = PhysicsTable(seed=seed)
    feedback = ranked(world, pairs, seed)

    def on_fitted(train: Callable[..., Iterator[Tensor]]) -> Iterator[Tensor]:
        return train(fitted(world, feedback))

    makers: dict[str, Callable[[], Iterator[Tensor]]] = {
        "dpo": lambda: by_preferences(world.start, feedback, steps),
    }
    for name, algorithm in (("ppo", PPO), ("remax", REMAX)):
        train = partial(by_policy_gradient, start=world.start, algorithm=algorithm, steps=steps, seed=seed)
        makers[name] = partial(on_fitted, train)
        makers[f"{name}-checked"] = partial(train, world)
    start = world.start.softmax(-1)
    policies = [start, *makers[arm]()]
    kl = np.maximum.accumulate([divergence(policy, start) for policy in policies])
    accuracy = np.array([world.accuracy_of(policy) for policy in policies])
    right = np.array([world.steps_right(policy) for policy in policies])
    at = {f"accuracy_{budget:g}": float(np.interp(budget, kl, accuracy)) for budget in BUDGETS}
    return Outcome(
        figures={
            **at,
            f"steps_{BUDGETS[-1]:g}": float(np.interp(BUDGETS[-1], kl, right)),
            "start": float(accuracy[0]),
            "accuracy": float(accuracy[-1]),
            "kl": float(kl[-1]),
        },
        curves={"kl": GRID.tolist(), "accuracy": np.interp(GRID, kl, accuracy).tolist()},
    )


def divergence(policy: Tensor, start: Tensor) -> float:
    """KL(policy || start) per answer in nats, exactly, of tables [X, T, A]."""
    return float(torch.special.xlogy(policy, policy / start).sum((1, 2)).mean())


def page(results: Results, *, pairs: int, steps: int) -> Page:
    """What was found."""
    at = f"accuracy_{BUDGETS[1]:g}"
    claims = [
        *(
            Claim(
                text=f"{LABELS[arm].split(' on ')[0]} is right more often than the start, at {BUDGETS[1]:g} nats",
                difference=results.contrast(arm, at, "start"),
            )
            for arm in ("ppo", "dpo", "remax")
        ),
        Claim(
            text=f"PPO is right more often than DPO at {BUDGETS[1]:g} nats",
            difference=results.difference("ppo", "dpo", at),
        ),
        Claim(
            text=f"PPO is right more often than ReMax at {BUDGETS[1]:g} nats",
            difference=results.difference("ppo", "remax", at),
        ),
        Claim(
            text=f"The checker as reward is worth more than the reward model (ReMax, {BUDGETS[-1]:g} nats)",
            difference=results.difference("remax-checked", "remax", f"accuracy_{BUDGETS[-1]:g}"),
            is_papers=False,
        ),
    ]
    picture = chart(
        [results.series(arm, "kl", "accuracy", label) for arm, label in LABELS.items()],
        name="Right answers over KL to the start, by method",
        across="KL to the start, nats an answer",
        up="right answers, share",
    )
    return Page(
        name="remax-physics",
        title="PPO, DPO and ReMax on physics problems, at equal KL",
        intro=_INTRO.format(pairs=pairs, steps=steps, people=PEOPLE, errors=JUDGES_ERRORS),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        pictures={"Right answers over KL to the start": picture},
        extra=_EXTRA,
    )


_INTRO = """
After [arXiv:2412.06827](https://arxiv.org/abs/2412.06827), which trains 7B models on school physics: ten kinds of
problems with checked answers ([worlds](../worlds.md)), a table of three steps (formula, power of ten, unit) in place of
the model. {pairs:,} pairs of the start's answers are ranked: {people:.0%} as people would, by which answer is right,
the others by a judge who prefers the answer with more right steps and errs in {errors:.0%} of them. PPO and ReMax learn
from a reward model fitted to the pairs, DPO from the pairs themselves, {steps} steps each. Each is read off where its
policy has moved equally far from the start; a method that never moves as far counts with where it ended. Every seed has
a start, problems and feedback of its own.
"""

_EXTRA = """
The paper reports PPO (on Mistral) as its best model; the tests above ask for that order at equal KL, which the paper
does not hold fixed. Look in the picture at where right answers stop rising: a reward model can be followed too far, the
checker cannot. How far a method should go is as much part of it as its gradient.
"""
