"""The stages of risk-averse RLHF on text: readers, supervised start, policies with and without risk, tails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from poise.data.chat import Encoded
from poise.data.rollouts import write_rollouts
from poise.errors import ConfigError
from poise.evaluate.diversity import distinct_estimate
from poise.evaluate.tails import hardest, lower_tail, quantile_curve
from poise.feedback.words import TextScorer
from poise.functional.policy_losses import clipped_surrogate
from poise.models.adapters import Lora
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.pipeline import feature_cache, fine_tune, merged, start_model
from poise.recipes._arms import Outcome
from poise.recipes._continuations import SIGNALS, Readers, Task, learn_readers, task_named
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.algorithms import PPO, REINFORCE_PP, RLOO, Algorithm, risk_averse
from poise.train.estimators import generalised
from poise.train.loop import fit
from poise.train.objectives import Unconstrained
from poise.train.on_policy import OnPolicyTrainer, Optimisation
from poise.train.responses import sequence_logprobs
from poise.train.selection import by_prompt, by_return
from poise.types import Completion, Demonstration, Estimate, Prompt, Rollout, Sampling, Scores

ARMS = {"sft": "SFT", "rlhf": "RLHF", "ra-rlhf": "RA-RLHF"}
BASES = {
    "ppo": replace(PPO, advantage=generalised(trace=0.95), epochs=4),
    "rloo": replace(RLOO, policy_loss=clipped_surrogate, epochs=2),
    "reinforce++": REINFORCE_PP,
}
RANKINGS = {"episode": by_return, "prompt": by_prompt()}
REWARDS = ("logit", "log-probability")
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))  # of the quantile curve
HARD, WORST = 0.2, (0.1, 0.05)  # share of prompts that are the hardest; shares of the lowest rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskSettings:
    """The resolved arguments of a run of the recipe `ra-rlhf`."""

    model: str
    tasks: tuple[str, ...]
    algorithm: str
    signal: str
    reward: str
    ranked: str
    alpha: float
    warm_up: int
    end: float
    steps: int
    samples_per_step: int
    response_tokens: int
    supervised_steps: int
    lr: float
    kl_coef: float
    evaluated: int
    seeds: tuple[int, ...]
    quick: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> RiskSettings:
        """Take a recipe's arguments and check them."""
        settings = cls(**{f.name: arguments[f.name] for f in fields(cls)})
        if settings.algorithm not in BASES:
            raise ConfigError(f"no algorithm {settings.algorithm!r}: choose {', '.join(BASES)}")
        for name, choices in (("ranked", RANKINGS), ("signal", SIGNALS), ("reward", REWARDS)):
            if getattr(settings, name) not in choices:
                raise ConfigError(f"{name} is {getattr(settings, name)!r}: choose {', '.join(choices)}")
        for name in ("steps", "samples_per_step", "response_tokens", "supervised_steps"):
            if getattr(settings, name) < 1:
                raise ConfigError(f"{name} is {getattr(settings, name)}: it must be at least 1")
        for name in ("tasks", "seeds"):
            values = getattr(settings, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} are {values}: give at least one, and none twice")
        if settings.evaluated < 10:
            raise ConfigError(f"evaluated is {settings.evaluated}: a tail of a tenth needs at least 10 prompts")
        return settings

    @property
    def arguments(self) -> dict[str, Any]:
        """What run.json records."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def algorithm_of(self, arm: str) -> Algorithm:
        """The record of an arm: both are the same but for the episodes that are learned from."""
        base = replace(BASES[self.algorithm], kl_coef=self.kl_coef)
        if arm == "rlhf":
            return base
        return risk_averse(self.alpha, base=base, warm_up=self.warm_up, end=self.end, ranking=RANKINGS[self.ranked])


class TextStudy:
    """One task of a run. Its models are only loaded if a stage still needs them."""

    def __init__(self, run: Run, settings: RiskSettings, name: str):
        self.run, self.settings, self.name = run, settings, name

    @cached_property
    def task(self) -> Task:
        """The real rows."""
        task = task_named(self.name)
        self.run.record_data(task.name, task.provenance)
        return task

    @cached_property
    def readers(self) -> Readers:
        """The signal and the judge; the latter reads with the model as it was before any training."""
        base = self._model(self.settings.model)
        cache, settings = feature_cache(self.run), self.settings
        return learn_readers(self.task, base, signal=settings.signal, cache=cache, quick=settings.quick)

    @cached_property
    def start(self) -> Backbone:
        """The model after supervised learning of good texts, where every policy begins."""
        policy = Policy(self._model(self.settings.model), Lora(top=0.5), adapter="supervised")
        texts, steps = self.task.good_texts("train"), self.settings.supervised_steps
        fine_tune(self.run, policy, texts, steps=steps, name=f"{self.name}-supervised", per_step=32, finished=False)
        return replace(merged(self.run, policy, name=f"{self.name}-start"), continues_text=True)

    def _model(self, name: str) -> Backbone:
        return start_model(self.run, name, continues_text=True)

    @cached_property
    def worth(self) -> dict[str, Estimate]:
        """What the readers are worth on texts that they never saw."""
        stage = self.run.stage(f"{self.name}-readers")
        if not stage.finished:
            stage.finish(self.readers.worth)
        return {name: Estimate(**value) for name, value in stage.result.items()}

    def outcome(self, arm: str, seed: int) -> Outcome:
        """What an arm came to from a seed."""
        stage = self.run.stage(f"{self.name}-{arm}-seed-{seed}")
        if not stage.finished:
            policy = Policy(self.start, Lora(top=0.5), adapter=stage.name, seed=seed)
            if arm != "sft":
                self._train(policy, arm, seed, stage.name)
            found, rollouts = measured(policy, self.task, self.readers, self.settings, seed)
            write_rollouts(stage.path / "rollouts.jsonl", rollouts)
            stage.finish(found._asdict())
        return Outcome(**stage.result)

    def _train(self, policy: Policy, arm: str, seed: int, stage: str) -> None:
        settings = self.settings
        algorithm = settings.algorithm_of(arm)
        trainer = OnPolicyTrainer(
            policy=policy,
            engine=NativeEngine(policy),
            scorers=[rewarding(self.readers.signal, settings.reward)],
            algorithm=algorithm,
            objective=Unconstrained(),
            prompts=self.task.prompts("train"),
            prompts_per_step=max(1, settings.samples_per_step // algorithm.samples_per_prompt),
            sampling=Sampling(max_tokens=settings.response_tokens),
            optimisation=Optimisation(lr=settings.lr, steps=settings.steps),
            seed=seed,
        )
        shown = ("reward", "kept", "sequence_kl", "tokens_per_s")
        fit(trainer, run=self.run, stage=stage, steps=settings.steps, save_every=5, shown=shown)


def measure(studies: Sequence[TextStudy]) -> dict[tuple[str, str], list[Outcome]]:
    """Every arm of every task from every seed; all arms of all tasks from a seed before the next."""
    found: dict[tuple[str, str], list[Outcome]] = {(study.name, arm): [] for study in studies for arm in ARMS}
    for seed in studies[0].settings.seeds:
        for study in studies:
            for arm in ARMS:
                found[study.name, arm].append(study.outcome(arm, seed))
    return found


def rewarding(signal: TextScorer, reward: str) -> TextScorer:
    """The signal as a reward: its logit, or the log-probability of the good label, which has nothing left to gain.

    The logit of a linear reader pays as much for a word in a text that is good already as in one that is not; the
    fine-tuned classifiers of RA-RLHF's paper have a ceiling, and a log-probability gives a linear one the same.
    """
    if reward == "logit":
        return signal

    def log_probabilities(texts: Sequence[str]) -> Sequence[float]:
        return [-float(np.logaddexp(0.0, -float(z))) for z in signal.value(texts)]

    return replace(signal, value=log_probabilities)


def measured(
    policy: Policy, task: Task, readers: Readers, settings: RiskSettings, seed: int
) -> tuple[Outcome, list[Rollout]]:
    """Continue the test prompts once each and let the judge read the whole texts."""
    prompts = task.prompts("test")[: settings.evaluated]
    sampling = Sampling(max_tokens=settings.response_tokens, seed=90_001 + seed)
    completions = NativeEngine(policy).generate(prompts, sampling)
    rollouts = [_judged(*row) for row in _read(readers, prompts, completions)]
    rewards, signals = ([r.scores.values[name] for r in rollouts] for name in ("reward", "signal"))
    prompt_scores = list(readers.judge.value([prompt.text for prompt in prompts]))
    hard = hardest(prompt_scores, HARD)
    kl, samples_perplexity = under_start(policy, rollouts)
    figures = {
        "reward": float(np.mean(rewards)),
        "hard_reward": float(np.mean([r for r, is_hard in zip(rewards, hard, strict=True) if is_hard])),
        **{f"worst_{round(100 * share)}": lower_tail(rewards, share).value for share in WORST},
        "signal": float(np.mean(signals)),
        "hard_signal": float(np.mean([z for z, is_hard in zip(signals, hard, strict=True) if is_hard])),
        "perplexity_of_good_texts": perplexity(policy, task.good_texts("test")[:96]),
        "perplexity_of_samples": samples_perplexity,
        "distinct_2": distinct_estimate([r.completion.text for r in rollouts], 2).value,
        "tokens": float(np.mean([len(c.token_ids) for c in completions])),
        "kl": kl,
        "prompts": float(len(prompts)),
        "hard_prompts": float(sum(hard)),
    }
    curves = {
        "share": [100 * share for share in SHARES],
        "reward": quantile_curve(prompt_scores, rewards, SHARES),
        "rewards": rewards,  # of each prompt, in an order that is the same in all arms and seeds
        "hard": [float(is_hard) for is_hard in hard],
    }
    return Outcome(figures, curves), rollouts


def perplexity(policy: Policy, texts: Sequence[Demonstration]) -> float:
    """The mean over texts of exp(mean negative log-probability of a token of the continuation).

    Source: as RA-RLHF (arXiv:2501.06911) measures it, on texts of the good class.
    """
    renderer = policy.backbone.renderer()
    rows = [renderer.encode(text.prompt, text.response, finished=False) for text in texts]
    return _perplexity(sequence_logprobs(policy, rows, tokens=4096).tolist(), rows)


def under_start(policy: Policy, rollouts: Sequence[Rollout]) -> tuple[float, float]:
    """The KL of samples to the start in nats a sequence, and the perplexity that the start gives them."""
    renderer, said = policy.backbone.renderer(), [r for r in rollouts if r.completion.token_ids]
    rows = []
    for rollout in said:
        head, _ = renderer.prompt_ids(rollout.prompt.messages)
        rows.append(Encoded(ids=(*head, *rollout.completion.token_ids), prompt_length=len(head)))
    sums = sequence_logprobs(policy, rows, tokens=4096, reference=True).tolist()
    ratios = [sum(r.completion.token_logprobs) - under for r, under in zip(said, sums, strict=True)]
    return float(np.mean(ratios)), _perplexity(sums, rows)


def _perplexity(sums: Sequence[float], rows: Sequence[Encoded]) -> float:
    lengths = [len(row.ids) - row.prompt_length for row in rows]
    return float(np.mean([math.exp(-total / length) for total, length in zip(sums, lengths, strict=True) if length]))


def _read(
    readers: Readers, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> Iterator[tuple[Prompt, Completion, float, float]]:
    texts = [prompt.text + completion.text for prompt, completion in zip(prompts, completions, strict=True)]
    return zip(prompts, completions, readers.judge.value(texts), readers.signal.value(texts), strict=True)


def _judged(prompt: Prompt, completion: Completion, judged: float, signal: float) -> Rollout:
    scores = Scores(values={"reward": float(judged), "signal": float(signal)}, source="judge")
    return Rollout(prompt=prompt, completion=completion, scores=scores)
