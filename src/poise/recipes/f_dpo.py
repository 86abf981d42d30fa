"""DPO under other divergences: what each costs in reward, distance, diversity and calibration.

    rated continuations -> DPO under four divergences x strengths x seeds -> held-out pairs and samples -> front

Chaoqi Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints", ICLR 2024, arXiv:2309.16240. As in its sentiment experiment, a policy continues film reviews and learns
from pairs that a classifier rated. Unlike there, the policy is a small adapter trained for some dozens of steps, and
the reward is that of a judge which learned from pairs of other prompts.
"""

from __future__ import annotations

from poise.recipes._quick import RATED, briefly
from poise.run import Run

PAPER = "arXiv:2309.16240"
SHAPE = "rated responses -> policies by divergence and beta -> frontier of reward, divergence, diversity, calibration"
COST = "24 policies of 12 updates: 26 minutes of 1 to 2 CPU cores for smollm2-135m, 6.1 GiB"
EXPECTED = {
    "paper": "reverse KL has the most reward, forward KL the most diversity, Jensen-Shannon much of both (in words)",
    "ours": "forward KL has more entropy at beta 0.1 (+0.03 nats a token [0.01, 0.04]); of ten claims this one held "
    "and none was contradicted (n = 3 seeds)",
    "hardware": "1 to 2 CPU cores with AMX, SmolLM2-135M",
    "date": "2026-11-28",
}


@briefly(**RATED, data="starter", columns="", betas=(0.1,))
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
    response_tokens: int = 32,
    lr: float = 1e-3,
    seeds: tuple[int, ...] = (0, 1, 2),
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
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
        response_tokens: longest sample of the evaluation, in tokens.
        lr: learning rate of the policy adapter.
        seeds: seeds of the adapter, the order of the pairs and the samples.
        page: a Markdown file to write the results to as well, with pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: a tiny random model, embedded pairs and few steps: a smoke test, not a result.
    """
    from poise.recipes import _divergences as divergences

    settings = divergences.DivergenceSettings.of(locals())
    with Run.open(folder, recipe="f-dpo", arguments=settings.arguments) as run:
        results, judge = divergences.measure(run, settings)
        divergences.report(run, settings, results, judge, target=page)
    return run
