"""RL-ZVP on additions: the arms, one run of an arm, and the page."""

from __future__ import annotations

from dataclasses import replace

import torch

from poise.evaluate.figures import chart
from poise.functional.advantages import Advantages
from poise.functional.groups import in_varied_group
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.train.algorithms import DAPO, Algorithm, Collection, zvp
from poise.train.estimators import Advantage, Experience
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds.addition import AdditionByDigits, zero_variance_share

GROUP = 8
LEARNING_RATE = 0.03
POINTS = 40  # of the learning curves

# The paper's runs: clip at 0.2 and 0.28, every token the same, no KL penalty.
PLAIN = replace(DAPO, collection=Collection(), samples_per_prompt=GROUP)
DYNAMIC = replace(PLAIN, collection=Collection(keep=in_varied_group, draws=3))


def of_right_answers_alone(alpha: float) -> Algorithm:
    """RL-ZVP without what it does to prompts whose samples are all wrong: the paper's ablation "no negatives"."""
    whole = zvp(alpha, base=PLAIN)
    return replace(whole, advantage=_where_right(whole.advantage, PLAIN.advantage))


def _where_right(shaped: Advantage, plain: Advantage) -> Advantage:
    def advantage(experience: Experience) -> Advantages:
        is_right = (experience.scores > 0)[:, None]
        chosen, other = shaped(experience), plain(experience)
        return Advantages(torch.where(is_right, chosen.advantages, other.advantages), chosen.returns)

    return advantage


def arms(alpha: float) -> dict[str, Algorithm]:
    """The algorithms that are compared, by name."""
    return {
        "grpo": PLAIN,
        "dynamic-sampling": DYNAMIC,
        "zvp": zvp(alpha, base=PLAIN),
        "zvp-doubled": zvp(2 * alpha, base=PLAIN),
        "zvp-right-only": of_right_answers_alone(alpha),
    }


def attempt(arm: str, seed: int, *, alpha: float, rollouts: int) -> Outcome:
    """Train an arm until it has played its rollouts; success is computed, not sampled."""
    world = AdditionByDigits()
    trainer = TabularTrainer(
        world=world,
        algorithm=arms(alpha)[arm],
        objective=Unconstrained(),
        samples_per_step=GROUP * len(world.prompts),
        optimisation=replace(QUICK, lr=LEARNING_RATE),
        start=world.start,
        seed=seed,
    )
    played, success, index = [0], [world.success_of(trainer.probabilities)], 0
    while trainer.played < rollouts:
        trainer.step_at(index)
        index += 1
        played.append(trainer.played)
        success.append(world.success_of(trainer.probabilities))
    return _outcome(world, torch.tensor(played), torch.stack(success), trainer.probabilities, rollouts)


def _outcome(
    world: AdditionByDigits, played: torch.Tensor, success: torch.Tensor, policy: torch.Tensor, rollouts: int
) -> Outcome:
    """What the learning curve [S, X] over the rollouts played [S] comes to."""
    at = torch.linspace(0, rollouts, POINTS)
    index = (torch.searchsorted(played, at, right=True) - 1).clamp(max=len(played) - 1)
    curve = success[index].mean(-1)
    levels = [prompt.tags["level"] for prompt in world.prompts]
    of_level = {
        level: float(success[-1][[i for i, each in enumerate(levels) if each == level]].mean())
        for level in dict.fromkeys(levels)
    }
    entropy = torch.distributions.Categorical(probs=policy).entropy()
    flat = [zero_variance_share(row.tolist(), GROUP) for row in success]
    return Outcome(
        figures={
            "success": float(success[-1].mean()),
            "mean_success": float(curve.mean()),
            **{f"success_{level}": value for level, value in of_level.items()},
            "entropy": float(entropy.sum(-1).mean()),
            "zero_variance": flat[0],
            "zero_variance_after": flat[-1],
            "updates": float(len(played) - 1),
        },
        curves={"rollouts": at.tolist(), "success": curve.tolist()},
    )


COLUMNS = (
    Column(figure="success", label="right at the end", is_share=True),
    Column(figure="mean_success", label="right, mean over training", is_share=True),
    Column(figure="success_fair", label="fair problems", is_share=True),
    Column(figure="success_hard", label="hard problems", is_share=True),
    Column(figure="entropy", label="entropy, nats/answer", digits=2),
    Column(figure="zero_variance_after", label="groups without spread at the end", is_share=True),
    Column(figure="updates", label="updates", digits=0),
)


def page(results: Results, *, alpha: float, rollouts: int) -> Page:
    """What was found."""
    flat = results.estimate("grpo", "zero_variance").value
    labels = {
        "grpo": "GRPO",
        "dynamic-sampling": "dynamic sampling",
        "zvp": f"RL-ZVP, alpha {alpha:g}",
        "zvp-doubled": f"RL-ZVP, alpha {2 * alpha:g}",
        "zvp-right-only": f"RL-ZVP, alpha {alpha:g}, all-right prompts alone",
    }
    claims = [
        Claim(
            text="RL-ZVP learns more than dynamic sampling from as many rollouts (mean over training)",
            difference=results.difference("zvp", "dynamic-sampling", "mean_success"),
        ),
        Claim(
            text="RL-ZVP learns more than GRPO from as many rollouts (mean over training)",
            difference=results.difference("zvp", "grpo", "mean_success"),
        ),
        Claim(
            text="RL-ZVP is right more often than GRPO at the end",
            difference=results.difference("zvp", "grpo", "success"),
        ),
        Claim(
            text="What all-wrong prompts teach helps (RL-ZVP against the same without it, at the end)",
            difference=results.difference("zvp", "zvp-right-only", "success"),
        ),
    ]
    picture = chart(
        [results.series(arm, "rollouts", "success", label) for arm, label in labels.items()],
        name="Share of right answers over the rollouts played, by algorithm",
        across="rollouts",
        up="right answers, share",
    )
    return Page(
        name="rl-zvp",
        title="RL-ZVP against GRPO and dynamic sampling, at equal rollouts",
        intro=_INTRO.format(group=GROUP, rollouts=rollouts, flat=flat),
        columns=COLUMNS,
        rows=labels,
        claims=claims,
        pictures={"Right answers over rollouts": picture},
        extra=_EXTRA,
    )


_INTRO = """
The mechanism of [arXiv:2509.21880](https://arxiv.org/abs/2509.21880) on sums that are mostly too easy or too hard
([worlds](../worlds.md)): groups of {group} samples, {flat:.0%} of which have no spread under the starting policy. Every
arm plays {rollouts:,} rollouts. Dynamic sampling draws up to three times to fill its batch, and so has fewer updates.
How often a policy is right is computed from its table of digits, not sampled. All clip at 0.2 and 0.28, count every
token the same and have no KL penalty, as in the paper.
"""

_EXTRA = """
What the table leaves out: problems share no weights, so that nothing learned from an easy sum carries over to a hard
one. In a language model the push on all-right prompts also moves what the others depend on.
"""
