"""Rounds of feedback: responses of the current policy, compared by annotators, each criterion apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from poise.data.rollouts import read_comparison
from poise.feedback.annotators import RuleAnnotator
from poise.files import to_jsonable
from poise.models.policy import Policy
from poise.pipeline.alignment import FILLED, align
from poise.pipeline.limits import under_limits
from poise.pipeline.safety import Material, calibrations_of, held_limits, known_prompts
from poise.pipeline.scores import TrainedScoreModel
from poise.plan.work import current_planner
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.limit_text import LimitText, group_named
from poise.train.objectives import Objective
from poise.train.sharding import shard_engine
from poise.train.validation import Validation
from poise.types import Annotator, Dataset, Engine, Prompt, Sampling

ANNOTATORS = (RuleAnnotator("helpful"), RuleAnnotator("safe"))


def collect_comparisons(
    run: Run,
    policy: Policy,
    prompts: Sequence[Prompt],
    annotators: Sequence[Annotator],
    *,
    sampling: Sampling = Sampling(),
    engine: Engine | None = None,
    name: str = "annotations",
) -> Dataset:
    """Sample two responses to each prompt, and let every annotator compare them; equal or empty pairs are skipped.

    The comparisons are stored in the stage, so a resumed run does not call annotators again.
    """
    if (planner := current_planner()) is not None:
        answers, longest = 2 * len(prompts), sampling.max_tokens
        context = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in prompts]) + longest * FILLED
        memory = planner.compute.generating(answers, context=context)
        seconds = planner.compute.decoding(answers, longest, context=context)
        planner.add(planner.named(run, name), seconds=seconds, memory=memory, work=f"{answers} answers, compared")
        return Dataset(name=name)
    stage = run.stage(name)
    if not stage.finished:
        answering = shard_engine(engine or NativeEngine(policy))
        made = answering.generate(prompts, replace(sampling, samples=2))
        texts = ["" if completion.unfit else completion.text for completion in made]
        pairs = [(prompt, texts[2 * i : 2 * i + 2]) for i, prompt in enumerate(prompts)]
        usable = [(prompt, pair) for prompt, pair in pairs if pair[0] != pair[1] and all(pair)]
        verdicts = [annotator.compare(prompt, pair) for prompt, pair in usable for annotator in annotators]
        stage.finish({"rows": [to_jsonable(verdict) for verdict in verdicts], "left_out": len(pairs) - len(usable)})
    return Dataset(name=name, comparisons=tuple(read_comparison(row) for row in stage.result["rows"]))


def align_in_rounds(
    run: Run,
    policy: Policy,
    material: Material,
    signal: TrainedScoreModel,
    *,
    objective: Callable[[], Objective] | Sequence[LimitText],
    sampling: Sampling,
    rounds: int = 1,
    annotators: Sequence[Annotator] = ANNOTATORS,
    seed: int = 0,
    validate_every: int = 0,
    **options: Any,
) -> TrainedScoreModel:
    """Reinforcement learning in rounds of feedback; returns the training signal of the last.

    Each round adds an equal share of the training prompts. Between rounds the annotators compare responses of the
    current policy to the next round's prompts, and reward and cost model learn anew with what they said.

    objective       a fresh one for each round, or the limits under which the reward is maximised
    validate_every  updates between checks of these limits on the judge's prompts, which neither policy nor signal learn
                    from; the policy that is kept is chosen there. 0: it is not
    options         further arguments of `align`
    """
    prompts, gathered = material.train_prompts, list[Dataset]()
    limits = () if callable(objective) else tuple(objective)
    for number in range(1, rounds + 1):
        if number > 1:
            signal = material.signal(run, gathered=gathered, name=f"scores-{number}")
        known = prompts[: max(1, len(prompts) * number // rounds)]
        if limits:
            limits = held_limits(limits, signal)
            run.record_reading("limits", [each.record() for each in limits])
            options["validate"] = validation_of(limits, signal, material, every=validate_every)
        wanted = objective() if callable(objective) else under_limits(limits, calibrations_of(signal.model))
        options |= {"objective": wanted, "sampling": sampling, "seed": seed + number}
        align(run, policy, material.scorers(signal, limits), known, name=f"policy-{number}", **options)
        if number < rounds:
            asked = prompts[: max(1, len(prompts) * (number + 1) // rounds)]
            drawn, name = replace(sampling, temperature=1.0, seed=seed + number), f"annotations-{number}"
            gathered.append(collect_comparisons(run, policy, asked, annotators, sampling=drawn, name=name))
    return signal


def validation_of(
    limits: Sequence[LimitText], signal: TrainedScoreModel, material: Material, *, every: int
) -> Validation | None:
    """Checks of the limits, without a margin, on prompts that neither policy nor signal learn from.

    None where none are wanted, or a limit speaks of prompts of which there are none.
    """
    prompts = known_prompts(material.splits["judge"]) if "judge" in material.splits else ()
    groups = [group_named(each.group) for each in limits if each.group]
    if not every or not prompts or not all(any(map(group.contains, prompts)) for group in groups):
        return None
    meant = under_limits([replace(each, margin=0.0) for each in limits], calibrations_of(signal.model)).limits
    return Validation(prompts=prompts, every=every, limits=meant)
