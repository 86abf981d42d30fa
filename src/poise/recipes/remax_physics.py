"""PPO, DPO and ReMax on physics problems whose answers are checked: which is right most often at equal KL.

    start -> ranked pairs -> reward model -> PPO, ReMax;   the same pairs -> DPO;   right answers over KL

Avinash Anand et al., "Enhancing LLMs for Physics Problem-Solving using Reinforcement Learning with Human-AI Feedback",
arXiv:2412.06827, whose three methods and mixed feedback are taken over; ReMax is Ziniu Li et al., arXiv:2310.10505. A
table of solution steps stands for the language model, and a checker of numbers and units for its graders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, curves, recipe
from poise.functional.preference_losses import dpo_loss
from poise.train.algorithms import PPO, REMAX, Algorithm
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer, TabularWorld
from poise.worlds.physics import PhysicsTable
from poise.worlds.ranked_pairs import Pairs, fitted, ranked, summed

CARD = MethodCard(
    title="PPO, DPO and ReMax on physics problems, at equal KL",
    paper="arXiv:2412.06827, arXiv:2310.10505",
    reported="PPO best (Mistral-7B, reasoning score 0.74)",
    feedback="simulated people and a judge who errs; a checker",
    form="comparisons; right or wrong",
    signal="a reward model, the comparisons themselves, or the checker",
    optimiser="PPO, ReMax, DPO",
    regulariser="KL",
    model="a table of solution steps",
    data="ten kinds of physics problems",
)
BUDGETS = (0.25, 0.5, 1.0)  # nats of KL(policy || start) per answer
PEOPLE, ERRORS = 0.1, 0.2  # share of the pairs that people rank; how often the judge of the others errs
GRID, AT = np.linspace(0.0, 2.5, 26), "accuracy_0.5"  # nats of the picture; what claims are read off


@recipe(CARD, quick={"pairs": 200, "steps": 10}, seeds=10)
def remax_physics(*, pairs: int = 600, steps: int = 200) -> Study:
    """Train by PPO, DPO and ReMax on the same feedback, and print how often each is right at equal KL.

    Args:
        pairs: pairs of answers that are ranked.
        steps: updates of each run.
    """

    def trial(arm: tuple[Algorithm | None, bool], seed: int) -> Trial:
        (algorithm, is_checked), world = arm, PhysicsTable(seed=seed)
        feedback = ranked(world, pairs, people=PEOPLE, errors=ERRORS, seed=seed)
        if algorithm is None:
            learned = by_preferences(world.start, feedback, steps)
        else:
            reward = world if is_checked else fitted(world, feedback)
            learned = by_policy_gradient(reward, world.start, algorithm, steps, seed)
        return read_off(world, [world.start.softmax(-1), *learned])

    return Study(
        arms={
            "ppo": (PPO, False),
            "remax": (REMAX, False),
            "dpo": (None, False),
            "ppo-checked": (PPO, True),
            "remax-checked": (REMAX, True),
        },
        trial=trial,
        labels={
            "ppo": "PPO on the reward model",
            "remax": "ReMax on the reward model",
            "dpo": "DPO on the same pairs",
            "ppo-checked": "PPO on the checker",
            "remax-checked": "ReMax on the checker",
        },
        metrics=[
            *(Metric(name=f"accuracy_{kl:g}", label=f"right at {kl:g} nats", unit="share") for kl in BUDGETS),
            Metric(name="steps_1", label="steps right at 1 nats", unit="share"),
            Metric(name="accuracy", label="right at the end", unit="share"),
            Metric(name="kl", label="KL at the end", unit="nats/answer"),
            Metric(name="start", label="right at the start", unit="share"),
        ],
        claims=[
            *(
                Claim(text=f"{name} is right more often than the start, at 0.5 nats",
                      metric=AT, higher=arm, lower=arm, lower_metric="start")
                for arm, name in (("ppo", "PPO"), ("dpo", "DPO"), ("remax", "ReMax"))
            ),
            Claim(text="PPO is right more often than DPO at 0.5 nats", metric=AT, higher="ppo", lower="dpo"),
            Claim(text="PPO is right more often than ReMax at 0.5 nats", metric=AT, higher="ppo", lower="remax"),
            Claim(text="The checker is worth more than the reward model (ReMax, 1 nats)", metric="accuracy_1",
                  higher="remax-checked", lower="remax", source="ours"),
        ],
        plots=[Plot(title="Right answers over KL to the start", across="KL to the start, nats an answer",
                    up="right answers, share", draw=curves("kl", "accuracy"))],
        notes=f"""
Ten kinds of problems with checked answers ([worlds](../worlds.md)), a table of three steps (formula, power of ten,
unit) in place of the model. {pairs:,} pairs of the start's answers are ranked: {PEOPLE:.0%} as people would, by which
answer is right, the others by a judge who prefers more right steps and errs in {ERRORS:.0%} of them. {steps} steps
each. Each method is read off where its policy has moved equally far; one that never moves as far counts with its end.
""",
        discussion="""
The paper's order is tested at equal KL, which the paper does not hold fixed. Where right answers stop rising in the
picture, a reward model was followed too far; how far a method should go is as much part of it as its gradient.
""",
    )  # fmt: skip


def by_policy_gradient(
    world: TabularWorld, start: Tensor, algorithm: Algorithm, steps: int, seed: int
) -> Iterator[Tensor]:
    """The policy [X, T, A] after each step of an algorithm."""
    trainer = TabularTrainer(
        world=world, algorithm=replace(algorithm, kl_coef=0.02), objective=Unconstrained(), samples_per_step=160,
        optimisation=replace(QUICK, lr=0.03), start=start, seed=seed,
    )  # fmt: skip
    for index in range(steps):
        trainer.step_at(index)
        yield trainer.probabilities


def by_preferences(start: Tensor, pairs: Pairs, steps: int, beta: float = 0.1) -> Iterator[Tensor]:
    """The policy [X, T, A] after each step of DPO on all pairs."""
    logits = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([logits], lr=0.03, betas=(0.9, 0.95), weight_decay=0.0)
    sides, reference = (pairs.chosen, pairs.rejected), start.log_softmax(-1)
    for _ in range(steps):
        tables = (logits.log_softmax(-1), reference)
        optimizer.zero_grad()
        dpo_loss(*(summed(t, pairs.contexts, a) for t in tables for a in sides), beta=beta).losses.mean().backward()
        optimizer.step()
        yield logits.detach().softmax(-1)


def read_off(world: PhysicsTable, policies: list[Tensor]) -> Trial:
    """How often the policies along a training are right, exactly, at equal KL to the first."""
    start = policies[0]
    moved = [float(torch.special.xlogy(policy, policy / start).sum((1, 2)).mean()) for policy in policies]
    kl = np.maximum.accumulate(moved)
    accuracy = np.array([world.accuracy_of(policy) for policy in policies])
    steps = np.array([world.steps_right(policy) for policy in policies])
    at = {f"accuracy_{budget:g}": float(np.interp(budget, kl, accuracy)) for budget in BUDGETS}
    ends = {"start": float(accuracy[0]), "accuracy": float(accuracy[-1]), "kl": float(kl[-1])}
    return Trial(
        metrics=at | {"steps_1": float(np.interp(1.0, kl, steps))} | ends,
        curves={"kl": GRID.tolist(), "accuracy": np.interp(GRID, kl, accuracy).tolist()},
    )
