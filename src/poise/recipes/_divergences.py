"""The arms and the page of DPO under other divergences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from poise.errors import ConfigError
from poise.evaluate.figures import Series, chart
from poise.functional.implied_rewards import (
    ImpliedReward,
    alpha_reward,
    forward_kl_reward,
    jensen_shannon_reward,
    reverse_kl_reward,
)
from poise.recipes._arms import Claim, Column, Outcome, Page, Results, finish
from poise.recipes._rated import RatedSettings, RatedStudy, taken
from poise.run import Run
from poise.train.preference_methods import dpo
from poise.types import Estimate

DIVERGENCES: dict[str, ImpliedReward] = {
    "reverse-kl": reverse_kl_reward,
    "jensen-shannon": jensen_shannon_reward,
    "alpha": partial(alpha_reward, alpha=0.5),
    "forward-kl": forward_kl_reward,
}
LABELS = {
    "reverse-kl": "reverse KL (DPO)", "jensen-shannon": "Jensen-Shannon", "alpha": "alpha = 0.5",
    "forward-kl": "forward KL",
}  # fmt: skip
COLUMNS = (
    Column(figure="reward", label="judge's reward", digits=2),
    Column(figure="win_rate", label="wins against the start", is_share=True),
    Column(figure="reverse_kl", label="KL(policy, start), nats a sequence", digits=2),
    Column(figure="forward_kl", label="KL(start, policy), nats a sequence", digits=2),
    Column(figure="entropy", label="entropy, nats a token", digits=2),
    Column(figure="distinct_2", label="distinct word pairs", is_share=True),
    Column(figure="accuracy", label="accuracy, held-out pairs", is_share=True),
    Column(figure="ece", label="calibration error", is_share=True),
    Column(figure="chosen_drift", label="chosen, nats", digits=1),
    Column(figure="rejected_drift", label="rejected, nats", digits=1),
)
FRONTS = {"reverse_kl": "KL(policy, start), nats a sequence", "entropy": "entropy, nats a token"}
_INTRO = """
{model} learns from {pairs} pairs of {data}, {steps} steps of {prompts} prompts, and answers {tested} prompts that it
never saw. The judge is a Bradley-Terry reward model on frozen features that learned from pairs of other prompts; it
orders {judge} of the test pairs as they were rated. The calibration error is that of the probability
`sigmoid(|h|)`, where h is the difference of implied rewards, in ten bins. The last two columns are log-ratios to the
start of chosen and rejected responses of held-out pairs.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceSettings(RatedSettings):
    """The resolved arguments of a run of the recipe `f-dpo`."""

    data: str
    columns: str
    betas: tuple[float, ...]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> DivergenceSettings:
        """Take a recipe's arguments and check them."""
        settings = taken(cls, arguments)
        if not settings.betas or min(settings.betas) <= 0 or len(set(settings.betas)) < len(settings.betas):
            raise ConfigError(f"betas are {settings.betas}: give at least one above 0, and none twice")
        return settings

    @property
    def arms(self) -> dict[str, tuple[str, float]]:
        """Arms by the names of their stages."""
        return {f"{name}-{beta:g}": (name, beta) for name in DIVERGENCES for beta in self.betas}


def measure(run: Run, settings: DivergenceSettings) -> tuple[Results, Estimate]:
    """Every divergence at every strength from every seed; a stage for each, so that a stopped run goes on."""
    study = RatedStudy(run, settings, settings.data, columns=settings.columns)
    found: dict[str, list[Outcome]] = {arm: [] for arm in settings.arms}
    for seed in settings.seeds:
        for arm, (name, beta) in settings.arms.items():
            stage = run.stage(f"{study.name}-{arm}-seed-{seed}")
            if not stage.finished:
                method = dpo(beta=beta, implied_reward=DIVERGENCES[name])
                policy = study.policy(arm, method, seed)
                figures = study.pair_figures(policy, method) | study.sample_figures(policy, seed)
                stage.finish({"figures": figures, "counts": {s: len(d.prompts) for s, d in study.splits.items()}})
            found[arm].append(Outcome(stage.result["figures"]))
    return Results(outcomes=found), study.judge_accuracy


def report(run: Run, settings: DivergenceSettings, results: Results, judge: Estimate, *, target: str) -> None:
    """Print the page, write it with its pictures, and sum up."""
    study = RatedStudy(run, settings, settings.data, columns=settings.columns)
    page = Page(
        name="f-dpo",
        title="DPO under other divergences",
        intro=_INTRO.format(
            model=settings.model, data=settings.data, steps=settings.steps, prompts=settings.prompts_per_step,
            pairs=len(study.splits["train"].comparisons), tested=len(study.splits["test"].prompts), judge=judge,
        ),
        columns=COLUMNS,
        rows={arm: f"{LABELS[name]}, beta {beta:g}" for arm, (name, beta) in settings.arms.items()},
        claims=claims(settings, results),
        pictures={
            f"Reward against {across}": front(settings, results, figure, across) for figure, across in FRONTS.items()
        },
    )  # fmt: skip
    finish(run, page, results, target=target, is_quick=settings.quick)


def claims(settings: DivergenceSettings, results: Results) -> list[Claim]:
    """What the paper found, per strength: reverse KL is the most rewarded, forward KL the most diverse."""
    found = []
    for beta in settings.betas:
        reverse, jensen, forward = (f"{n}-{beta:g}" for n in ("reverse-kl", "jensen-shannon", "forward-kl"))
        rows = (
            ("reverse KL is rewarded more than forward KL", reverse, forward, "reward"),
            ("reverse KL moves further than forward KL, KL(policy, start)", reverse, forward, "reverse_kl"),
            ("forward KL has more entropy than reverse KL", forward, reverse, "entropy"),
            ("Jensen-Shannon has more entropy than reverse KL", jensen, reverse, "entropy"),
            ("reverse KL is more accurate than forward KL", reverse, forward, "accuracy"),
        )
        for text, arm, other, figure in rows:
            claim = f"beta {beta:g}: {text}"
            found.append(Claim(text=claim, difference=results.difference(arm, other, figure)))
    return found


def front(settings: DivergenceSettings, results: Results, figure: str, across: str) -> str:
    """Reward against another figure: a point for each strength, with the interval of the reward over seeds."""
    series = []
    for name in DIVERGENCES:
        rewards = [results.estimate(f"{name}-{beta:g}", "reward") for beta in settings.betas]
        series.append(
            Series(
                label=LABELS[name],
                x=[results.estimate(f"{name}-{beta:g}", figure).value for beta in settings.betas],
                y=[each.value for each in rewards],
                low=[each.value if each.low is None else each.low for each in rewards],
                high=[each.value if each.high is None else each.high for each in rewards],
                is_line=False,
            )
        )
    return chart(series, name=f"Reward against {across}", across=across, up="judge's reward")
