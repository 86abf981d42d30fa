"""Evaluation: a model answers a suite, scorers judge the answers, and both are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from poise.data.rollouts import read_rollouts, write_rollouts
from poise.evaluate.suite import Suite, SuiteResult, measure, run_suite
from poise.models.policy import Policy
from poise.pipeline.alignment import FILLED
from poise.plan.work import Planner, current_planner
from poise.rollout.named import engine_for
from poise.rollout.scripted import ScriptedEngine
from poise.run import Run
from poise.train.sharding import shard_engine
from poise.types import Engine, Estimate, Evaluation, Rollout, Sampling, Scorer

FurtherMetric = Callable[[Sequence[Rollout]], Estimate]
_JUDGE_DEPTH = 0.7  # share of the layers that a scorer is taken to read, where a run is planned


def evaluate(
    run: Run,
    policy: Policy,
    suite: Suite,
    scorers: Mapping[str, Scorer],
    *,
    sampling: Sampling,
    name: str = "evaluate",
    engine: str | Engine = "native",
    reference: bool = False,
    further: Mapping[str, FurtherMetric] | None = None,
) -> SuiteResult:
    """Answer the prompts of a suite with a policy, score the answers and compute the metrics.

    reference  answer with the policy's reference instead
    further    metrics of the rollouts besides the suite's, such as the KL to the start

    The answers are kept with their scores in rollouts.jsonl, so that they can be judged again without being sampled.
    """
    stage, further = run.stage(name), dict(further or {})
    if (planner := current_planner()) is not None:
        _plan(planner, planner.named(run, name), suite, sampling, len(further))
        suite, engine, further = _in_brief(suite), ScriptedEngine({}, default="An answer."), {}
    path = stage.path / "rollouts.jsonl"
    if not stage.finished:
        with engine_for(policy, engine, folder=stage.path / "adapters", reference=reference) as answering:
            found = run_suite(
                suite, engine=shard_engine(answering), scorers=scorers, sampling=sampling, model_name=name
            )
        write_rollouts(path, found.rollouts)
        stage.finish({"further": {key: metric(found.rollouts) for key, metric in further.items()}})
    rollouts = read_rollouts(path)
    metrics = measure(rollouts) | {key: Estimate(**value) for key, value in stage.result["further"].items()}
    evaluation = Evaluation(suite=suite.name, model=name, metrics=metrics, rollouts_path=str(path))
    return SuiteResult(evaluation=evaluation, rollouts=rollouts)


def _in_brief(suite: Suite) -> Suite:
    """The first prompts of each kind: enough for every metric to be there."""
    kinds: dict[str, list[int]] = {}
    for index, prompt in enumerate(suite.prompts):
        kinds.setdefault(str(prompt.tags.get("kind")), []).append(index)
    chosen = sorted(index for places in kinds.values() for index in places[:2])
    return Suite(name=suite.name, prompts=tuple(suite.prompts[index] for index in chosen))


def _plan(planner: Planner, name: str, suite: Suite, sampling: Sampling, further: int) -> None:
    """Sample, read the answers once for the judge, and once more for each further metric."""
    compute, longest, prompts = planner.compute, sampling.max_tokens, len(suite.prompts)
    prompt_tokens = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in suite.prompts])
    answers, context = prompts * sampling.samples, prompt_tokens + longest
    tokens = answers * (prompt_tokens + longest * FILLED)
    seconds = compute.forward(prompts * prompt_tokens) + compute.decoding(answers, longest, context=context)
    seconds += compute.forward(tokens, layers=compute.model.layers * _JUDGE_DEPTH)
    seconds += further * compute.forward(tokens, positions=answers * longest * FILLED)
    memory = compute.generating(answers, context=context)
    planner.add(name, seconds=seconds, memory=memory, work=f"{answers} answers, judged")
