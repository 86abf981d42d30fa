"""Safe RLHF: a reward and a cost model from decoupled feedback, then reinforcement learning under limits.

    base -> SFT -> reward + cost model -> policy under limits -> evaluation by a held-out judge

Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773. As there,
helpfulness and harmlessness are judged apart, reinforcement starts from an SFT model that is the reference of its KL
penalty, and multipliers hold the limits: on the share of harmful answers and of refused harmless prompts. Base, SFT
start and policy are judged alike, by a judge that was never trained against. Unlike there, one frozen backbone carries
scores and judge, and few updates must do. Other objectives and methods are arms of `safe-rlhf-attribution`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from poise.experiment import Claim, MethodCard, Study, Trial, common_part, recipe
from poise.experiment.safety import LABELS, METRICS, NOTES, Verdicts, safety_report, safety_trial, training_curves
from poise.experiment.safety_rounds import round_claims, round_metrics, told_of_rounds
from poise.pipeline import safety
from poise.pipeline.limits import LIMITS, cost_limit, read_limits
from poise.pipeline.rounds import align_in_rounds, annotators_named, require_annotator
from poise.pipeline.settings import check
from poise.pipeline.sft import mixed_in, require_served
from poise.pipeline.stages import begin
from poise.pipeline.unseen_limits import all_findings
from poise.run import Run
from poise.train.algorithms import algorithm_named, kl_in_loss
from poise.train.averaging import DecayedAverage
from poise.train.on_policy import OptimizerSettings

CARD = MethodCard(
    title="Safe RLHF: as helpful as can be under a limit on harm", paper="arXiv:2310.12773",
    reported="harmful answers 53.08 % -> 2.45 % over three rounds (Alpaca-7B to Beaver-v3, human labels)",
    feedback="people, help and harm apart", form="comparisons and safety labels", signal="reward and cost model",
    optimiser="RLOO, or any record", regulariser="KL to the SFT start", data="starter",
    constraint="a Lagrange multiplier for each limit", model="SmolLM2-135M, an adapter",
)  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "steps": 2, "samples_per_step": 8, "response_tokens": 8,
         "most_prompts": 24, "warmstart_steps": 2, "seeds": 1}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def safe_rlhf(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "starter",
    columns: str = "",
    algorithm: str = "rloo",
    limit: float | tuple[str, ...] = LIMITS,
    margin: float = 0.12,
    rounds: int = 1,
    annotator: str = "rule",
    steps: int = 30,
    supervised_steps: int = 0,
    warmstart_steps: int = 40,
    ptx_coef: float = 0.0,
    samples_per_step: int = 64,
    response_tokens: int = 40,
    temperature: float = 0.7,
    lr: float = 4e-4,
    average: float = 0.9,
    validate_every: int = 10,
    kl_coef: float = 0.03,
    kl_per_token: bool = False,
    engine: str = "native",
    most_prompts: int = 0,
) -> Study:
    """Run Safe RLHF from feedback to report: base, SFT start and policy under limits, each judged.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        data: names or paths of feedback, joined by +.
        columns: names of the columns of your files, as prompt=question,chosen=better; ignore=score leaves one out.
        algorithm: rloo (four samples of a prompt, few steps), ppo (a critic per channel), or any record: grpo, dapo ...
        limit: how many answers may harm, of those to prompts that may do harm, and how many harmless prompts may be
            refused. Each text is a limit: --limit 'rate(cost) <= 0.02' --limit 'refusal@benign <= 0.05'. A number is
            the paper's: the largest mean cost, in sd of the cost model, between -1 and 1; 0 divides safe from unsafe.
        margin: how far below such a number training holds the cost: prompts that it never saw cost a little more.
        rounds: rounds of feedback; after each the annotator compares the policy's answers to prompts held out for it.
        annotator: rule, person:0.1 (a score model of its own, wrong in a tenth of its verdicts) or people's file.
        steps: policy updates per round.
        supervised_steps: updates of supervised fine-tuning on preferred responses before those on demonstrations.
        warmstart_steps: updates on demonstrations: refusals of harmful prompts that say why, and three times as many
            good answers to harmless ones; 0 starts reinforcement from the base itself.
        ptx_coef: weight of the cross-entropy on preferred answers to harmless prompts in every update of a policy.
        samples_per_step: responses sampled for each update.
        response_tokens: longest response in training, in tokens; evaluation allows a fifth more.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        average: how much of the average of the weights stays in each update; the average is the policy. 0: no average.
        validate_every: updates between checks of the limits on the judge's prompts, which choose the policy; 0: never.
        kl_coef: weight of the KL penalty to the SFT start, per nat.
        kl_per_token: charge it in the loss, as a mean over tokens: the sum over a response favours short answers.
        engine: who samples: native, ray:4 (workers of a Ray cluster) or the http://HOST:PORT of a vLLM server.
        most_prompts: prompts of each split; 0 takes all.
    """
    check(
        locals(),
        at_least_one=("rounds", "steps", "samples_per_step", "response_tokens"),
        above_zero=("temperature", "lr"),
        not_negative=("supervised_steps", "warmstart_steps", "ptx_coef", "kl_coef", "margin", "validate_every"),
    )
    limits, fine_tuned = read_limits(limit, margin=margin), supervised_steps + warmstart_steps > 0
    require_served(engine, fine_tuned=fine_tuned)
    require_annotator(annotator, rounds=rounds)
    averaged, record = DecayedAverage(average) if average else None, algorithm_named(algorithm, safety.ALGORITHMS)
    optimisation = OptimizerSettings(lr=lr, steps=steps, ptx_coef=ptx_coef, average=averaged)
    record = kl_in_loss(replace(record, kl_coef=kl_coef)) if kl_per_token else replace(record, kl_coef=kl_coef)
    return Study(
        arms={stage: stage for stage in ("base", "sft", "lagrangian") if stage != "sft" or fine_tuned},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=[*METRICS, *round_metrics(rounds)],
        labels=LABELS,
        claims=[Claim(text=f"harm falls below the {name}'s", metric="harm", higher=stage, lower="lagrangian")
                for stage, name in (("base", "base"), *([("sft", "SFT start")] if fine_tuned else []))]
        + [Claim(text="it wins half of the harmless prompts or more", metric="wins", higher="lagrangian", lower=0.5)]
        + round_claims(rounds, "lagrangian"),
        threads=None,
        report=partial(safety_report, main="lagrangian", model=model, data=data, limit=limit, limits=limits),
    )  # fmt: skip


def trial(given: SimpleNamespace, stage: str, seed: int, part: Run) -> Trial:
    """What one stage came to from one seed: the base, the SFT start, or the policy; they share judge and signal."""
    with common_part(part, f"seed-{seed}") as common:
        begun = begin(common, vars(given), seed=seed, limits=given.limits)
    material, policy, signal, base, start = begun.material, begun.policy, begun.signal, begun.base, begun.start
    before, final = {"base": (base, base), "sft": (base, start)}.get(stage, (start, start))
    longest = begun.judged["sampling"].max_tokens
    rounds = () if stage != "lagrangian" else align_in_rounds(
        part, policy, material, signal, rounds=given.rounds, objective=material.limits, sampling=begun.sampling,
        annotators=annotators_named(part, given.annotator, material, seed=seed), judged=begun.judged, seed=seed,
        validate_every=given.validate_every, algorithm=given.record, samples_per_step=given.samples_per_step,
        engine=given.engine, optimisation=given.optimisation,
        demonstrations=mixed_in(policy, material.train, longest_answer=longest, seed=seed) if given.ptx_coef else None,
    )  # fmt: skip
    if rounds:
        signal, final = rounds[-1].signal, rounds[-1].judged or final
    drawn, fitted = cost_limit(material.limits), map(str, safety.held_limits(material.limits, signal))
    verdicts = Verdicts(
        start=before, final=final, base=base, judge=material.verdict, signal=signal,
        curves=training_curves(part, f"policy-{given.rounds}", limits=material.limits),
        held=all_findings(part, f"policy-{given.rounds}", material.limits, final.evaluation.metrics),
        limit=drawn.at_most if drawn else None, settings=part.arguments, notes=(*NOTES, *fitted, *material.left_out),
    )  # fmt: skip
    return safety_trial(part, "Safe RLHF", verdicts, **told_of_rounds(rounds, base=base, start=start))
