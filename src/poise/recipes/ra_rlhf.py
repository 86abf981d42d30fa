"""Risk-averse RLHF: learn from the worst episodes, so that the worst texts get better and not only the mean.

    supervised learning of good texts -> the same reinforcement learning with and without risk -> tails by a judge

Sapana Chaudhary et al., "Risk-Averse Fine-tuning of Large Language Models", NeurIPS 2024, arXiv:2501.06911. As there, a
policy continues beginnings of film reviews, comments and sentences of the web, the reward says how positive or how
harmless the whole text is, both arms sample equally many texts, and a schedule goes from all episodes of a batch to its
worst share. Unlike there, the policy is a small adapter trained for a dozen updates, whole prompts are chosen instead
of single episodes, the reward is the log-probability that a linear head gives, and the verdict comes from a judge that
learned from other rows.
"""

from __future__ import annotations

from typing import Literal

from poise.recipes._quick import TINY, briefly
from poise.run import Run

PAPER = "arXiv:2501.06911"
SHAPE = "labelled texts -> signal, judge, start model, two policies per seed and task -> table and quantile curves"
COST = "6 s an update of 64 samples on 1 CPU core for smollm2-135m: 30 minutes for the 12 policies of two tasks"
EXPECTED = {
    "paper": "tail and mean reward above RLHF's on three tasks, perplexity a little higher (GPT-2, 194 to 452 updates)",
    "ours": "in direction on all three tasks, no interval over seeds above 0: hardest prompts +0.07 [-0.48, 0.61] "
    "(Jigsaw), +0.27 [-0.53, 1.06] (RealToxicityPrompts) and +0.18 [-0.82, 1.18] (film reviews), mean +0.02, +0.11 and "
    "+0.19 (n = 3 seeds, 240 prompts each), at a larger KL",
    "hardware": "1 CPU core with AMX, SmolLM2-135M",
    "date": "2026-11-28",
}


@briefly(
    model=TINY,
    tasks=("starter-gen",),
    seeds=(0, 1),
    steps=3,
    samples_per_step=16,
    response_tokens=6,
    supervised_steps=2,
    warm_up=0,
    evaluated=12,
)
def ra_rlhf(
    *,
    model: str = "smollm2-135m",
    tasks: tuple[str, ...] = ("imdb-gen", "jigsaw-gen", "realtoxicityprompts-gen"),
    algorithm: Literal["ppo", "rloo", "reinforce++"] = "rloo",
    signal: Literal["words", "features"] = "features",
    reward: Literal["logit", "log-probability"] = "log-probability",
    ranked: Literal["episode", "prompt"] = "prompt",
    alpha: float = 0.4,
    warm_up: int = 1,
    end: float = 0.4,
    steps: int = 12,
    samples_per_step: int = 64,
    response_tokens: int = 16,
    supervised_steps: int = 16,
    lr: float = 2e-3,
    kl_coef: float = 0.1,
    evaluated: int = 240,
    seeds: tuple[int, ...] = (0, 1, 2),
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train policies with and without risk on tasks of continuing text, and compare their tails.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        tasks: imdb-gen, jigsaw-gen and realtoxicityprompts-gen read POISE_DATA; starter-gen comes with the package.
        algorithm: what both arms learn by: reinforce++ weighs an episode against all that are learned from, ppo
            against a critic, rloo against three others of its prompt.
        signal: what the reward reads: words and word pairs, or features of the start model; learned from other rows
            than the judge.
        reward: the signal's logit, or the log-probability of the good label, which has a ceiling.
        ranked: what is chosen by its return: each episode, as in the paper, or whole prompts by the mean of theirs.
        alpha: share of the worst episodes that are learned from at the end.
        warm_up: last step with all episodes, counted from 0.
        end: share of the steps after which only the worst episodes are left.
        steps: policy updates of either arm.
        samples_per_step: continuations sampled for each update.
        response_tokens: longest continuation, in tokens.
        supervised_steps: updates of supervised fine-tuning on good texts before all else.
        lr: learning rate of the policy adapter.
        kl_coef: weight of the KL penalty to the start, per nat.
        evaluated: test prompts of each task.
        seeds: seeds of everything random in either arm.
        page: a Markdown file to write the results to as well, with a picture beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: a tiny random model, embedded texts and few steps: a smoke test, not a result.
    """
    from poise.recipes import _risk as risk
    from poise.recipes import _risk_report as report

    settings = risk.RiskSettings.of(locals())
    with Run.open(folder, recipe="ra-rlhf", arguments=settings.arguments) as run:
        studies = [risk.TextStudy(run, settings, name) for name in settings.tasks]
        outcomes = risk.measure(studies)
        report.report(run, settings, outcomes, {study.name: study.worth for study in studies}, target=page)
    return run
