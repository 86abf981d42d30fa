"""Safe RLHF on real data: published feedback, a judge that people's labels validate, and several seeds.

    signal + judge + what each is worth -> PPO-Lag beside its comparisons -> compliance with unseen harmful prompts

After Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773. Help
is learned from HH-RLHF; cost from labels that people or clear sources support; the verdict is that of a classifier of
compliance, trained on other rows and checked against people's labels of prompts it never saw. A policy that minimises
cost alone refuses everything, one that maximises reward alone refuses nothing: the limit stands between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from poise.recipes._quick import ALIGNED, briefly
from poise.run import Run

ObjectiveName = Literal["lagrangian", "shaping", "reward-only", "cost-only"]

PAPER = "arXiv:2310.12773"
SHAPE = "published feedback -> policies of four objectives and several seeds, one table"
COST = "about 76 minutes on 2 CPU cores for smollm2-135m (the stages of an interrupted run), 6.9 GiB; needs POISE_DATA"
EXPECTED = {
    "paper": "no such run: Alpaca-7B on the authors' own feedback, judged by people and GPT-4",
    "ours": "AdvBench complied 82.1 % -> 18.8 % [13.3, 25.0], XSTest's safe prompts 94.6 % -> 85.8 % [79.2, 91.3], "
    "wins 52.6 % [47.7, 57.3] (80 + 80 + 160 prompts, seeds 0 to 2)",
    "hardware": "2 CPU cores with AMX, SmolLM2-135M",
    "date": "2026-11-28",
}


@briefly(**ALIGNED, compare_steps=1, samples_per_step=8, answer_tokens=0, warmstart_steps=2, seeds=(0, 1), evaluated=4)
def safe_rlhf_real(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    objectives: tuple[ObjectiveName, ...] = ("lagrangian", "cost-only", "reward-only", "shaping"),
    seeds: tuple[int, ...] = (0, 1, 2),
    algorithm: Literal["ppo", "rloo"] = "rloo",
    limit: float = -0.85,
    shaping: float = 1.0,
    steps: int = 24,
    compare_steps: int = 12,
    samples_per_step: int = 64,
    response_tokens: int = 40,
    answer_tokens: int = 48,
    temperature: float = 0.7,
    lr: float = 1e-3,
    later_lr: float | None = None,
    kl_coef: float = 0.01,
    warmstart_steps: int = 100,
    imitated_tokens: int = 20,
    ptx_coef: float = 0.1,
    ptx_start: float | None = None,
    evaluated: int = 80,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Run the experiment on real data from feedback to a table over seeds.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        objectives: what policies are trained for, one after the other, on the same scores and prompts.
        seeds: seeds of everything random but the splits; each repeats the whole experiment on the same rows.
        algorithm: ppo has a critic per channel; rloo compares four samples of a prompt and learns in fewer steps.
        limit: largest mean cost of answers to harmful prompts, in spreads of the cost model, bounded at 1.5; 0 is its
            border of safe and unsafe.
        shaping: coefficient of the cost for objective shaping.
        steps: policy updates under the limit.
        compare_steps: policy updates under each other objective.
        samples_per_step: responses sampled for each policy update.
        response_tokens: longest response in training, in tokens; what comes later in an answer is scored by nobody.
        answer_tokens: longest answer to a prompt of the verdict, in tokens; the judge reads as much.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        later_lr: that rate after the first third of the updates, when refusals occur; none keeps it.
        kl_coef: weight of the KL penalty to the start model, per nat.
        warmstart_steps: updates of an adapter that every objective starts from, on published refusals of harmful
            prompts and the start model's own answers to others; 0 starts from the model itself.
        imitated_tokens: how much of a demonstration is learned, in tokens; its beginning decides.
        ptx_coef: weight of imitating the same in every update of a policy.
        ptx_start: that weight in the first update, from where it reaches ptx_coef in the middle of the training; by
            default it stays.
        evaluated: prompts of each kind that are answered for the verdict.
        page: a Markdown file with two lines <!-- real-data -->, between which the table goes as well.
        folder: run folder; an unfinished run in it is continued.
        quick: a tiny random model, few steps and the starter set: a smoke test, not a result.
    """
    given = {name: value for name, value in locals().items() if name != "page"}
    from poise.recipes import _real as real
    from poise.recipes._real_report import around_section, write_results

    settings = real.checked(given)
    if page:
        around_section(Path(page))  # a wrong page is found out before the work, not after it
    with Run.open(folder, recipe="safe-rlhf-real", arguments=given) as run:
        experiment = real.prepare(run, settings, seeds=seeds, evaluated=evaluated)
        curves = real.learning_curves(run, experiment)
        trials = [real.try_seed(run, experiment, study, objectives) for study in experiment.studies]
        write_results(run, experiment, curves, trials, page=page)
    return run
