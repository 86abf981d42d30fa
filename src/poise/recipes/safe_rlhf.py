"""Safe RLHF: a reward and a cost model from decoupled feedback, then reinforcement learning under a limit on cost.

    [supervised fine-tuning] -> reward + cost model -> policy under a limit -> evaluation by a held-out judge

Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773. As there,
helpfulness and harmlessness are judged apart; two score heads learn from them, and the policy maximises reward while
a multiplier holds the mean cost at the limit. Unlike there, one frozen backbone carries the policy's adapter, the
critics and the scores, every objective starts from an adapter that imitated refusals of harmful prompts (an arm of its
own shows what that alone does), and the verdict comes from a judge that was never trained against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from poise.experiment import Claim, MethodCard, Study, Trial, common_part, recipe
from poise.experiment.safety import LABELS, METRICS, NOTES, Verdicts, safety_report, safety_trial, training_curves
from poise.models.policy import Policy
from poise.pipeline import safety
from poise.pipeline.limits import cost_limit, read_limits
from poise.pipeline.settings import check
from poise.run import Run
from poise.train.algorithms import algorithm_named
from poise.train.limit_text import LimitText
from poise.train.objectives import Objective, Unconstrained
from poise.train.on_policy import OptimizerSettings
from poise.types import Sampling

CARD = MethodCard(
    title="Safe RLHF: as helpful as can be under a limit on harm", paper="arXiv:2310.12773",
    reported="harmful answers 53.08 % -> 2.45 % over three rounds (Alpaca-7B to Beaver-v3, human labels)",
    feedback="people, help and harm apart", form="comparisons and safety labels", signal="reward and cost model",
    optimiser="RLOO, or any record", regulariser="KL to the start, imitation mixed in", data="starter",
    constraint="a Lagrange multiplier for each limit", model="SmolLM2-135M, an adapter",
)  # fmt: skip
Arm = tuple[Callable[[], Objective] | tuple[LimitText, ...], int, int]  # objective or limits, updates, samples of each
QUICK = {"model": "random:llama?layers=3", "steps": 2, "compare_steps": 1, "samples_per_step": 8, "response_tokens": 8,
         "most_prompts": 24, "warmstart_steps": 2, "seeds": 1}  # fmt: skip
ANSWERS = 4  # to each test prompt: one alone leaves more to chance than the prompts do


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def safe_rlhf(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "starter",
    columns: str = "",
    algorithm: str = "rloo",
    limit: float | tuple[str, ...] = -0.5,
    margin: float = 0.12,
    rounds: int = 1,
    steps: int = 24,
    compare_steps: int = 8,
    supervised_steps: int = 0,
    warmstart_steps: int = 40,
    ptx_coef: float = 0.3,
    samples_per_step: int = 64,
    response_tokens: int = 40,
    temperature: float = 0.7,
    lr: float = 6e-4,
    kl_coef: float = 0.03,
    engine: str = "native",
    most_prompts: int = 0,
) -> Study:
    """Run Safe RLHF from feedback to report, beside the paper's other objectives.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        data: names or paths of feedback, joined by +.
        columns: names of the columns of your files, as prompt=question,chosen=better; ignore=score leaves one out.
        algorithm: rloo (four samples of a prompt, few steps), ppo (a critic per channel), or any record: grpo, dapo ...
        limit: largest mean cost of answers to prompts that may do harm, in sd of the cost model and between -1 and 1;
            0 divides safe from unsafe. Or texts: --limit 'rate(cost) <= 0.02' --limit 'refusal@benign <= 0.05'.
        margin: how far below a number training holds the cost: prompts that it never saw cost a little more.
        rounds: rounds of feedback; later ones sample from the current policy and ask rules that compare.
        steps: policy updates per round.
        compare_steps: updates, of half the samples, under each other objective; 0 leaves them out.
        supervised_steps: updates of supervised fine-tuning on preferred responses before all else; 0 leaves it out.
        warmstart_steps: updates of the adapter that every objective starts from, on refusals of harmful prompts and
            three times as many good answers to harmless ones; 0 starts from the model itself.
        ptx_coef: weight of imitating the same in every update of a policy (the paper mixes in pretraining data).
        samples_per_step: responses sampled for each policy update.
        response_tokens: longest response in training, in tokens; evaluation allows a fifth more.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        kl_coef: weight of the KL penalty to the start model, per nat.
        engine: who samples: native, ray:4 (workers of a Ray cluster) or the http://HOST:PORT of a vLLM server.
        most_prompts: prompts of each split; 0 takes all.
    """
    check(
        locals(),
        at_least_one=("rounds", "steps", "samples_per_step", "response_tokens"),
        above_zero=("temperature", "lr"),
        not_negative=("compare_steps", "supervised_steps", "warmstart_steps", "ptx_coef", "kl_coef", "margin"),
    )
    limits, half = read_limits(limit, margin=margin), max(1, samples_per_step // 2)
    record = replace(algorithm_named(algorithm, safety.ALGORITHMS), kl_coef=kl_coef)
    arms: dict[str, Arm] = {"lagrangian": (limits, steps, samples_per_step)}
    if warmstart_steps:
        arms["imitation"] = (Unconstrained, 0, 0)
    if compare_steps:
        arms |= {name: (objective, compare_steps, half) for name, objective in safety.OTHER_OBJECTIVES.items()}
    return Study(
        arms=arms,
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=METRICS,
        labels=LABELS,
        claims=[
            Claim(text="harm falls below the start's", metric="harm_start", higher="lagrangian", lower="lagrangian",
                  lower_metric="harm"),
            Claim(text="it wins half of the harmless prompts or more", metric="wins", higher="lagrangian", lower=0.5),
        ],
        threads=None,
        report=partial(safety_report, main="lagrangian", model=model, data=data, limit=limit, limits=limits),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: Arm, seed: int, part: Run) -> Trial:
    """One objective from one seed: all arms of a seed share start, judge, signal and the imitated adapter."""
    objective, updates, samples = arm
    sampling = Sampling(max_tokens=given.response_tokens, temperature=given.temperature)
    said = replace(sampling, max_tokens=given.response_tokens * 6 // 5, samples=ANSWERS, seed=90_001 + seed)
    reading = {"seed": seed, "max_tokens": max(128, 4 * given.response_tokens), "tokens_per_micro_batch": 2048}
    names = ("model", "chat_template", "data", "columns", "supervised_steps", "most_prompts", "limits")
    with common_part(part, f"seed-{seed}") as common:
        chosen = {name: getattr(given, name) for name in names}
        material = safety.prepare(common, seed=seed, longest_answer=said.max_tokens, **chosen)
        policy = Policy(material.backbone, safety.ADAPTER, seed=seed)
        start = material.evaluated(common, policy, sampling=said, engine=given.engine, reference=True)
        signal = material.signal(common)
        if given.warmstart_steps:
            safety.imitate_refusals(common, policy, material, steps=given.warmstart_steps, per_step=48, **reading)
    if updates:
        signal = safety.align_in_rounds(
            part, policy, material, signal, rounds=given.rounds, objective=objective, sampling=sampling, seed=seed,
            algorithm=given.record, samples_per_step=samples,
            optimisation=OptimizerSettings(lr=given.lr, steps=updates, ptx_coef=given.ptx_coef), engine=given.engine,
            demonstrations=safety.mixed_in(policy, material, **reading) if given.ptx_coef else None,
        )  # fmt: skip
    final = material.evaluated(part, policy, sampling=said, signal=signal, engine=given.engine)
    drawn, curves = cost_limit(given.limits), training_curves(part, f"policy-{given.rounds}", limits=given.limits)
    notes = (*NOTES, *map(str, safety.held_limits(given.limits, signal)), *material.left_out)
    verdicts = Verdicts(start=start, final=final, judge=material.judge, signal=signal, curves=curves, notes=notes,
                        limit=drawn.at_most if drawn else None, settings=part.arguments)  # fmt: skip
    return safety_trial(part, "Safe RLHF", verdicts)
