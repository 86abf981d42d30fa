"""What the recipes on rated pairs share: comparisons with margins, a judge of other prompts, policies, figures.

rated responses -> train | judge | test (by prompt) -> policies by preference losses -> held-out pairs and samples
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import resources
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import torch

from poise.data import load, split_by_prompt
from poise.data.batching import num_steps
from poise.errors import ConfigError
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.diversity import distinct_estimate
from poise.functional.statistics import expected_calibration_error
from poise.models.adapters import Lora
from poise.models.heads import REWARD, ScoreModel
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.pipeline import feature_cache, start_model
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.loop import fit
from poise.train.preference import PreferenceTrainer, preference_values
from poise.train.preference_feedback import PairFeedback
from poise.train.preference_methods import PreferenceMethod
from poise.train.responses import sequence_logprobs
from poise.train.score_model import FeedbackTable, ScoreTrainer, evaluate_scores
from poise.types import Comparison, Completion, Dataset, Demonstration, Estimate, Prompt, Rollout, Sampling, Scores

SHARES = {"train": 0.5, "judge": 0.3, "test": 0.2}
_LONGEST_PROMPT, _LONGEST_RESPONSE = 200, 32  # words
_ROUNDS = 2  # samples of each test prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedSettings:
    """What every recipe on rated pairs is told."""

    model: str
    chat_template: str | None
    steps: int
    prompts_per_step: int
    pairs_per_prompt: int
    response_tokens: int
    lr: float
    seeds: tuple[int, ...]
    quick: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """What run.json records."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def require(self) -> None:
        """Raise ConfigError that names the first number out of its range."""
        for name in ("steps", "prompts_per_step", "pairs_per_prompt", "response_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}: it must be above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}: give at least one, and none twice")


Told = TypeVar("Told", bound=RatedSettings)
_QUICK_PROMPTS = 30


def taken(kind: type[Told], arguments: Mapping[str, Any]) -> Told:
    """The settings that a recipe's arguments hold, checked."""
    settings = kind(**{f.name: arguments[f.name] for f in fields(kind)})
    settings.require()
    return settings


def rated_pairs(name: str, *, pairs_per_prompt: int, columns: str = "") -> Dataset:
    """Comparisons with margins; of each prompt so many, drawn by a hash of the texts."""
    dataset = load(name, columns=columns)
    rated = _starter_points() if name == "starter" else dataset.demonstrations
    comparisons = _paired(rated) or dataset.comparisons
    by_prompt: dict[str, list[Comparison]] = {}
    for each in comparisons:
        if each.criterion == "helpful" and each.winner is not None and _is_short(each.prompt):
            by_prompt.setdefault(each.prompt.id, []).append(each)
    chosen = [each for found in by_prompt.values() for each in sorted(found, key=_drawn)[:pairs_per_prompt]]
    if not chosen or not any(each.margin for each in chosen):
        raise ConfigError(f"{name} has no comparisons with margins: choose odpo-sentiment, tldr-ratings or starter")
    prompts = {each.prompt.id: each.prompt for each in chosen}
    return replace(dataset, prompts=tuple(prompts.values()), comparisons=tuple(chosen), demonstrations=(), labels=())


def _starter_points() -> list[Demonstration]:
    """The responses of the starter set with their points for help, which its comparisons leave out."""
    text = (resources.files("poise.data") / "starter" / "starter.jsonl").read_text(encoding="utf-8")
    return [
        Demonstration(prompt=Prompt.of(row["prompt"], reward=float(each["help"])), response=each["text"], weight=0.0)
        for row in map(json.loads, text.splitlines())
        for each in row["responses"]
    ]


def _is_short(prompt: Prompt) -> bool:
    return len(prompt.text.split()) <= _LONGEST_PROMPT


def _drawn(comparison: Comparison) -> bytes:
    return hashlib.sha256("\x1e".join(comparison.responses).encode()).digest()


