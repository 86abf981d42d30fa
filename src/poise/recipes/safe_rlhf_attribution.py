"""What makes the difference in Safe RLHF: limits, penalties, decoupled feedback, or the start alone.

    base -> SFT -> one signal -> every method from the same start, at equal rollouts -> harm, over-refusal and wins

After Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773, which
compares with PPO on reward alone, reward shaping, and RLHF on one joint preference. Beside them: three limits, three
estimators, RePO's rectified cost (arXiv:2410.19933), SafeDPO (arXiv:2505.20065), the SFT start and the best of n of its
answers. Methods with a limit or a price on cost are told which prompts may do harm, the other ones need no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from poise.experiment import Claim, MethodCard, Plot, Study, Trial, against, common_part, recipe
from poise.experiment.front import front_of
from poise.experiment.safety import METRICS, NOTES, OVER_REFUSAL, Verdicts, safety_report, safety_trial
from poise.pipeline import rivals, safety
from poise.pipeline.limits import LIMITS, read_limits
from poise.pipeline.rounds import align_in_rounds
from poise.pipeline.settings import check
from poise.pipeline.stages import begin
from poise.run import Run
from poise.train.algorithms import PPO
from poise.train.averaging import DecayedAverage
from poise.train.objectives import Penalty, Unconstrained
from poise.train.on_policy import OptimizerSettings

CARD = MethodCard(
    title="Safe RLHF against its rivals, at equal rollouts", paper="arXiv:2310.12773",
    reported="the limit beats reward alone, one joint preference, and every shaping coefficient (Alpaca-7B)",
    feedback="people, help and harm apart", form="comparisons and safety labels", signal="reward and cost model",
    optimiser="RLOO, PPO, GRPO, SafeDPO, best of n", regulariser="KL to the SFT start", data="starter",
    constraint="none, a price, or one or two limits", model="SmolLM2-135M, an adapter",
)  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "steps": 1, "samples_per_step": 8, "response_tokens": 8, "most_prompts": 24,
         "warmstart_steps": 2, "preference_steps": 1, "best_of": 2, "seeds": 1}  # fmt: skip
MEAN, RATE, BOTH = ("cost@may_harm <= -0.5",), LIMITS[:1], LIMITS
COEFFICIENTS = (0.01, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)  # the paper's
METHODS: Mapping[str, rivals.Method] = {
    "base": rivals.Method(label="base model", own="base"),
    "sft": rivals.Method(label="SFT start", own="sft"),
    "best-of-n": rivals.Method(label="best of n of the SFT start", own="best-of-n"),
    "lagrangian": rivals.limited(*BOTH, how="rate of harm and over-refusal (RLOO)"),
    "lagrangian-rate": rivals.limited(*RATE, how="rate of harm (RLOO)"),
    "lagrangian-mean": rivals.limited(*MEAN, how="mean cost (RLOO)"),
    "ppo-lag": rivals.limited(*BOTH, how="both (PPO, a critic each, GAE 0.95)", algorithm=PPO),
    "grpo-lag": rivals.limited(*BOTH, how="both (GRPO)", algorithm=safety.ALGORITHMS["grpo"]),
    "repo": rivals.Method(label="limit: rectified cost (RePO)", wanted=rivals.rectified),
    "reward": rivals.Method(label="reward alone", wanted=Unconstrained),
    "cost": rivals.Method(label="cost alone", wanted=lambda: Penalty(1.0, reward_weight=0.0)),
    **{f"shaping-{x:g}": rivals.Method(label=f"price {x:g}", wanted=partial(rivals.priced, x)) for x in COEFFICIENTS},
    "joint": rivals.Method(label="RLHF on one joint preference", wanted=Unconstrained, own="joint"),
    "safe-dpo": rivals.Method(label="SafeDPO", own="safe-dpo"),
}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=3, workers=1)
def safe_rlhf_attribution(
    *,
    model: str = "smollm2-135m",
    data: str = "starter",
    warmstart_steps: int = 40,
    steps: int = 20,
    samples_per_step: int = 64,
    preference_steps: int = 60,
    best_of: int = 8,
    response_tokens: int = 40,
    temperature: float = 0.7,
    lr: float = 4e-4,
    average: float = 0.9,
    kl_coef: float = 0.03,
    most_prompts: int = 0,
) -> Study:
    """Train every method from the same start and signal, and put harm, over-refusal and wins side by side.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        data: names or paths of feedback, joined by +.
        warmstart_steps: updates on demonstrations that make the SFT start; 0 starts all methods from the base.
        steps: policy updates of each method that samples.
        samples_per_step: responses sampled for each of them.
        preference_steps: updates of SafeDPO, which samples nothing.
        best_of: answers of the start of which the signal chooses one.
        response_tokens: longest response in training, in tokens; evaluation allows a fifth more.
        temperature: sampling temperature, in training and evaluation.
        lr: learning rate of the policy adapter.
        average: how much of the average of the weights stays in each update; the average is the policy.
        kl_coef: weight of the KL penalty to the start, per nat.
        most_prompts: prompts of each split; 0 takes all.
    """
    check(locals(), at_least_one=("steps", "samples_per_step", "preference_steps", "best_of", "response_tokens"),
          above_zero=("temperature", "lr"), not_negative=("warmstart_steps", "kl_coef"))  # fmt: skip
    settings = OptimizerSettings(lr=lr, steps=steps, average=DecayedAverage(average))
    rivals_of = {"the limits": list(METHODS)[3:9], "prices": [f"shaping-{nu:g}" for nu in COEFFICIENTS],
                 "others": ["base", "sft", "best-of-n", "reward", "cost", "joint", "safe-dpo"]}  # fmt: skip
    return Study(
        arms=METHODS,
        trial=partial(trial, SimpleNamespace(**locals())),
        labels={name: method.label for name, method in METHODS.items()},
        metrics=[METRICS[0], OVER_REFUSAL, *METRICS[1:]],
        claims=[
            Claim(text="Two limits leave less harm than SFT", metric="harm", higher="sft", lower="lagrangian"),
            Claim(text="... than reward alone", metric="harm", higher="reward", lower="lagrangian"),
            Claim(text="... than one joint preference", metric="harm", higher="joint", lower="lagrangian"),
            Claim(text="They win half or more over SFT", metric="wins", higher="lagrangian", lower=0.5, source="ours"),
            *(ours(f"Two limits refuse fewer harmless prompts than {METHODS[name].label}", "over_refusal", name)
              for name in ("lagrangian-rate", "cost", "shaping-5", "repo", "safe-dpo")),
            *(ours(f"Two limits leave less harm than {METHODS[name].label}", "harm", name)
              for name in ("shaping-1", "ppo-lag", "grpo-lag", "safe-dpo", "best-of-n")),
        ],
        plots=[Plot(title=f"{up} against harm", across="harm", up=up, draw=against("harm", metric, rivals_of))
               for up, metric in (("harmless prompts refused", "over_refusal"), ("wins over the base", "wins_base"))],
        threads=None,
        report=lambda run, results: {**safety_report(run, results, main="lagrangian", limits=read_limits(BOTH)),
                                     "front": front_of(results)},
    )  # fmt: skip


def ours(text: str, metric: str, higher: str) -> Claim:
    """An expectation of ours, that a rival has more of something bad."""
    return Claim(text=text, metric=metric, higher=higher, lower="lagrangian", source="ours")


def trial(given: SimpleNamespace, method: rivals.Method, seed: int, part: Run) -> Trial:
    """One method from one seed: all methods of a seed share start, judge and signal."""
    with common_part(part, f"seed-{seed}") as common:
        begun = begin(common, vars(given), seed=seed, limits=read_limits((*MEAN, *BOTH)))
    start, final = {"base": (begun.base, begun.base), "sft": (begun.base, begun.start)}.get(
        method.own, (begun.start, None)
    )
    if method.own == "best-of-n":
        final = rivals.best_of(part, begun, given.best_of)
    elif method.own == "safe-dpo":
        rivals.learn_safe_dpo(part, begun, steps=given.preference_steps, seed=seed)
    elif final is None:
        signal = rivals.joint_signal(part, begun) if method.own == "joint" else begun.signal
        align_in_rounds(
            part, begun.policy, begun.material, signal, objective=method.wanted, sampling=begun.sampling, seed=seed,
            algorithm=replace(method.algorithm or safety.ALGORITHMS["rloo"], kl_coef=given.kl_coef),
            samples_per_step=given.samples_per_step, optimisation=given.settings,
        )  # fmt: skip
    final = final or begun.material.evaluated(part, begun.policy, **begun.judged)
    verdicts = Verdicts(start=start, final=final, base=begun.base, judge=begun.material.verdict, signal=begun.signal,
                        settings=part.arguments, notes=(*NOTES, *begun.material.left_out))  # fmt: skip
    return safety_trial(part, "Safe RLHF against its rivals", verdicts)
