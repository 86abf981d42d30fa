"""Multipliers to start from, estimated from responses of the start model: one-shot dualisation as a resumable stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from poise.data.batching import epoch_order
from poise.data.rollouts import read_rollouts, write_rollouts
from poise.errors import ConfigError, FeedbackError
from poise.functional.dual import DualStart, LimitedSamples, multiplier_intervals, steadied_dual
from poise.models.policy import Policy
from poise.ranks import by_main
from poise.rollout.named import engine_for
from poise.run import Run, Stage
from poise.text import say
from poise.train.algorithms import Algorithm
from poise.train.limits import Limit, group_masks
from poise.train.objectives import Lagrangian, Objective
from poise.train.rollout_batch import score_all
from poise.train.sharding import shard_engine
from poise.types import Engine, Estimate, Prompt, Rollout, Sampling, Scorer

SAMPLES, MOST_PROMPTS = 4, 64  # responses to a prompt; together about as many as four updates sample
_MAXIMUM = 10.0  # of a multiplier whose controller has none


def start_from_dual(
    run: Run,
    policy: Policy,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    *,
    objective: Objective,
    algorithm: Algorithm,
    sampling: Sampling,
    engine: str | Engine = "native",
    seed: int = 0,
    name: str = "dual-start",
) -> dict[str, float]:
    """Let the multipliers of an objective start where the dual of the KL-regularised problem is smallest.

    The policy's reference (an engine of your own: the policy as it is) answers `MOST_PROMPTS` of the prompts, each kind
    in its proportion, `SAMPLES` times. `functional.dual.steadied_dual` prices the limits with the algorithm's `kl_coef`
    and the trainer's way of mixing. Where fewer than half of a prompt's samples would count, the KL weighs more until
    they do; the stage's result says so (`kl_used`), with the effective samples, the interval of each multiplier and
    whether its limit can be met; rollouts.jsonl has the samples. `kl_coef` is per response where the KL is charged in
    the reward. In the loss it stands beside advantages that may have been standardised, and the estimate is rough; of a
    CVaR the quantile is that of the start model.

    Raises ConfigError for an objective without multipliers, or an algorithm whose `kl_coef` is 0.
    """
    if not isinstance(objective, Lagrangian):
        raise ConfigError(f"start='dual' needs limits with multipliers, and {type(objective).__name__} has none")
    if algorithm.kl_coef <= 0:
        raise ConfigError(
            "start='dual' needs a kl_coef above 0: without a KL penalty the best policy is no distribution"
        )
    stage = run.stage(name)
    if not stage.finished:
        kinds = [str(prompt.tags.get("kind", "")) for prompt in prompts]
        chosen = epoch_order(len(kinds), min(MOST_PROMPTS, len(kinds)), 0, seed=seed, strata=kinds)
        asked = [prompts[i] for i in chosen]
        with engine_for(policy, engine, folder=stage.path / "adapters", reference=True) as answering:
            drawn = shard_engine(answering).generate(asked, replace(sampling, samples=SAMPLES, seed=seed))
        rollouts = score_all(scorers, asked, drawn, SAMPLES)
        by_main(write_rollouts)(stage.path / "rollouts.jsonl", rollouts)
        _estimate(stage, read_rollouts(stage.path / "rollouts.jsonl"), objective, algorithm, len(asked), seed)
    multipliers = {each: found["value"] for each, found in stage.result["multipliers"].items()}
    objective.start_at(multipliers)
    return multipliers


def limited_samples(rollouts: Sequence[Rollout], limits: Sequence[Limit]) -> tuple[LimitedSamples, tuple[Prompt, ...]]:
    """The scores of prompts all of whose samples have them, with limits in units of reward; and these prompts.

    Raises FeedbackError if there are none, or none that a limit speaks of.
    """
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_prompt.setdefault(rollout.prompt.id, []).append(rollout)
    whole = [rows for rows in by_prompt.values() if len(rows) == SAMPLES]
    prompts = tuple(rows[0].prompt for rows in whole)
    masks = group_masks([limit.measure.among for limit in limits if limit.measure.among is not None], prompts)
    everywhere = torch.ones(len(prompts), dtype=torch.bool)
    inside = [everywhere if limit.measure.among is None else masks[limit.measure.among.name] for limit in limits]
    if empty := [limit.name for limit, mask in zip(limits, inside, strict=True) if not mask.any()]:
        raise FeedbackError(
            f"no multiplier can be estimated for {', '.join(empty)}: of {len(by_prompt)} prompts {len(whole)} have a "
            "score for each of their samples, and none is one that the limit speaks of. Give multipliers to start from"
        )

    def values(channel: str) -> torch.Tensor:
        return torch.tensor([[row.scores.values[channel] for row in rows] for rows in whole], dtype=torch.float64)

    costs = []
    for limit, mask in zip(limits, inside, strict=True):
        scores, found = values(limit.channel), torch.zeros(len(whole), SAMPLES, dtype=torch.float64)
        measured = limit.measure.costs(scores[mask].flatten(), scores[mask].flatten()).double()
        found[mask] = limit.scale * measured.view(-1, SAMPLES)
        costs.append(found.numpy())
    return LimitedSamples(
        rewards=values("reward").numpy(),
        costs=np.stack(costs),
        at_most=np.array([limit.scale * limit.at_most for limit in limits]),
        masks=torch.stack(inside).numpy(),
    ), prompts


def _estimate(
    stage: Stage, rollouts: Sequence[Rollout], objective: Lagrangian, algorithm: Algorithm, asked: int, seed: int
) -> None:
    samples, prompts = limited_samples(rollouts, objective.limits)
    largest = min(getattr(watch.controller, "maximum", None) or _MAXIMUM for watch in objective.watches)
    found = steadied_dual(samples, kl=algorithm.kl_coef, maximum=largest, mixed=True)
    ends = multiplier_intervals(samples, found, maximum=largest, mixed=True, seed=seed)
    names = [limit.name for limit in objective.limits]
    rows = {
        each: Estimate(
            value=float(found.multipliers[i]),
            n=int(samples.masks[i].sum()) * SAMPLES,
            low=min(float(ends[0][i]), float(found.multipliers[i])),
            high=max(float(ends[1][i]), float(found.multipliers[i])),
            method=f"percentiles of prompts drawn again, over {int(samples.masks[i].sum())} prompts",
        )
        for i, each in enumerate(names)
    }
    for each, is_met in zip(names, found.is_met, strict=True):
        if not is_met:
            say(
                f"{stage.name}: no multiplier up to {largest:g} meets the limit on {each} among the samples", error=True
            )
    is_met = dict(zip(names, found.is_met.tolist(), strict=True))
    facts = _facts(found, algorithm, asked, len(prompts))
    stage.finish({"multipliers": rows, "is_met": is_met, **facts})


def _facts(found: DualStart, algorithm: Algorithm, asked: int, whole: int) -> dict[str, float]:
    return {
        "effective_samples": found.effective_samples,
        "samples": SAMPLES,
        "kl_coef": algorithm.kl_coef,
        "kl_used": found.kl,
        "prompts_asked": asked,
        "prompts_scored": whole,
    }
