"""Group invariant learning on the world with a shortcut: the arms, one run of an arm, and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from poise.evaluate.figures import Series, chart
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.train.algorithms import PPO, Algorithm, group_invariance
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds.bandit import Floats
from poise.worlds.shortcut import ARMS as MOVES
from poise.worlds.shortcut import EASY, HARD, ShortcutWorld

PENALTIES = (0.3, 1.0, 3.0)
STRONGEST = f"invariant-{PENALTIES[-1]:g}"
AVERAGED = 0.5
BASE = replace(PPO, kl_coef=0.05)
LABELS = {
    "ppo": "PPO",
    "adaptive-kl": "PPO, KL relaxed by group alone",
    **{f"invariant-{penalty:g}": f"group invariant, penalty {penalty:g}" for penalty in PENALTIES},
}

COLUMNS = (
    Column(figure="reward", label="reward as trained"),
    Column(figure="easy", label="easy domain"),
    Column(figure="hard", label="hard domain"),
    Column(figure="variance", label="variance between domains"),
    Column(figure="shifted", label="reward where the hard domain is common"),
    Column(figure="shortcut", label="shortcut taken", is_share=True),
    Column(figure="found", label="how far the inferred groups part the easiest and the hardest cue, of 1", digits=2),
)


def algorithms() -> Mapping[str, Algorithm]:
    """The algorithms that are compared, by name."""
    return {
        "ppo": BASE,
        "adaptive-kl": group_invariance(0.0, base=BASE),
        **{f"invariant-{penalty:g}": group_invariance(penalty, base=BASE) for penalty in PENALTIES},
    }


def attempt(arm: str, seed: int, *, steps: int) -> Outcome:
    """Train a policy that does the same under every cue; what it earns in either domain is computed, not sampled."""
    world = ShortcutWorld()
    trainer = TabularTrainer(
        world=world,
        algorithm=algorithms()[arm],
        objective=Unconstrained(),
        samples_per_step=384,
        optimisation=replace(QUICK, lr=0.05, steps=steps),
        is_shared=True,
        seed=seed,
    )
    policies = []
    for index in range(steps):
        trainer.step_at(index)
        if index >= steps * (1 - AVERAGED):
            policies.append(trainer.probabilities.double().numpy())
    figures = measured(world, np.mean(policies, axis=0))
    if trainer.algorithm.collection.infer_groups is not None:
        figures["found"] = _separation(trainer, world)
    return Outcome(figures=figures)


def measured(world: ShortcutWorld, policy: Floats) -> dict[str, float]:
    """What a policy [X, A] earns, exactly."""
    domains = world.domain_rewards(policy)
    return {
        "reward": world.reward_of(policy),
        "easy": float(domains[EASY]),
        "hard": float(domains[HARD]),
        "variance": world.variance_of(policy),
        "shifted": world.shifted().reward_of(policy),
        "shortcut": float(policy[:, MOVES.index("shortcut")].mean()),
    }


def _separation(trainer: TabularTrainer, world: ShortcutWorld) -> float:
    """The membership in the worse group of the cue likeliest to be hard, minus that of the one likeliest to be easy."""
    with torch.no_grad():
        features = torch.nn.functional.one_hot(torch.arange(len(world.hard)), 2 * len(world.hard)).float()[:, None]
        better = torch.sigmoid(trainer.critics(features)["group membership"][:, 0])
    hard = torch.tensor(world.hard)
    return float(better[hard.argmin()] - better[hard.argmax()])


@cache
def best(penalty: float) -> dict[str, float]:
    """What the best policy that does the same under every cue earns under mean reward - penalty * variance."""
    world = ShortcutWorld()
    candidates = [_mixing(world, share) for share in np.linspace(0, 1, 1001)]
    values = [world.reward_of(policy) - penalty * world.variance_of(policy) for policy in candidates]
    return measured(world, candidates[int(np.argmax(values))])


def _mixing(world: ShortcutWorld, share: float) -> Floats:
    return np.tile([share, 1 - share, 0.0], (len(world.hard), 1))


def page(results: Results, *, steps: int) -> Page:
    """What was found."""
    claims = [
        Claim(
            text="Group invariant learning earns more in the hard domain than PPO (largest penalty)",
            difference=results.difference(STRONGEST, "ppo", "hard"),
        ),
        Claim(
            text="It earns more than PPO where the hard domain is common, which training did not show",
            difference=results.difference(STRONGEST, "ppo", "shifted"),
        ),
        Claim(
            text="Its domains are closer together than PPO's",
            difference=results.difference("ppo", STRONGEST, "variance"),
        ),
        Claim(
            text="The weights of the groups matter beside the relaxed KL (hard domain)",
            difference=results.difference(STRONGEST, "adaptive-kl", "hard"),
        ),
        Claim(
            text="The KL relaxed by group helps by itself (hard domain, against PPO)",
            difference=results.difference("adaptive-kl", "ppo", "hard"),
        ),
        Claim(
            text="It gives up reward as trained",
            difference=results.difference("ppo", STRONGEST, "reward"),
            is_papers=False,
        ),
    ]
    return Page(
        name="group-invariant",
        title="Group invariant learning where a shortcut pays in one of two hidden domains",
        intro=_INTRO.format(steps=steps),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        pictures={"Reward by domain over the penalty, learned and exact": _picture(results)},
        extra=_EXTRA,
    )


def _picture(results: Results) -> str:
    fine = np.linspace(0, PENALTIES[-1], 61)
    series = [
        Series(label=f"{label}, exact", x=fine.tolist(), y=[best(float(p))[figure] for p in fine], is_dashed=True)
        for figure, label in (("hard", "hard domain"), ("shifted", "hard domain common"))
    ]
    arms = {0.0: "adaptive-kl"} | {penalty: f"invariant-{penalty:g}" for penalty in PENALTIES}
    for figure, label in (("hard", "hard domain"), ("shifted", "hard domain common")):
        found = [results.estimate(arm, figure) for arm in arms.values()]
        series.append(
            Series(
                label=f"{label}, learned",
                x=list(arms),
                y=[each.value for each in found],
                low=[each.value if each.low is None else each.low for each in found],
                high=[each.value if each.high is None else each.high for each in found],
                is_line=False,
            )
        )
    return chart(
        series, name="Reward by domain over the penalty", across="penalty on the variance between groups", up="reward"
    )


_INTRO = """
The mechanism of [arXiv:2310.11971](https://arxiv.org/abs/2310.11971) on the world with a shortcut
([worlds](../worlds.md)): four cues behind which the hard domain stands more and more often, and nobody is told which
domain it was. The policy does the same under every cue, so that what the frequent domain teaches is done in the rare
one, as in a model that cannot tell them apart. The classifier of groups sees cues and rewards. {steps} steps of 384
samples, PPO with a KL coefficient of 0.05; rewards are computed, not sampled.
"""

_EXTRA = """
To relax the KL penalty of the worse group alone only lets the policy follow the average further, into the shortcut; the
paper's ablation has it help, beside the weights.

Dashed lines are the best policies for mean reward less penalty times the variance between the *true* domains. The
classifier knows cues alone, which tell the domains only in part: its groups lie closer together than the domains do, so
that the same penalty moves the policy less. With a table of its own for every cue, weights by group change nothing:
what is best under a cue does not depend on how much the cue counts.
"""
