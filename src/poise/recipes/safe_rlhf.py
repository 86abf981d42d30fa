"""Safe RLHF: a reward and a cost model from decoupled feedback, then PPO under a limit on cost.

    [supervised fine-tuning] -> reward + cost model -> PPO-Lag -> evaluation by a held-out judge

Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773. As there,
helpfulness and harmlessness are judged apart; two score heads learn from them, and the policy maximises reward while
a multiplier holds the mean cost at the limit. Unlike there, one frozen trunk carries the policy's adapter, the critics
and the scores, the multiplier moves by projected dual ascent, and the verdict comes from a judge that was never
trained against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from poise.recipes._quick import ALIGNED, briefly
from poise.run import Run
from poise.types import Annotator

PAPER = "arXiv:2310.12773"
SHAPE = "prompts + decoupled comparisons -> policy adapter, score model, report"
COST = "12 to 15 minutes on 2 CPU cores for smollm2-135m, under 4 GiB"
EXPECTED = {
    "paper": "harmful answers 53.08 % -> 2.45 % over three rounds (Alpaca-7B to Beaver-v3, human labels)",
    "ours": "44.6 % [36.2, 53.1] -> 4.5 % [1.8, 8.0], look-alikes refused 31.7 % (seed 0; others in the README)",
    "hardware": "2 CPU cores with AMX, SmolLM2-135M",
    "date": "2026-11-28",
}

ObjectiveName = Literal["lagrangian", "shaping", "reward-only", "cost-only"]


@briefly(**ALIGNED, compare_steps=1, samples_per_step=8, imitation_steps=2)
def safe_rlhf(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "starter",
    columns: str = "",
    objective: ObjectiveName = "lagrangian",
    algorithm: Literal["ppo", "rloo"] = "rloo",
    limit: float = -0.5,
    margin: float = 0.12,
    shaping: float = 1.0,
    rounds: int = 1,
    steps: int = 24,
    compare_steps: int = 8,
    supervised_steps: int = 0,
    samples_per_step: int = 64,
    response_tokens: int = 40,
    temperature: float = 0.7,
    lr: float = 6e-4,
    kl_coef: float = 0.03,
    imitation_steps: int = 40,
    ptx_coef: float = 0.3,
    ptx_start: float | None = None,
    seed: int = 0,
    annotators: Sequence[Annotator] | None = None,
    engine: str = "native",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Run Safe RLHF from feedback to report.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        data: names or paths of feedback, joined by +.
        columns: what the columns of your files are called, as prompt=question,chosen=better, and which to leave out, as
            ignore=score.
        objective: what the policy is trained for; shaping, reward-only and cost-only are the paper's comparisons.
        algorithm: ppo has a critic per channel; rloo compares four samples of a prompt and learns in fewer steps.
        limit: largest mean cost of answers to prompts that may do harm, in spreads of the cost model and between -1
            and 1; 0 divides safe from unsafe.
        margin: how far below the limit training holds the cost: prompts that it never saw cost a little more.
        shaping: coefficient of the cost for objective shaping.
        rounds: rounds of feedback; later ones sample from the current policy and ask the annotators.
        steps: policy updates per round.
        compare_steps: updates, of half the samples, for each other objective in the report; 0 leaves them out.
        supervised_steps: updates of supervised fine-tuning on preferred responses before all else; 0 leaves it out.
        samples_per_step: responses sampled for each policy update.
        response_tokens: longest response in training, in tokens; evaluation allows a fifth more.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        kl_coef: weight of the KL penalty to the start model, per nat.
        imitation_steps: updates of an adapter that every objective starts from, on refusals of harmful prompts and
            three times as many good answers to harmless ones; 0 starts from the model itself.
        ptx_coef: weight of imitating the same in every update of a policy (the paper's PTX loss).
        ptx_start: that weight in the first update, from where it reaches ptx_coef in the middle of the training; by
            default it stays.
        seed: seed of everything random.
        annotators: who compares in later rounds, one per criterion; rules by default.
        engine: who samples: native, ray:4 (workers of a Ray cluster) or the http://HOST:PORT of a vLLM server.
        folder: run folder; an unfinished run in it is continued.
        quick: a tiny random model and few steps: a smoke test, not a result.
    """
    from poise.recipes import _report
    from poise.recipes import _stages as stages
    from poise.recipes._imitation import start_from_preferred
    from poise.recipes._scores import COST_BOUND, learn_scores

    settings = stages.Settings.of(locals())
    settings.require_reachable(COST_BOUND)
    with Run.open(folder, recipe="safe-rlhf", arguments=settings.arguments) as run:
        study = stages.prepare(run, settings)
        start_from_preferred(run, study)
        judge = learn_scores(run, study, "judge", split="judge")
        before = stages.assess(run, study, judge, "start")
        for number in range(1, settings.rounds + 1):
            scorer = learn_scores(run, study, stages.numbered("scores", number), split="train")
            policy = stages.reinforce(run, study, scorer, settings.objective, number)
            if number < settings.rounds:
                stages.annotate(run, study, policy, number)
        results = {settings.objective: stages.assess(run, study, judge, "final", policy=policy, scorer=scorer)}
        results |= stages.compare_objectives(run, study, scorer, judge)
        _report.report(run, study, judge, scorer, before, results)
    return run
