"""DPO under other divergences: what each costs in reward, distance, diversity and calibration.

    rated continuations -> DPO under four divergences x strengths x seeds -> held-out pairs and samples -> front

Chaoqi Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints", ICLR 2024, arXiv:2309.16240. As in its sentiment experiment, a policy continues film reviews and learns
from pairs that a classifier rated. Unlike there, the policy is a small adapter trained for some dozens of steps, and
the reward is that of a judge which learned from pairs of other prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

from poise.experiment import Claim, MethodCard, Plot, Study, Trial, against, common_part, recipe
from poise.experiment.rated_pairs import ABOUT_METRICS, MATERIAL_METRICS, METRICS, policy_trial, with_material
from poise.functional.implied_rewards import (
    ImpliedReward,
    alpha_reward,
    forward_kl_reward,
    jensen_shannon_reward,
    reverse_kl_reward,
)
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import optimise_preferences
from poise.pipeline.rated import prepare_rated
from poise.pipeline.settings import check
from poise.run import Run
from poise.train.preference_feedback import PairFeedback
from poise.train.preference_methods import dpo

CARD = MethodCard(
    title="DPO under other divergences",
    paper="arXiv:2309.16240",
    reported="reverse KL has the most reward, forward KL the most diversity, Jensen-Shannon much of both (in words)",
    feedback="a classifier, or people",
    form="rated responses, as pairs",
    signal="the comparisons themselves",
    optimiser="DPO",
    regulariser="reverse KL, Jensen-Shannon, alpha or forward KL",
    model="SmolLM2-135M, an adapter",
    data="continuations of film reviews",
)
DIVERGENCES: dict[str, tuple[str, ImpliedReward]] = {
    "reverse-kl": ("reverse KL (DPO)", reverse_kl_reward),
    "jensen-shannon": ("Jensen-Shannon", jensen_shannon_reward),
    "alpha": ("alpha = 0.5", partial(alpha_reward, alpha=0.5)),
    "forward-kl": ("forward KL", forward_kl_reward),
}
CLAIMS = (
    ("reverse KL is rewarded more than forward KL", "reward", "reverse-kl", "forward-kl"),
    ("reverse KL moves further than forward KL, KL(policy, start)", "reverse_kl", "reverse-kl", "forward-kl"),
    ("forward KL has more entropy than reverse KL", "entropy", "forward-kl", "reverse-kl"),
    ("Jensen-Shannon has more entropy than reverse KL", "entropy", "jensen-shannon", "reverse-kl"),
    ("reverse KL is more accurate than forward KL", "accuracy", "reverse-kl", "forward-kl"),
)
SHOWN = ("reward", "win_rate", "reverse_kl", "forward_kl", "entropy", "distinct_2", "accuracy", "ece", "chosen_drift",
         "rejected_drift")  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "data": "starter", "betas": (0.1,), "steps": 2, "prompts_per_step": 2,
         "pairs_per_prompt": 2, "response_tokens": 6, "most_prompts": 30, "score_steps": 20}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=3, workers=1)
def f_dpo(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "odpo-sentiment",
    columns: str = "",
    betas: tuple[float, ...] = (0.1, 0.5),
    steps: int = 12,
    prompts_per_step: int = 8,
    pairs_per_prompt: int = 3,
    most_prompts: int = 0,
    response_tokens: int = 32,
    lr: float = 1e-3,
    score_steps: int | None = None,
) -> Study:
    """Train by DPO under each divergence and strength, and show what each buys and costs.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        data: a set with margins: odpo-sentiment or tldr-ratings (POISE_DATA), starter, or a file of yours.
        columns: what the columns of your file are called, as prompt=question,chosen=better, and which to leave out, as
            ignore=score.
        betas: strengths of the pull to the start.
        steps: policy updates.
        prompts_per_step: prompts whose pairs are learned from in one update.
        pairs_per_prompt: pairs that are taken of each prompt.
        most_prompts: prompts of the whole set; 0 takes all.
        response_tokens: longest sample of the evaluation, in tokens.
        lr: learning rate of the policy adapter.
        score_steps: updates of the judge; by default as many as 40 passes need.
    """
    counts = ("steps", "prompts_per_step", "pairs_per_prompt", "response_tokens", "score_steps")
    check(locals(), at_least_one=counts, above_zero=("lr", "betas"), several={"betas": None})
    arms = {f"{name}-{beta:g}": (name, beta) for name in DIVERGENCES for beta in betas}
    return Study(
        arms=arms,
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=(*(METRICS[name] for name in SHOWN), *MATERIAL_METRICS),
        labels={arm: f"{DIVERGENCES[name][0]}, beta {beta:g}" for arm, (name, beta) in arms.items()},
        claims=[
            Claim(text=f"beta {beta:g}: {text}", metric=metric, higher=f"{high}-{beta:g}", lower=f"{low}-{beta:g}")
            for beta in betas
            for text, metric, high, low in CLAIMS
        ],
        plots=list(fronts(betas)),
        notes=f"""
{model} learns from pairs of {data} for {steps} steps of {prompts_per_step} prompts, and answers prompts that it never
saw. {ABOUT_METRICS}""",
        threads=None,
    )


def trial(given: SimpleNamespace, arm: tuple[str, float], seed: int, part: Run) -> Trial:
    """One policy; pairs, start and judge are the same for all of them, and for all seeds."""
    (name, beta), reading = arm, ("model", "data", "pairs_per_prompt", "chat_template", "columns", "most_prompts")
    with common_part(part, "pairs", across_seeds=True) as common:
        material = prepare_rated(common, score_steps=given.score_steps, **{key: vars(given)[key] for key in reading})
    policy, method = (
        Policy(material.backbone, Lora(top=0.5), seed=seed),
        dpo(beta=beta, implied_reward=DIVERGENCES[name][1]),
    )
    optimise_preferences(
        part, policy, method, PairFeedback(policy, material.splits["train"].comparisons), steps=given.steps, seed=seed,
        prompts_per_step=given.prompts_per_step, lr=given.lr, reference_cache=material.reference("train"),
    )  # fmt: skip
    found = policy_trial(part, policy, method, material, name=f"seed-{seed}", seed=seed, tokens=given.response_tokens)
    return with_material(found, material) if name == "reverse-kl" else found


def fronts(betas: tuple[float, ...]) -> Iterator[Plot]:
    """The judge's reward against distance and against diversity: a point for each strength."""
    groups = {label: [f"{name}-{beta:g}" for beta in betas] for name, (label, _) in DIVERGENCES.items()}
    for metric, across in {
        "reverse_kl": "KL(policy, start), nats a sequence",
        "entropy": "entropy, nats a token",
    }.items():
        title = f"Reward against {across}"
        yield Plot(title=title, across=across, up="judge's reward", draw=against(metric, "reward", groups))
