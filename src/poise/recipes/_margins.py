"""The arms and the page of margin matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import torch

from poise.errors import ConfigError
from poise.functional.preference_targets import margin_target, matching_gamma
from poise.models.heads import ScoreModel
from poise.recipes._arms import Claim, Column, Outcome, Page, Results, finish
from poise.recipes._rated import RatedSettings, RatedStudy, calibration_figures, taken
from poise.run import Run
from poise.train.preference_methods import PreferenceMethod, dpo, mmpo
from poise.types import Comparison

ARMS = {"bt": "Bradley-Terry reward model", "mmpo-rm": "MMPO reward model", "dpo": "DPO", "mmpo": "MMPO"}
SIGNAL_DEPTH = 0.5
COLUMNS = (
    Column(figure="accuracy", label="accuracy, held-out pairs", is_share=True),
    Column(figure="ece", label="calibration error", is_share=True),
    Column(figure="confidence", label="mean confidence", is_share=True),
    Column(figure="train_accuracy", label="accuracy, training pairs", is_share=True),
    Column(figure="train_ece", label="calibration error, training pairs", is_share=True),
    Column(figure="win_rate", label="wins against the start", is_share=True),
    Column(figure="reward", label="judge's reward", digits=2),
    Column(figure="reverse_kl", label="KL(policy, start), nats a sequence", digits=2),
    Column(figure="distinct_2", label="distinct word pairs", is_share=True),
    Column(figure="chosen_drift", label="chosen, nats", digits=1),
    Column(figure="rejected_drift", label="rejected, nats", digits=1),
)
_INTRO = """
{model}, {steps} steps of {prompts} prompts, beta {beta:g} for both policies. The reward models are linear heads on the
same frozen features. gamma gives the better response of a pair with the median margin of the training pairs the
probability {sure:g}. The calibration error is that of `sigmoid(|h|)`, in ten bins, where h is the difference of the
scores, or of the rewards that the policy implies. What follows after it is said of policies alone: wins, rewards and
KL of samples for the test prompts, by the judge of other prompts, and log-ratios to the start on held-out pairs.

{sets}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginSettings(RatedSettings):
    """The resolved arguments of a run of the recipe `mmpo`."""

    sets: tuple[str, ...]
    beta: float
    sure: float

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> MarginSettings:
        """Take a recipe's arguments and check them."""
        settings = taken(cls, arguments)
        if not settings.beta > 0:
            raise ConfigError(f"beta is {settings.beta}: it must be above 0")
        if not settings.sets or len(set(settings.sets)) < len(settings.sets):
            raise ConfigError(f"sets are {settings.sets}: give at least one, and none twice")
        matching_gamma(1.0, probability=settings.sure)  # a probability that cannot be fails here
        return settings


class MarginStudy(RatedStudy):
    """One set of a run, with the gamma that its margins ask for."""

    settings: MarginSettings

    @cached_property
    def gamma(self) -> float:
        """MMPO's, per unit of this set's margins."""
        return matching_gamma(
            median(c.margin for c in self.splits["train"].comparisons), probability=self.settings.sure
        )

    def outcome(self, arm: str, seed: int) -> Outcome:
        """What an arm came to from a seed."""
        stage = self.run.stage(f"{self.name}-{arm}-seed-{seed}")
        if not stage.finished:
            find = self._policy_figures if arm in ("dpo", "mmpo") else self._reward_model_figures
            stage.finish({"figures": find(arm, seed)})
        return Outcome(stage.result["figures"])

    def _policy_figures(self, arm: str, seed: int) -> dict[str, float]:
        method: PreferenceMethod = dpo(beta=self.settings.beta)
        if arm == "mmpo":
            method = mmpo(beta=self.settings.beta, gamma=self.gamma)
        policy = self.policy(arm, method, seed)
        return self.pair_figures(policy, method) | self.sample_figures(policy, seed)

    def _reward_model_figures(self, arm: str, seed: int) -> dict[str, float]:
        train = self.splits["train"].comparisons
        labelled = [softened(each, self.gamma) for each in train] if arm == "mmpo-rm" else train
        model = self.reward_model(labelled, depth=SIGNAL_DEPTH, seed=seed)
        found = calibration_figures(score_margins(model, self.splits["test"].comparisons))
        of_train = calibration_figures(score_margins(model, train))
        return found | {f"train_{name}": value for name, value in of_train.items()}


def softened(comparison: Comparison, gamma: float) -> Comparison:
    """The comparison with MMPO's target as the probability of its first response."""
    target = float(margin_target(torch.tensor(comparison.margin), gamma=gamma))
    return replace(comparison, probability=target if comparison.winner == 0 else 1 - target)


def score_margins(model: ScoreModel, comparisons: Sequence[Comparison]) -> list[float]:
    """By how much the model scores the winner of each pair above the other."""
    prompts = [each.prompt for each in comparisons]
    sides = [
        model.values(prompts, [each.responses[place(each.winner or 0)] for each in comparisons])[:, 0]
        for place in (lambda winner: winner, lambda winner: 1 - winner)
    ]
    return (sides[0] - sides[1]).tolist()


def measure(studies: Sequence[MarginStudy]) -> Results:
    """Every arm of every set from every seed; a stage for each, so that a stopped run goes on."""
    found: dict[str, list[Outcome]] = {f"{study.name}-{arm}": [] for study in studies for arm in ARMS}
    for study in studies:
        for seed in study.settings.seeds:
            for arm in ARMS:
                found[f"{study.name}-{arm}"].append(study.outcome(arm, seed))
    return Results(outcomes=found)


def report(
    run: Run, settings: MarginSettings, studies: Sequence[MarginStudy], results: Results, *, target: str
) -> None:
    """Print the page, write it, and sum up."""
    page = Page(
        name="mmpo",
        title="Margin matching",
        intro=_INTRO.format(
            model=settings.model, steps=settings.steps, prompts=settings.prompts_per_step, beta=settings.beta,
            sure=settings.sure, sets="\n".join(_described(study) for study in studies),
        ),
        columns=COLUMNS,
        rows={f"{name}-{arm}": f"{name}, {label}" for name in settings.sets for arm, label in ARMS.items()},
        claims=[claim for name in settings.sets for claim in claims(name, results)],
    )  # fmt: skip
    finish(run, page, results, target=target, is_quick=settings.quick)


def claims(name: str, results: Results) -> list[Claim]:
    """What the paper found: margins make for better calibration and less overfitting, and do not cost accuracy."""
    found = []
    for plain, matched in (("bt", "mmpo-rm"), ("dpo", "mmpo")):
        arm, other = f"{name}-{matched}", f"{name}-{plain}"
        rows = (
            (f"{ARMS[matched]} is better calibrated than {ARMS[plain]}", results.difference(other, arm, "ece")),
            (f"{ARMS[matched]} is more accurate than {ARMS[plain]}", results.difference(arm, other, "accuracy")),
        )
        found += [Claim(text=f"{name}: {text}", difference=difference) for text, difference in rows]
    wins = results.difference(f"{name}-mmpo", f"{name}-dpo", "win_rate")
    return [*found, Claim(text=f"{name}: MMPO wins more often against the start than DPO", difference=wins)]


def _described(study: MarginStudy) -> str:
    sizes = {
        side: f"{len(data.comparisons)} pairs of {len(data.prompts)} prompts" for side, data in study.splits.items()
    }
    return (
        f"- `{study.name}`: {sizes['train']} to learn from, {sizes['judge']} for the judge, {sizes['test']} to test; "
        f"gamma {study.gamma:.2f}. The judge orders {study.judge_accuracy} of the test pairs as they were rated."
    )
