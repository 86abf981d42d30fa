"""The stages before reinforcement, which methods of a comparison share: data, judge, signal, start, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.evaluate.suite import SuiteResult
from poise.models.policy import Policy
from poise.pipeline.safety import Material, prepare, samplings
from poise.pipeline.scores import TrainedScoreModel
from poise.run import Run
from poise.train.limit_text import LimitText
from poise.types import Sampling

_TAKEN = ("model", "chat_template", "data", "columns", "supervised_steps", "warmstart_steps", "most_prompts", "rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a method begins with, and what it is measured by.

    policy       a fresh one: the start model until it is trained
    base, start  what the two models answer to the test prompts
    sampling     of responses in training
    judged       further arguments of `Material.evaluated`, the same for all
    """

    material: Material
    policy: Policy
    signal: TrainedScoreModel
    base: SuiteResult
    start: SuiteResult
    sampling: Sampling
    judged: Mapping[str, Any]


def begin(run: Run, given: Mapping[str, Any], *, seed: int, limits: Sequence[LimitText] = ()) -> Begun:
    """Run these stages, in a part of the run that methods of one seed share.

    given  a recipe's arguments, of which those that `prepare` and `samplings` know are taken
    """
    sampling, said = samplings(given["response_tokens"], given["temperature"], seed)
    chosen = {name: given[name] for name in _TAKEN if name in given}
    material = prepare(run, seed=seed, longest_answer=said.max_tokens, limits=limits, **chosen)
    policy, signal = material.policy(seed), material.signal(run)
    judged = {"sampling": said, "signal": signal, "engine": given.get("engine", "native"), "limits": material.limits}
    base, start = material.before(run, policy, seed=seed, **judged)
    return Begun(
        material=material, policy=policy, signal=signal, base=base, start=start, sampling=sampling, judged=judged
    )
