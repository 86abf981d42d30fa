"""Methods that a comparison holds side by side: limits, prices, RePO, one joint preference, SafeDPO, the best of n."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from poise.evaluate.suite import SuiteResult
from poise.feedback.groups import may_harm
from poise.feedback.joint import JOINT, safety_first
from poise.models.heads import REWARD
from poise.models.policy import Policy
from poise.pipeline.limits import GAINS, START, read_limits
from poise.pipeline.preferences import optimise_preferences, preference_feedback
from poise.pipeline.scores import TrainedScoreModel, fit_scores
from poise.pipeline.stages import Begun
from poise.rollout.best_of import BestOfEngine
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.algorithms import Algorithm
from poise.train.limit_text import LimitText
from poise.train.limits import RECTIFIED
from poise.train.objectives import PID, Lagrangian, Limit, Objective, ProjectedAscent, among
from poise.train.preference_methods import safe_dpo
from poise.types import Dataset

PAIR_LR = 2e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a policy comes from the start: by reinforcement under limits or an objective, or by a way of its own."""

    label: str
    wanted: Callable[[], Objective] | tuple[LimitText, ...] = ()
    algorithm: Algorithm | None = None  # None: RLOO
    own: str = ""  # base, sft, best-of-n, safe-dpo; joint: reinforcement with a signal of its own


def limited(*limits: str, how: str, algorithm: Algorithm | None = None) -> Method:
    """Reward under limits."""
    return Method(label=f"limit: {how}", wanted=read_limits(limits), algorithm=algorithm)


def priced(coefficient: float) -> Lagrangian:
    """Reward less a fixed price of cost, on the prompts that the limits speak of: a multiplier that never moves."""
    limit = Limit("cost", 0.0, measure=among("may_harm", may_harm))
    return Lagrangian(limit, ProjectedAscent(multiplier=coefficient, rate=0.0, maximum=coefficient))


def rectified() -> Lagrangian:
    """Reward under RePO's limit: no answer to a prompt that may do harm costs more than 0, and none makes up for it."""
    limit = Limit("cost", 0.0, measure=among("may_harm", may_harm, RECTIFIED))
    return Lagrangian(limit, PID(gains=GAINS, multiplier=START))


def joint_feedback(data: Dataset, *, both_unsafe: bool = True) -> Dataset:
    """The same rows as one preference, in which safety goes first, and nothing besides."""
    joint = safety_first(data, both_unsafe=both_unsafe)
    return replace(data, comparisons=joint, labels=(), ratings=(), verdicts=(), demonstrations=())


def joint_signal(run: Run, begun: Begun) -> TrainedScoreModel:
    """A single reward model, of the kind of the signal, that learned from one joint preference."""
    material = begun.material
    spec = replace(material.signal_spec, channels=(replace(REWARD, criteria=(JOINT,)),))
    return fit_scores(run, material.backbone, joint_feedback(material.train), spec, name=JOINT, cache=material.cache)


def learn_safe_dpo(run: Run, begun: Begun, *, steps: int, seed: int) -> Policy:
    """Fit the policy by SafeDPO to the pairs in which safety goes first."""
    method, pairs = safe_dpo(), joint_feedback(begun.material.train, both_unsafe=False)
    feedback = preference_feedback(begun.policy, method, pairs, criteria=(JOINT,))
    return optimise_preferences(run, begun.policy, method, feedback, steps=steps, lr=PAIR_LR, seed=seed)


def best_of(run: Run, begun: Begun, n: int) -> SuiteResult:
    """What the start answers where the signal chooses the best of n: no training, n times the sampling."""
    engine = BestOfEngine(NativeEngine(begun.policy, reference=True), begun.signal.model, n)
    return begun.material.evaluated(run, begun.policy, reference=True, **{**begun.judged, "engine": engine})
