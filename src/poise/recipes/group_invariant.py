"""Group invariant learning: the same return in groups that nobody named, where a shortcut pays in one of them.

    two hidden domains -> PPO, relaxed KL, group invariant learning, seeds each -> reward by domain and under a shift

Rui Zheng et al., "Improving Generalization of Alignment with Human Preferences through Group Invariant Learning",
ICLR 2024, arXiv:2310.11971. The paper trains Llama-2-7B on dialogues and summaries; here the domains are known exactly,
though not to who learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, over, recipe
from poise.train.algorithms import PPO, Algorithm, group_invariance
from poise.train.objectives import Unconstrained
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds.shortcut import ShortcutWorld

CARD = MethodCard(
    title="Group invariant learning where a shortcut pays in one of two hidden domains",
    paper="arXiv:2310.11971",
    reported="wins against PPO, more of them out of distribution (Llama-2-7B)",
    feedback="exact gold",
    form="rewards",
    signal="the rewards, and groups inferred from them",
    optimiser="PPO with weights by group",
    regulariser="KL, relaxed for the worse group",
    model="one table row for all cues",
    data="cues behind which two domains stand",
)
PENALTIES = (0.3, 1.0, 3.0)
STRONGEST = "invariant-3"
BASE = replace(PPO, kl_coef=0.05)


@recipe(CARD, quick={"steps": 10}, seeds=10)
def group_invariant(*, steps: int = 300) -> Study:
    """Train with and without group invariance, and print what is earned in either domain.

    Args:
        steps: updates of each run.
    """
    invariant = {f"invariant-{penalty:g}": penalty for penalty in PENALTIES}
    shift, relaxed = "where the hard domain is common", "PPO, KL relaxed by group alone"
    return Study(
        arms={"ppo": BASE, "adaptive-kl": group_invariance(0.0, base=BASE)}
        | {arm: group_invariance(penalty, base=BASE) for arm, penalty in invariant.items()},
        trial=lambda algorithm, seed: learn(algorithm, seed, steps),
        labels={"ppo": "PPO", "adaptive-kl": relaxed}
        | {arm: f"group invariant, penalty {penalty:g}" for arm, penalty in invariant.items()},
        metrics=[
            Metric(name="reward", label="reward as trained"),
            Metric(name="easy", label="easy domain"),
            Metric(name="hard", label="hard domain"),
            Metric(name="variance", label="variance between domains"),
            Metric(name="shifted", label=f"reward {shift}"),
            Metric(name="shortcut", label="shortcut taken", unit="share"),
            Metric(name="found", label="how far the inferred groups part the easiest and the hardest cue, of 1"),
        ],
        claims=[
            Claim(text="It earns more in the hard domain than PPO", metric="hard", higher=STRONGEST, lower="ppo"),
            Claim(text=f"It earns more {shift}, not seen in training", metric="shifted", higher=STRONGEST, lower="ppo"),
            Claim(text="Its domains are closer together", metric="variance", higher="ppo", lower=STRONGEST),
            Claim(text="Weights by group matter beside KL", metric="hard", higher=STRONGEST, lower="adaptive-kl"),
            Claim(text="KL relaxed by group helps by itself", metric="hard", higher="adaptive-kl", lower="ppo"),
            Claim(text="It gives up reward", metric="reward", higher="ppo", lower=STRONGEST, source="ours"),
        ],
        plots=[
            Plot(
                title="Reward by domain over the penalty, learned and exact",
                across="penalty on the variance between groups",
                up="reward",
                draw=over({"adaptive-kl": 0.0} | invariant, ["hard", "shifted"], known=exact),
            )
        ],
        notes=f"""
Four cues behind which the hard domain stands more and more often ([worlds](../worlds.md)), and nobody is told which
domain it was. The policy does the same under every cue, so that what the frequent domain teaches is done in the rare
one, as in a model that cannot tell them apart. The classifier of groups sees cues and rewards. {steps} steps of 384
samples, PPO with a KL coefficient of 0.05; rewards are computed, not sampled.""",
        discussion="""
Claims of "it" are of the largest penalty. To relax the KL of the worse group alone lets the policy follow the average
further, into the shortcut; the paper's ablation has it help, beside the weights.

Dashed lines are the best policies for mean reward less penalty times the variance between the *true* domains. Cues tell
the domains only in part: the inferred groups lie closer together than the domains do, so that the same penalty moves
the policy less. A table of its own for every cue would not change with weights by group.""",
        pilots=["A penalty of 0.1 earned less than PPO in the hard domain, which is why the default is 3."],
    )


def learn(algorithm: Algorithm, seed: int, steps: int) -> Trial:
    """Train a policy that does the same under every cue; what it earns in either domain is computed exactly."""
    world = ShortcutWorld()
    trainer = TabularTrainer(
        world=world,
        algorithm=algorithm,
        objective=Unconstrained(),
        samples_per_step=384,
        optimisation=replace(QUICK, lr=0.05, steps=steps),
        is_shared=True,
        seed=seed,
    )
    metrics = world.measure(trainer.run(steps).policy)
    has_groups = algorithm.collection.infer_groups is not None
    return Trial(metrics=metrics | ({"found": separation(trainer, world)} if has_groups else {}))


def separation(trainer: TabularTrainer, world: ShortcutWorld) -> float:
    """The membership in the worse group of the cue likeliest to be hard, minus that of the one likeliest to be easy."""
    with torch.no_grad():
        features = torch.nn.functional.one_hot(torch.arange(len(world.hard)), 2 * len(world.hard)).float()[:, None]
        better = torch.sigmoid(trainer.critics(features)["group membership"][:, 0])
    hard = torch.tensor(world.hard)
    return float(better[hard.argmin()] - better[hard.argmax()])


def exact() -> Mapping[str, tuple[list[float], list[float]]]:
    """What the best policies for each penalty earn."""
    world, fine = ShortcutWorld(), np.linspace(0, PENALTIES[-1], 61).tolist()
    best = [world.measure(world.best_for_all_cues(penalty)) for penalty in fine]
    return {f"{name}, exact": (fine, [each[name] for each in best]) for name in ("hard", "shifted")}
