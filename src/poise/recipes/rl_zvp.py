"""RL-ZVP at equal rollouts: learn also from prompts whose samples are all right, or all wrong.

    sums, most too easy or too hard -> GRPO, dynamic sampling, RL-ZVP, seeds each -> right answers over rollouts

"No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via Entropy-Guided Advantage
Shaping", arXiv:2509.21880. The paper trains models of 1.7B and 8B parameters on mathematics; here a table of digits is
trained on additions, whose success is known exactly.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, curves, recipe
from poise.functional.advantages import Advantages
from poise.functional.groups import in_varied_group
from poise.train.algorithms import DAPO, Algorithm, Collection, zvp
from poise.train.estimators import Experience
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds.addition import SUCCESS, AdditionByDigits, zero_variance_share

CARD = MethodCard(
    title="RL-ZVP against GRPO and dynamic sampling, at equal rollouts",
    paper="arXiv:2509.21880",
    reported="0.97 to 8.61 points above GRPO (Qwen3-8B, six sets, Acc@8)",
    feedback="verifier",
    form="right or wrong",
    signal="the verifier itself",
    optimiser="GRPO, zero-variance prompts shaped by entropy",
    model="a table of digits",
    data="additions of three levels",
)
GROUP, POINTS = 8, 40  # samples of a prompt; of a learning curve
# The paper's runs: clip at 0.2 and 0.28, every token the same, no KL penalty.
GRPO = replace(DAPO, collection=Collection(), samples_per_prompt=GROUP)
DYNAMIC_SAMPLING = replace(GRPO, collection=Collection(keep=in_varied_group, draws=3))


@recipe(CARD, quick={"rollouts": 640}, seeds=10)
def rl_zvp(*, alpha: float = 0.1, rollouts: int = 12_800) -> Study:
    """Train on additions by GRPO, dynamic sampling and RL-ZVP, and print the table.

    Args:
        alpha: weight of the entropy in the advantages of zero-variance prompts; the paper's best is 0.1.
        rollouts: answers that each arm may sample in all.
    """
    flat = zero_variance_share(AdditionByDigits().problems.success, GROUP)
    return Study(
        arms={
            "grpo": GRPO,
            "dynamic-sampling": DYNAMIC_SAMPLING,
            "zvp": zvp(alpha, base=GRPO),
            "zvp-doubled": zvp(2 * alpha, base=GRPO),
            "zvp-right-only": positives_only(zvp(alpha, base=GRPO)),
        },
        trial=lambda algorithm, seed: learn(algorithm, seed, rollouts),
        labels={"zvp": f"RL-ZVP, alpha {alpha:g}", "zvp-doubled": f"RL-ZVP, alpha {2 * alpha:g}"},
        metrics=[
            Metric(name="success", label="right at the end", unit="share"),
            Metric(name="mean_success", label="right, mean over training", unit="share"),
            *(Metric(name=f"success_{level}", label=f"{level} problems", unit="share") for level in SUCCESS),
            Metric(name="entropy", label="entropy", unit="nats/answer"),
            Metric(name="zero_variance_after", label="zero-variance groups at the end", unit="share"),
            Metric(name="updates", label="updates"),
        ],
        claims=[
            Claim(
                text="Of equal rollouts it makes more than dynamic sampling does",
                metric="mean_success",
                higher="zvp",
                lower="dynamic-sampling",
            ),
            Claim(
                text="Of equal rollouts it makes more than GRPO does", metric="mean_success", higher="zvp", lower="grpo"
            ),
            Claim(text="It ends above GRPO", metric="success", higher="zvp", lower="grpo"),
            Claim(text="All-wrong prompts teach something", metric="success", higher="zvp", lower="zvp-right-only"),
        ],
        plots=[
            Plot(
                title="Right answers over rollouts",
                across="rollouts",
                up="right answers, share",
                draw=curves("rollouts", "success"),
            )
        ],
        notes=f"""
Sums that are mostly too easy or too hard ([worlds](../worlds.md)): of groups of {GROUP} samples {flat:.0%} have zero
variance under the starting policy. Every arm plays {rollouts:,} rollouts. Dynamic sampling draws up to three times to
fill its batch, and so has fewer updates. How often a policy is right is computed from its table, not sampled.""",
        discussion="""
Problems share no weights here, so that nothing learned from an easy sum carries over to a hard one. In a language model
the push on all-right prompts also moves what the others depend on.""",
    )


def learn(algorithm: Algorithm, seed: int, rollouts: int) -> Trial:
    """Train until all rollouts are played; success is computed exactly after every step."""
    world = AdditionByDigits()
    trainer = TabularTrainer(
        world=world,
        algorithm=algorithm,
        objective=Unconstrained(),
        samples_per_step=GROUP * len(world.prompts),
        optimisation=replace(QUICK, lr=0.03),
        start=world.start,
        seed=seed,
    )
    played, success = [0], [world.success_of(trainer.probabilities)]
    while trainer.played < rollouts:
        trainer.step_at(len(played) - 1)
        played.append(trainer.played)
        success.append(world.success_of(trainer.probabilities))
    at = torch.linspace(0, rollouts, POINTS)
    last = (torch.searchsorted(torch.tensor(played), at, right=True) - 1).clamp(max=len(played) - 1)
    curve = torch.stack(success)[last].mean(-1)
    levels = [prompt.tags["level"] for prompt in world.prompts]
    of_level = {level: [i for i, each in enumerate(levels) if each == level] for level in SUCCESS}
    entropy = torch.distributions.Categorical(probs=trainer.probabilities).entropy()
    return Trial(
        metrics={
            "success": float(success[-1].mean()),
            "mean_success": float(curve.mean()),
            **{f"success_{level}": float(success[-1][rows].mean()) for level, rows in of_level.items()},
            "entropy": float(entropy.sum(-1).mean()),
            "zero_variance": zero_variance_share(success[0].tolist(), GROUP),
            "zero_variance_after": zero_variance_share(success[-1].tolist(), GROUP),
            "updates": float(len(played) - 1),
        },
        curves={"rollouts": at.tolist(), "success": curve.tolist()},
    )


def positives_only(shaped: Algorithm) -> Algorithm:
    """RL-ZVP without what it does to prompts whose samples are all wrong: the paper's ablation "no negatives"."""

    def advantage(experience: Experience) -> Advantages:
        is_right = (experience.scores > 0)[:, None]
        chosen, other = shaped.advantage(experience), GRPO.advantage(experience)
        return Advantages(torch.where(is_right, chosen.advantages, other.advantages), chosen.returns)

    return replace(shaped, advantage=advantage)
