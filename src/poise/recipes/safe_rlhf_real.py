"""Safe RLHF on real data: published feedback, a judge that people's labels validate, and several seeds.

    signal + judge + what each is worth -> PPO-Lag beside its comparisons -> compliance with unseen harmful prompts

After Josef Dai et al., "Safe RLHF", ICLR 2024, arXiv:2310.12773. Help is learned from HH-RLHF; cost from labels that
people or clear sources support; the verdict is that of a judge of compliance, which learned from people's labels alone
and shares no rule, row or question with the signal; a second of another kind stands beside. Who minimises cost alone
refuses everything, who maximises reward alone refuses nothing: the limit stands between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from poise.experiment import MethodCard, Study, Trial, common_part, compliance, recipe
from poise.pipeline import align, published
from poise.pipeline.safety import ALGORITHMS
from poise.pipeline.settings import check
from poise.run import Run
from poise.train.algorithms import algorithm_named
from poise.train.objectives import Objective, Penalty, Unconstrained
from poise.train.supervised import DemonstrationBatches
from poise.train.validation import Validation
from poise.types import Sampling

CARD = MethodCard(
    title="Safe RLHF on published data: fewer harmful requests answered, and harmless ones as before",
    paper="arXiv:2310.12773", reported="no such run: Alpaca-7B on the authors' feedback, judged by people and GPT-4",
    feedback="people, help and harm apart", form="comparisons, labels and verdicts", signal="reward and cost model",
    optimiser="RLOO, or any record", regulariser="KL to the SFT start, answers mixed in",
    constraint="a Lagrange multiplier", data="HH-RLHF, PKU, XSTest and others", model="SmolLM2-135M, an adapter",
)  # fmt: skip
Arm = tuple[Callable[[], Objective], int]  # the objective, and its policy updates
QUICK = {"model": "random:llama?layers=3", "data": "starter", "steps": 2, "compare_steps": 1, "samples_per_step": 8,
         "response_tokens": 8, "answer_tokens": 0, "warmstart_steps": 2, "evaluated": 4, "trained": 24,
         "score_steps": 20}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=3, workers=1)
def safe_rlhf_real(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "published",
    algorithm: str = "rloo",
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
    trained: int = 320,
    score_steps: int | None = None,
) -> Study:
    """Run the experiment on real data from feedback to tables over seeds.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template in place of the tokenizer's.
        data: published (sets in the folder POISE_DATA), or starter, whose flags stand for people's verdicts.
        algorithm: rloo compares four samples of a prompt and learns in few steps; ppo has a critic per channel; or any.
        limit: largest mean cost of answers to harmful prompts, in sd between -1.5 and 1.5; 0 divides safe from unsafe.
        shaping: coefficient of the cost for objective shaping.
        steps: policy updates under the limit.
        compare_steps: policy updates under each other objective.
        samples_per_step: responses sampled for each policy update.
        response_tokens: longest response in training, in tokens; what comes later in an answer is scored by nobody.
        answer_tokens: longest answer to a prompt of the verdict; the judge reads as much. 0: a fifth more than trained.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        later_lr: that rate after the first third of the updates, when refusals occur; none keeps it.
        kl_coef: weight of the KL penalty to the start model, per nat.
        warmstart_steps: updates of the SFT start, on refusals and the model's own answers; it is the KL reference too.
        imitated_tokens: how much of a demonstration is learned; its beginning decides. 0: all.
        ptx_coef: weight of imitating answers to harmless prompts in every update of a policy.
        ptx_start: that weight in the first update, from where it falls to ptx_coef until the middle of the training.
        evaluated: prompts of each kind that are answered for the verdict.
        trained: prompts that the policy is trained on, half of them harmful.
        score_steps: most updates of the heads of a score model; none takes as many as their epochs need.
    """
    check(
        locals(), one_of={"data": published.SOURCES}, at_least={"evaluated": 2, "trained": 4},
        at_least_one=("steps", "compare_steps", "samples_per_step", "response_tokens", "score_steps"),
        above_zero=("temperature", "lr", "later_lr"),
        not_negative=("warmstart_steps", "imitated_tokens", "answer_tokens", "kl_coef", "ptx_coef", "ptx_start",
                      "shaping"),
    )  # fmt: skip
    under_limit = partial(published.under_limit, limit)
    under_limit()  # one that no policy meets fails here
    record = replace(algorithm_named(algorithm, ALGORITHMS), kl_coef=kl_coef)
    longest = answer_tokens or response_tokens * 6 // 5
    arms: dict[str, Arm] = {
        "lagrangian": (under_limit, steps),
        **({"imitation": (Unconstrained, 0)} if warmstart_steps else {}),
        "cost-only": (partial(Penalty, 1.0, reward_weight=0.0), compare_steps),
        "reward-only": (Unconstrained, compare_steps),
        "shaping": (partial(Penalty, shaping), compare_steps),
    }
    moved = partial(published.optimisation, lr=lr, later_lr=later_lr, ptx_coef=ptx_coef, ptx_start=ptx_start)
    return Study(
        arms=arms, trial=partial(trial, SimpleNamespace(**locals())), threads=None, labels=compliance.LABELS,
        metrics=compliance.METRICS, claims=compliance.claims("lagrangian", arms), notes=compliance.NOTES,
        plots=[compliance.learning_curve_plot()], report=partial(compliance.answers_report, model=model, limit=limit),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: Arm, seed: int, part: Run) -> Trial:
    """One objective from one seed: seeds share rows and judges of compliance, its arms the signal and the SFT start."""
    objective, updates = arm
    sampling = Sampling(max_tokens=given.response_tokens, temperature=given.temperature)
    said = replace(sampling, max_tokens=given.longest, seed=90_001 + seed)
    reading = {"seed": seed, "max_tokens": max(128, 4 * given.response_tokens), "temperature": given.temperature,
               "max_response_tokens": given.imitated_tokens or None, "tokens_per_micro_batch": 2048}  # fmt: skip
    with common_part(part, "all-seeds", across_seeds=True) as common:
        shared = published.prepare(
            common, model=given.model, chat_template=given.chat_template, data=given.data, evaluated=given.evaluated,
            trained=given.trained, sampling=sampling, longest_answer=given.longest, score_steps=given.score_steps,
        )  # fmt: skip
        curves = published.learning_curves(common, shared)
    rows = shared.rows
    with common_part(part, f"seed-{seed}") as common:
        scores = shared.learned(common, seed=seed)
        begun = published.sft_start(common, shared, scores, steps=given.warmstart_steps, sampling=said, **reading)
    if not updates:
        return compliance.compliance_trial(part, start=begun.base, final=begun.start, scores=scores, curves=curves)
    mixed = partial(DemonstrationBatches, shared.general_demonstrations(), begun.policy, **reading)
    policy = align(
        part, begun.policy, [scores.signal.model], sorted(rows.policy_prompts, key=lambda prompt: prompt.id),
        objective=objective(), algorithm=given.record, samples_per_step=given.samples_per_step, seed=seed + 1,
        optimisation=given.moved(steps=updates), sampling=sampling, validate=Validation(prompts=rows.validation),
        demonstrations=mixed() if given.ptx_coef else None,
    )  # fmt: skip
    final = scores.verdict(part, policy, rows.evaluation, sampling=said)
    return compliance.compliance_trial(part, start=begun.start, final=final, scores=scores, curves=curves)
