"""Risk-averse RLHF: learn from the worst episodes, so that the worst texts get better and not only the mean.

    supervised learning of good texts -> the same reinforcement learning with and without risk -> tails by a judge

Sapana Chaudhary et al., "Risk-Averse Fine-tuning of Large Language Models", NeurIPS 2024, arXiv:2501.06911. As there, a
policy continues film reviews, comments and sentences of the web, the reward says how positive or harmless a whole text
is, both arms sample equally many texts, and a schedule goes from all episodes of a batch to its worst share. Unlike
there, a small adapter is trained for a dozen updates, whole prompts are chosen, not single episodes, the reward is the
log-probability that a linear head gives, and the verdict comes from a judge that learned from other rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

from poise.data.continuations import TASKS, continuation_task
from poise.experiment import MethodCard, Study, Trial, common_part, recipe
from poise.experiment.continued_text import ABOUT_METRICS, METRICS, continuation_trial, quantile_plot, tail_claims
from poise.feedback.words import log_probability
from poise.functional.policy_losses import clipped_surrogate
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import align, fine_tune, merged, start_model
from poise.pipeline.settings import check
from poise.pipeline.text_classifiers import SIGNALS, fit_text_classifiers
from poise.run import Run
from poise.train.algorithms import PPO, REINFORCE_PP, RLOO, Algorithm, risk_averse
from poise.train.estimators import gae_advantage
from poise.train.objectives import Unconstrained
from poise.train.on_policy import OptimizerSettings
from poise.train.selection import by_prompt, by_return
from poise.types import Sampling

CARD = MethodCard(
    title="Risk-averse RLHF on text",
    paper="arXiv:2501.06911",
    reported="tail and mean reward above RLHF's on three tasks, perplexity a little higher (GPT-2, 194 to 452 updates)",
    feedback="a classifier",
    form="scores of whole texts",
    signal="a linear classifier of texts",
    optimiser="RLOO, PPO or REINFORCE++ on the worst share of the episodes",
    regulariser="KL to the start",
    model="SmolLM2-135M, an adapter",
    data="film reviews, Jigsaw comments, RealToxicityPrompts",
)
BASES = {
    "ppo": replace(PPO, advantage=gae_advantage(gae_lambda=0.95), epochs=4),
    "rloo": replace(RLOO, policy_loss=clipped_surrogate, epochs=2),
    "reinforce++": REINFORCE_PP,
}
RANKINGS = {"episode": by_return, "prompt": by_prompt()}
LABELS = {"sft": "SFT", "rlhf": "RLHF", "ra-rlhf": "RA-RLHF"}
COUNTS = ("steps", "samples_per_step", "response_tokens", "supervised_steps", "classifier_steps")
REWARDS = {"logit": lambda signal: signal, "log-probability": log_probability}
CHOICES: dict[str, Collection[str]] = {"algorithm": BASES, "rank_by": RANKINGS, "signal": SIGNALS, "reward": REWARDS}
ADAPTER = Lora(top=0.5)
Arm = tuple[str, Algorithm | None]  # a task, and what it is trained by after SFT
QUICK = {"model": "random:llama?layers=3", "tasks": ("starter-gen",), "steps": 3, "samples_per_step": 16, "warm_up": 0,
         "response_tokens": 6, "supervised_steps": 2, "classifier_steps": 20, "evaluated": 12}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=3, workers=1)
def ra_rlhf(
    *,
    model: str = "smollm2-135m",
    tasks: tuple[str, ...] = ("imdb-gen", "jigsaw-gen", "realtoxicityprompts-gen"),
    algorithm: Literal["ppo", "rloo", "reinforce++"] = "rloo",
    signal: Literal["words", "features"] = "features",
    reward: Literal["logit", "log-probability"] = "log-probability",
    rank_by: Literal["episode", "prompt"] = "prompt",
    alpha: float = 0.4,
    warm_up: int = 1,
    anneal_until: float = 0.4,
    steps: int = 12,
    samples_per_step: int = 64,
    response_tokens: int = 16,
    supervised_steps: int = 16,
    classifier_steps: int = 150,
    lr: float = 2e-3,
    kl_coef: float = 0.1,
    evaluated: int = 240,
) -> Study:
    """Train policies with and without risk on tasks of continuing text, and compare their tails.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        tasks: imdb-gen, jigsaw-gen and realtoxicityprompts-gen read POISE_DATA; starter-gen comes with the package.
        algorithm: what both policies learn by; their baseline is a critic, three others of the prompt, or all episodes.
        signal: what the reward reads: words and word pairs, or features of the start model.
        reward: the signal's logit, or the log-probability of the good label, which has a ceiling.
        rank_by: what is chosen by its return: each episode, as in the paper, or whole prompts by the mean of theirs.
        alpha: share of the worst episodes that are learned from at the end.
        warm_up: last step with all episodes, counted from 0.
        anneal_until: share of the steps after which only the worst episodes are left.
        steps: policy updates of either arm.
        samples_per_step: continuations sampled for each update.
        response_tokens: longest continuation, in tokens.
        supervised_steps: updates of supervised fine-tuning on good texts before all else.
        classifier_steps: updates of the heads that read features.
        lr: learning rate of the policy adapter.
        kl_coef: weight of the KL penalty to the start, per nat.
        evaluated: test prompts of each task; a tail of a tenth needs 10 or more.
    """
    check(
        locals(), at_least_one=COUNTS, above_zero=("lr",), not_negative=("kl_coef",), at_least={"evaluated": 10},
        several={"tasks": TASKS}, one_of=CHOICES,
    )  # fmt: skip
    base = replace(BASES[algorithm], kl_coef=kl_coef)
    averse = risk_averse(alpha, base=base, warm_up=warm_up, end=anneal_until, ranking=RANKINGS[rank_by])
    methods: dict[str, Algorithm | None] = {"sft": None, "rlhf": base, "ra-rlhf": averse}
    return Study(
        arms={f"{task}-{name}": (task, method) for task in tasks for name, method in methods.items()},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=METRICS,
        labels={f"{task}-{name}": f"{task}, {label}" for task in tasks for name, label in LABELS.items()},
        claims=[claim for task in tasks for claim in tail_claims(task, f"{task}-ra-rlhf", f"{task}-rlhf", "RLHF")],
        plots=[quantile_plot({task: [f"{task}-{name}" for name in LABELS] for task in tasks})],
        notes=f"""
{model} continues beginnings of real texts. Both policies start from supervised learning of good texts (SFT) and are
trained by {algorithm} for {steps} steps of {samples_per_step} samples of up to {response_tokens} tokens, `kl_coef`
{kl_coef:g}. RA-RLHF learns from all samples up to step {warm_up} and from the worst {alpha:.0%} of them from
{anneal_until:.0%} of the steps on, ranked by {rank_by}: of equally many samples it learns from fewer. The reward is the
{reward} of the signal, which reads {signal}. {ABOUT_METRICS}""",
        threads=None,
    )


def trial(given: SimpleNamespace, arm: Arm, seed: int, part: Run) -> Trial:
    """One policy of one task; classifiers and start are the same for all of them, and for all seeds."""
    task, algorithm = continuation_task(arm[0]), arm[1]
    with common_part(part, task.name, across_seeds=True) as common:
        untrained = start_model(common, given.model, continues_text=True)
        classifiers = fit_text_classifiers(common, untrained, task, signal=given.signal, steps=given.classifier_steps)
        policy, texts = Policy(untrained, ADAPTER, adapter="supervised"), task.good_texts("train")
        fine_tune(common, policy, texts, steps=given.supervised_steps, per_step=32, finished=False)
        start = replace(merged(common, policy), continues_text=True)
    policy, sampling = Policy(start, ADAPTER, seed=seed), Sampling(max_tokens=given.response_tokens)
    if algorithm is not None:
        align(
            part, policy, [REWARDS[given.reward](classifiers.signal)], task.prompts("train"), algorithm=algorithm,
            objective=Unconstrained(), samples_per_step=given.samples_per_step, sampling=sampling, seed=seed,
            optimisation=OptimizerSettings(lr=given.lr, steps=given.steps),
        )  # fmt: skip
    said = replace(sampling, seed=90_001 + seed)
    return continuation_trial(part, policy, task, classifiers, most_prompts=given.evaluated, sampling=said,
                              reports_classifiers=algorithm is None)  # fmt: skip
