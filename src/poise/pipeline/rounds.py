"""Rounds of feedback: responses of the current policy, compared by annotators, each criterion apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poise.data.rollouts import read_comparison
from poise.files import to_jsonable
from poise.models.policy import Policy
from poise.pipeline.alignment import FILLED
from poise.plan.work import current_planner
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.sharding import shard_engine
from poise.types import Annotator, Dataset, Engine, Prompt, Sampling


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
    """Sample two responses to each prompt and have every annotator compare them; equal or empty ones are left out.

    What was annotated is kept in the stage: a resumed run asks nobody twice.
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