def _paired(rated: Sequence[Demonstration]) -> list[Comparison]:
    """Every two responses to a prompt with different ratings (the tag `reward`), cut to the same number of words."""
    by_prompt: dict[str, list[Demonstration]] = {}
    for row in rated:
        by_prompt.setdefault(row.prompt.id, []).append(row)
    found = []
    for rows in by_prompt.values():
        for pair in combinations(rows, 2):
            ours, theirs = (row.prompt.tags.get("reward", 0.0) for row in pair)
            texts = tuple(_cut(row.response) for row in pair)
            if ours != theirs and texts[0] != texts[1]:
                winner, margin = int(theirs > ours), abs(ours - theirs)
                found.append(Comparison(prompt=rows[0].prompt, responses=texts, winner=winner, margin=margin))
    return found


def _cut(text: str) -> str:
    """The first words, with the space or mark that the text begins with."""
    head = " " if text[:1] == " " else ""
    return head + " ".join(text.split()[:_LONGEST_RESPONSE])


class RatedStudy:
    """One set of a run. Its model is only loaded if a stage still needs it."""

    def __init__(self, run: Run, settings: RatedSettings, data: str, *, columns: str = ""):
        self.run, self.settings, self.data, self.columns = run, settings, data, columns
        self.name = re.sub(r"\W+", "-", data).strip("-")  # of its stages; a path is no name of a folder

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """Comparisons by side; no prompt is on two."""
        dataset = rated_pairs(self.data, pairs_per_prompt=self.settings.pairs_per_prompt, columns=self.columns)
        self.run.record_data(self.data, dataset.provenance)
        bare = [replace(p, tags={k: v for k, v in p.tags.items() if k != "split"}) for p in dataset.prompts]
        known = {p.id: p for p in bare[: _QUICK_PROMPTS if self.settings.quick else len(bare)]}
        rows = [replace(c, prompt=known[c.prompt.id]) for c in dataset.comparisons if c.prompt.id in known]
        return split_by_prompt(Dataset(name=self.name, prompts=tuple(known.values()), comparisons=tuple(rows)), SHARES)

    @cached_property
    def backbone(self) -> Backbone:
        """The start model; beginnings of texts are continued, requests are answered."""
        return start_model(
            self.run,
            self.settings.model,
            continues_text=self.data.startswith("odpo"),
            chat_template=self.settings.chat_template,
        )

    @cached_property
    def judge(self) -> ScoreModel:
        """A Bradley-Terry reward model of other prompts than those that policies learn from or are tested on."""
        return self.reward_model(self.splits["judge"].comparisons, depth=0.7, seed=1000)

    @cached_property
    def judge_accuracy(self) -> Estimate:
        """The share of the test pairs that the judge orders as people or the set's classifier did."""
        stage = self.run.stage(f"{self.name}-judge")
        if not stage.finished:
            stage.finish(evaluate_scores(self.judge, self.splits["test"].comparisons))
        return Estimate(**stage.result["reward_pair_accuracy"])

    def reward_model(self, comparisons: Sequence[Comparison], *, depth: float, seed: int) -> ScoreModel:
        """A linear head on frozen features, fitted by Bradley-Terry to the labels as they are, margins left out."""
        layers = max(1, round(self.backbone.trunk.depth * depth))
        cache = feature_cache(self.run)
        model = ScoreModel(self.backbone, (REWARD,), depth=layers, hidden=0, seed=seed, cache=cache)
        table = FeedbackTable(model, [replace(each, margin=0.0) for each in comparisons])
        steps = 20 if self.settings.quick else num_steps(len(table.groups), 32, 40)
        torch.manual_seed(seed)
        trainer = ScoreTrainer(model=model, table=table, steps=steps, seed=seed)
        for index in range(trainer.steps):
            trainer.step_at(index)
        return model

    def policy(self, arm: str, method: PreferenceMethod, seed: int) -> Policy:
        """A fresh adapter trained by a preference loss."""
        settings, stage = self.settings, self.run.stage(f"{self.name}-{arm}-seed-{seed}")
        policy = Policy(self.backbone, Lora(top=0.5), adapter=stage.name.replace(".", "_"), seed=seed)
        trainer = PreferenceTrainer(
            policy=policy,
            method=method,
            feedback=PairFeedback(policy, self.splits["train"].comparisons),
            prompts_per_step=settings.prompts_per_step,
            lr=settings.lr,
            steps=settings.steps,
            seed=seed,
            cache=self.run.stage(f"{self.name}-reference").path / "train.json",
        )
        shown = ("loss", "reward_accuracy", "reward_margin")
        fit(trainer, run=self.run, stage=stage.name, steps=settings.steps, save_every=6, shown=shown)
        return policy

    def pair_figures(self, policy: Policy, method: PreferenceMethod) -> dict[str, float]:
        """Accuracy and calibration of the reward that the policy implies, on held-out and on training pairs."""
        found: dict[str, float] = {}
        for side, prefix in (("test", ""), ("train", "train_")):
            feedback = PairFeedback(policy, self.splits[side].comparisons)
            cache = self.run.stage(f"{self.name}-reference").path / f"{side}.json"
            values, _ = preference_values(policy, method, feedback, cache=cache)
            found |= {prefix + name: value for name, value in calibration_figures(values["reward_margin"]).items()}
            if side == "test":
                found |= {name: float(np.mean(values[name])) for name in ("chosen_drift", "rejected_drift")}
        return found

    def sample_figures(self, policy: Policy, seed: int) -> dict[str, float]:
        """What the policy says to test prompts: the judge's reward, wins against the start, divergences, diversity."""
        prompts = self.splits["test"].prompts
        sampling = Sampling(max_tokens=self.settings.response_tokens, samples=_ROUNDS, seed=90_001 + seed)
        owners = [prompt for prompt in prompts for _ in range(_ROUNDS)]
        ours = NativeEngine(policy).generate(prompts, sampling)
        starts = NativeEngine(policy, reference=True).generate(prompts, sampling)
        rewards, before = (self._judged(owners, side) for side in (ours, starts))
        return {
            "reward": float(rewards.mean()),
            "win_rate": float(((np.sign(rewards - before) + 1) / 2).mean()),
            "reverse_kl": sequence_kl(policy, _rollouts(owners, ours), 1.0).value,
            "forward_kl": self._forward_kl(policy, owners, starts),
            "entropy": -float(np.mean([value for each in ours for value in each.token_logprobs])),
            "distinct_2": distinct_estimate([each.text for each in ours], 2, [p.id for p in owners]).value,
            "tokens": float(np.mean([len(each.token_ids) for each in ours])),
        }

    def _judged(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Any:
        return self.judge.values(prompts, [each.text for each in completions])[:, 0].double().numpy()

    def _forward_kl(self, policy: Policy, prompts: Sequence[Prompt], starts: Sequence[Completion]) -> float:
        """The mean log-ratio of the start's own samples, in nats a sequence."""
        renderer = policy.backbone.renderer()
        rows = [renderer.encode(p, c.text, finished=c.finish == "stop") for p, c in zip(prompts, starts, strict=True)]
        sides = [sequence_logprobs(policy, rows, tokens=4096, reference=reference) for reference in (True, False)]
        return float((sides[0] - sides[1]).mean())


def calibration_figures(margins: Sequence[float]) -> dict[str, float]:
    """Accuracy and expected calibration error of sigmoid(|h|), from the differences h of chosen and rejected reward.

    >>> calibration_figures([4.0, -4.0])["accuracy"]
    0.5
    """
    confidence = 1 / (1 + np.exp(-np.abs(np.asarray(margins))))
    hits = [margin > 0 for margin in margins]
    return {
        "accuracy": float(np.mean(hits)),
        "ece": expected_calibration_error(confidence, hits),
        "confidence": float(confidence.mean()),
    }


def _rollouts(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Rollout]:
    return [
        Rollout(prompt=prompt, completion=completion, scores=Scores(values={}))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
