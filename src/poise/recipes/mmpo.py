"""Margin matching: how much better a response is, not only which, for policies and for reward models.

    pairs with margins -> DPO and MMPO, Bradley-Terry and MMPO reward models -> accuracy, calibration, wins by a judge

Kyuyoung Kim et al., "Margin Matching Preference Optimization: Enhanced Model Alignment with Granular Feedback",
Findings of EMNLP 2024, arXiv:2410.03145. As there, the target of a pair is sigmoid(gamma * margin) instead of 1, for
the loss of a policy and for that of a reward model. Unlike there, gamma follows from the median margin of the training
pairs, the models are a small adapter and linear heads on frozen features, and the judge of the answers is a model of
other prompts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from types import SimpleNamespace

from poise.data.rated import name_of_set, with_margin_targets, without_margins
from poise.experiment import Claim, MethodCard, Metric, Study, Trial, common_part, recipe
from poise.experiment import rated_pairs as found
from poise.functional.preference_targets import matching_gamma
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import fit_scores, optimise_preferences, rated
from poise.pipeline.settings import check
from poise.run import Run
from poise.train import preference_methods
from poise.train.preference_feedback import PairFeedback

CARD = MethodCard(
    title="Margin matching",
    paper="arXiv:2410.03145",
    reported="better calibration and less overfitting than DPO and Bradley-Terry (2B to 8B models)",
    feedback="a classifier, or people",
    form="rated responses, as pairs with margins",
    signal="the comparisons themselves, or a reward model",
    optimiser="DPO with targets by margin",
    regulariser="KL to the start, implied",
    model="SmolLM2-135M: an adapter, and linear heads",
    data="continuations of film reviews, TL;DR summaries",
)
LABELS = {"bt": "Bradley-Terry reward model", "mmpo-rm": "MMPO reward model", "dpo": "DPO", "mmpo": "MMPO"}
SHOWN = ("accuracy", "ece", "confidence", "train_accuracy", "train_ece", "win_rate", "reward", "reverse_kl",
         "distinct_2", "chosen_drift", "rejected_drift")  # fmt: skip
GAMMA = Metric(name="gamma", label="gamma", table=found.MATERIAL_METRICS[0].table)
SIGNAL_DEPTH = 0.5
QUICK = {"model": "random:llama?layers=3", "sets": ("starter",), "steps": 2, "prompts_per_step": 2, "score_steps": 20,
         "pairs_per_prompt": 2, "response_tokens": 6, "most_prompts": 30}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=3, workers=1)
def mmpo(
    *,
    model: str = "smollm2-135m",
    sets: tuple[str, ...] = ("odpo-sentiment", "tldr-ratings"),
    beta: float = 0.1,
    median_win_probability: float = 0.75,
    chat_template: str | None = None,
    pairs_per_prompt: int = 3,
    most_prompts: int = 0,
    steps: int = 12,
    prompts_per_step: int = 8,
    lr: float = 1e-3,
    score_steps: int | None = None,
    response_tokens: int = 32,
) -> Study:
    """Learn from the same pairs with and without their margins, and compare on pairs and prompts never seen.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        sets: sets with margins: odpo-sentiment and tldr-ratings read POISE_DATA, starter comes with the package.
        beta: strength of the pull to the start, of both policies.
        median_win_probability: that the better response of a pair with the median margin wins; it sets gamma.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        pairs_per_prompt: pairs that are taken of each prompt.
        most_prompts: prompts of each set; 0 takes all.
        steps: policy updates.
        prompts_per_step: prompts whose pairs are learned from in one update.
        lr: learning rate of the policy adapter.
        score_steps: updates of the judge and of the reward models; by default as many as 40 passes need.
        response_tokens: longest sample of the evaluation, in tokens.
    """
    counts = ("steps", "prompts_per_step", "pairs_per_prompt", "response_tokens", "score_steps")
    check(locals(), at_least_one=counts, above_zero=("lr", "beta"), several={"sets": None})
    matching_gamma(1.0, probability=median_win_probability)  # a probability that cannot be fails here
    names = {name_of_set(data): data for data in sets}
    return Study(
        arms={f"{name}-{kind}": (data, kind) for name, data in names.items() for kind in LABELS},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=[*(found.METRICS[name] for name in SHOWN), *found.MATERIAL_METRICS, GAMMA],
        labels={f"{name}-{kind}": f"{name}, {label}" for name in names for kind, label in LABELS.items()},
        claims=[claim for name in names for claim in claims(name)],
        notes=f"""
{model} learns from pairs with margins, {steps} steps of {prompts_per_step} prompts, beta {beta:g} for both policies.
The reward models are linear heads on the same frozen features. gamma gives the better response of a pair with the
median margin of the training pairs the probability {median_win_probability:g}. {found.ABOUT_METRICS}""",
        threads=None,
    )


def trial(given: SimpleNamespace, arm: tuple[str, str], seed: int, part: Run) -> Trial:
    """One policy or one reward model; pairs, start and judge are the same for all of a set, and for all seeds."""
    (data, kind), reading = arm, ("model", "pairs_per_prompt", "chat_template", "most_prompts", "score_steps")
    name = name_of_set(data)
    with common_part(part, name, across_seeds=True) as common:
        material = rated.prepare_rated(common, data=data, **{key: getattr(given, key) for key in reading})
    train = material.splits["train"]
    gamma = matching_gamma(median(c.margin for c in train.comparisons), probability=given.median_win_probability)
    if kind in ("bt", "mmpo-rm"):
        rows = with_margin_targets(train, gamma=gamma) if kind == "mmpo-rm" else train
        spec = replace(rated.HEAD, depth=SIGNAL_DEPTH, seed=seed, steps=given.score_steps)
        scores = fit_scores(part, material.backbone, without_margins(rows), spec, cache=material.cache)
        result = found.reward_model_trial(scores.model, material)
        return found.with_material(result, material, gamma=gamma) if kind == "bt" else result
    method = preference_methods.dpo(beta=given.beta)
    if kind == "mmpo":
        method = preference_methods.mmpo(beta=given.beta, gamma=gamma)
    policy = Policy(material.backbone, Lora(top=0.5), seed=seed)
    feedback = PairFeedback(policy, train.comparisons)
    optimise_preferences(
        part, policy, method, feedback, steps=given.steps, prompts_per_step=given.prompts_per_step, lr=given.lr,
        seed=seed, reference_cache=material.reference("train"),
    )  # fmt: skip
    shared = f"{name}-seed-{seed}"
    return found.policy_trial(part, policy, method, material, name=shared, seed=seed, tokens=given.response_tokens)


def claims(name: str) -> list[Claim]:
    """What the paper found: margins make for better calibration and less overfitting, and do not cost accuracy."""
    made = [
        (f"{LABELS[matched]} is {better} than {LABELS[plain]}", metric, *pair)
        for plain, matched in (("bt", "mmpo-rm"), ("dpo", "mmpo"))
        for better, metric, pair in (
            ("better calibrated", "ece", (plain, matched)),
            ("more accurate", "accuracy", (matched, plain)),
        )
    ]
    made.append(("MMPO wins more often against the start than DPO", "win_rate", "mmpo", "dpo"))
    return [
        Claim(text=f"{name}: {text}", metric=metric, higher=f"{name}-{high}", lower=f"{name}-{low}")
        for text, metric, high, low in made
    ]
