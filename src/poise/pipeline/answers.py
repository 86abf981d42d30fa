"""Answers that are read whole, whatever they say: for tasks where every prompt of every arm must have a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from poise.data.rollouts import read_rollouts, write_rollouts
from poise.errors import EngineError
from poise.models.policy import Policy
from poise.pipeline.alignment import FILLED
from poise.plan.work import Planner, current_planner
from poise.rollout.named import engine_for
from poise.run import Run
from poise.train.sharding import shard_engine
from poise.types import Completion, Engine, Prompt, Rollout, Sampling, Scores

Reader = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]  # prompts and responses [N] to values [N]


def read_answers(
    run: Run,
    policy: Policy,
    prompts: Sequence[Prompt],
    readers: Mapping[str, Reader],
    *,
    sampling: Sampling,
    name: str = "answers",
    engine: str | Engine = "native",
    reference: bool = False,
) -> tuple[Rollout, ...]:
    """Answer prompts with a policy, and let every reader assign a value to each answer, including empty ones.

    readers    channel -> function from prompts and responses to values; unlike a scorer, a reader skips no answer, so
               policies are compared on the same prompts
    reference  the policy's reference answers in its place

    The answers are kept with their values in rollouts.jsonl. There are none where a run is only planned.

    Raises EngineError if the engine failed to answer some prompt.
    """
    stage = run.stage(name)
    if (planner := current_planner()) is not None:
        _plan(planner, planner.named(run, name), prompts, sampling, len(readers))
        return ()
    path = stage.path / "rollouts.jsonl"
    if not stage.finished:
        with engine_for(policy, engine, folder=stage.path / "adapters", reference=reference) as answering:
            completions = shard_engine(answering).generate(prompts, sampling)
        owners = [prompt for prompt in prompts for _ in range(sampling.samples)]
        write_rollouts(path, _read(owners, completions, readers))
        stage.finish({"answers": len(completions), "empty": sum(not each.text.strip() for each in completions)})
    return read_rollouts(path)


def _read(prompts: Sequence[Prompt], completions: Sequence[Completion], readers: Mapping[str, Reader]) -> list[Rollout]:
    failed = [each for each in completions if each.finish == "error"]
    if failed:
        raise EngineError(
            f"{len(failed)} of {len(completions)} answers failed, the first: {failed[0].error or 'no reason given'}. "
            "A comparison needs an answer to every prompt: run the same command again"
        )
    texts = [each.text for each in completions]
    values = {channel: list(read(prompts, texts)) for channel, read in readers.items()}
    return [
        Rollout(
            prompt=prompt,
            completion=completion,
            scores=Scores(values={channel: float(found[i]) for channel, found in values.items()}, source="readers"),
        )
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def _plan(planner: Planner, name: str, prompts: Sequence[Prompt], sampling: Sampling, readers: int) -> None:
    """Sample, and read the answers once for each reader."""
    compute, longest = planner.compute, sampling.max_tokens
    prompt_tokens = planner.tokens.mean([prompt.text for prompt in prompts])
    answers, context = len(prompts) * sampling.samples, prompt_tokens + longest
    tokens = answers * (prompt_tokens + longest * FILLED)
    seconds = compute.forward(len(prompts) * prompt_tokens) + compute.decoding(answers, longest, context=context)
    seconds += readers * compute.forward(tokens)
    memory = compute.generating(answers, context=context)
    planner.add(name, seconds=seconds, memory=memory, work=f"{answers} answers, read")
