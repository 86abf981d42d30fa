"""Policy optimisation: any algorithm under any objective, with any scorers, as one resumable stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from poise.files import write_json
from poise.models.policy import Policy
from poise.pipeline.dual_start import MOST_PROMPTS, start_from_dual
from poise.pipeline.dual_start import SAMPLES as DUAL_SAMPLES
from poise.pipeline.kept import keep, taken_back
from poise.pipeline.supervised import update_seconds
from poise.plan.work import Planner, current_planner
from poise.ranks import by_main
from poise.rollout.named import computes_elsewhere, engine_for
from poise.run import Run, Stage
from poise.text import say
from poise.train.algorithms import RLOO, Algorithm
from poise.train.loop import fit
from poise.train.objectives import Objective
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.train.supervised import DemonstrationBatches
from poise.train.validation import Validation
from poise.types import Engine, Estimate, Prompt, Sampling, Scorer

IMPORTANCE_CAP = 2.0  # that of Yao et al. (2025), where another program computes the sampler's log-probabilities
FILLED = 0.85  # of the longest response: what sampled responses had where it was measured
_SHOWN = ("reward", "cost", "excess", "multiplier", "sequence_kl")
LAST = "last"  # folder of the policy after its last update, where the average is kept
VALIDATION = "validation.json"  # every check on validation prompts, and the one of the policy that is kept
_KEPT_SAMPLES = 4  # of each step, in samples.jsonl


def align(
    run: Run,
    policy: Policy,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    *,
    objective: Objective,
    algorithm: Algorithm = RLOO,
    samples_per_step: int = 64,
    sampling: Sampling = Sampling(),
    optimisation: OptimizerSettings = OptimizerSettings(),
    demonstrations: DemonstrationBatches | None = None,
    validate: Validation | None = None,
    start: Literal["given", "dual"] = "given",
    engine: str | Engine = "native",
    seed: int = 0,
    name: str = "policy",
) -> Policy:
    """Maximise what the objective wants of the scorers' channels, and return the policy trained.

    scorers         fill the channels that the objective names: reward, cost, or any others
    optimisation    its `steps` are updates, each on `samples_per_step` responses to prompts drawn by the seed
    demonstrations  imitated a little in every update (the paper's PTX loss), with the weight of `optimisation`
    validate        prompts that are never trained on, on which the policy that is kept is chosen
    start           of the multipliers: as given, or estimated from responses of the start model (`start_from_dual`)
    engine          who samples: native, ray:4, the http://HOST:PORT of a vLLM server, or an engine of your own

    Kept is, with `validate`, the policy (or average) with the highest reward of those that met every limit there, or
    the one that missed them least, which is said; validation.json has every check. Else it is the average of the
    weights where `optimisation` asks for one, else the one with the highest recent reward among those whose batches met
    every limit, else the last. The stage's folder holds it in `model`, in a form that peft (or transformers, trained
    whole) loads as it is, and the policy after the last update in `last` where that may be another one.
    """
    if (planner := current_planner()) is not None:
        place, steps = planner.named(run, name), optimisation.steps
        if start == "dual":
            _plan_dual_start(planner, f"{place}-start", prompts, sampling)
        beside = demonstrations, validate
        _plan(planner, place, prompts, algorithm, steps, samples_per_step, sampling, *beside)
        return policy
    stage, steps = run.stage(name), optimisation.steps
    if not stage.finished:
        if start == "dual":
            known: dict[str, Any] = {"objective": objective, "algorithm": algorithm, "sampling": sampling, "seed": seed}
            start_from_dual(run, policy, scorers, prompts, **known, engine=engine, name=f"{name}-start")
        elsewhere = isinstance(engine, str) and computes_elsewhere(engine)
        with engine_for(policy, engine, folder=stage.path / "adapters") as answering:
            trainer = OnPolicyTrainer(
                policy=policy,
                engine=answering,
                scorers=scorers,
                algorithm=replace(algorithm, importance_cap=IMPORTANCE_CAP) if elsewhere else algorithm,
                objective=objective,
                prompts=prompts,
                prompts_per_step=max(1, samples_per_step // algorithm.samples_per_prompt),
                sampling=sampling,
                optimisation=optimisation,
                demonstrations=demonstrations,
                seed=seed,
                dump_folder=stage.path,
            )
            if validate is not None:
                trainer.validate_on(validate)

            def keep_samples(step: int, metrics: Mapping[str, float]) -> None:
                for rollout in trainer.rollouts[:_KEPT_SAMPLES]:
                    run.sample(stage.name, step, rollout)

            fit(trainer, run=run, stage=stage.name, steps=steps, shown=_SHOWN, after_step=keep_samples)
        keep(policy, stage, {"steps": steps, **_choose(policy, trainer, stage, steps)})
    return taken_back(policy, stage)


def _choose(policy: Policy, trainer: OnPolicyTrainer, stage: Stage, steps: int) -> dict[str, Any]:
    """Give the policy the weights that are kept; returns what they are.

    An average is wanted for what it is, so that no policy of a single step takes its place. `feasible` is about the
    batches that were sampled in training: of the kept weights, or before the last update.
    """
    if trainer.average is not None or trainer.validated is not None:
        policy.save_pretrained(stage.path / LAST)
    if trainer.validated is not None and (check := trainer.validated.load_into(trainer.parameters)) is not None:
        by_main(write_json)(stage.path / VALIDATION, trainer.validated.record())
        if not check["feasible"]:
            say(_missed(stage.name, check), error=True)
        facts = {"kept": "best on validation", "kept_step": check["step"], "feasible": check["feasible"]}
        return {**facts, "validation": check}
    if trainer.load_average():
        return {"kept": "average", "kept_step": steps, "feasible": trainer.feasible.is_met}
    best = trainer.load_best()
    kept = "last" if best is None else "best feasible"
    return {"kept": kept, "kept_step": best or steps, "feasible": best is not None}


def _missed(stage: str, check: Mapping[str, Any]) -> str:
    """Which limits the policy that is kept does not meet, and by how much."""
    values = {each["limit"]: Estimate(**each["value"]) for each in check["limits"] if each["value"] is not None}
    told = "; ".join(
        f"{each['limit']} is {values.get(each['limit'], 'not measured')}, limit {each['at_most']:g}"
        for each in check["limits"]
        if not each["is_met"]
    )
    return (
        f"{stage}: no policy met every limit on the validation prompts. Kept is the one that missed them least, after "
        f"{check['step']} updates: {told}"
    )


def _plan(
    planner: Planner,
    name: str,
    prompts: Sequence[Prompt],
    algorithm: Algorithm,
    steps: int,
    samples: int,
    sampling: Sampling,
    demonstrations: DemonstrationBatches | None,
    validate: Validation | None,
) -> None:
    """Each step samples, scores, asks the reference and updates; now and then the policy is checked."""
    compute, longest = planner.compute, sampling.max_tokens
    asked = max(1, samples // algorithm.samples_per_prompt)
    samples = asked * algorithm.samples_per_prompt
    prompt_tokens = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in prompts])
    context, positions = prompt_tokens + longest, samples * longest * FILLED
    tokens = asked * prompt_tokens + positions
    below = compute.model.layers - compute.trained_layers
    seconds = compute.forward(asked * prompt_tokens) + compute.decoding(samples, longest, context=context)
    seconds += compute.forward(tokens, layers=compute.model.layers * 0.5)  # the scores
    seconds += compute.forward(tokens, layers=below)
    seconds += compute.forward(tokens, layers=compute.trained_layers, positions=positions)  # the reference
    seconds += algorithm.epochs * compute.training(tokens, positions=positions)
    if demonstrations is not None:
        imitated = demonstrations.per_step
        each = 2 * prompt_tokens
        seconds += algorithm.epochs * update_seconds(compute, imitated * each, imitated * prompt_tokens)
    seconds, checked = steps * seconds, ""
    if validate is not None:
        checks = math.ceil(steps / validate.every)
        checked = f", {checks} checks on {len(validate.prompts)} prompts"
        seconds += checks * _asking(planner, validate.prompts, validate.samples, sampling)
    planner.add(
        name,
        seconds=seconds,
        memory=max(compute.updating() + compute.states(tokens), compute.generating(samples, context=context)),
        work=f"{steps} updates of {samples} samples, {tokens:,.0f} tokens{checked}",
    )


def _plan_dual_start(planner: Planner, name: str, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """The start model answers some of the prompts, and its answers are scored."""
    asked = prompts[:MOST_PROMPTS]
    context = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in asked]) + sampling.max_tokens
    answers = DUAL_SAMPLES * len(asked)
    planner.add(
        name,
        seconds=_asking(planner, asked, DUAL_SAMPLES, sampling),
        memory=planner.compute.generating(answers, context=context),
        work=f"{answers} answers of the start model, scored",
    )


def _asking(planner: Planner, prompts: Sequence[Prompt], samples: int, sampling: Sampling) -> float:
    """Seconds to answer every prompt so many times, and to score the answers."""
    compute, longest, answers = planner.compute, sampling.max_tokens, samples * len(prompts)
    prompt_tokens = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in prompts])
    seconds = compute.forward(len(prompts) * prompt_tokens)
    seconds += compute.decoding(answers, longest, context=prompt_tokens + longest)
    tokens = len(prompts) * prompt_tokens + answers * longest * FILLED
    return seconds + compute.forward(tokens, layers=compute.model.layers * 0.5)
