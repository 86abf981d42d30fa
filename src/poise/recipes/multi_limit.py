"""Five limits at once: harm of three categories, over-refusal and length, against one limit and against a penalty.

    toy language -> reward alone, one limit, penalty, five limits, seeds each -> what each policy keeps of which limit

Safe RLHF (Josef Dai et al., arXiv:2310.12773) limits one mean cost, and names several costs as what should come next.
The world is exact: the best policy under all five limits follows from a linear programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from poise.experiment import Claim, MethodCard, Metric, Study, Trial, recipe
from poise.train.algorithms import RLOO
from poise.train.objectives import PID, Lagrangian, Limit, Penalty, ProjectedAscent, Unconstrained, among, per_category
from poise.train.tabular import QUICK, TabularTrainer
from poise.types import Prompt
from poise.worlds import toy_language as toy
from poise.worlds.bandit import Floats
from poise.worlds.optimum import best_under_limits

CARD = MethodCard(
    title="Three harm categories, over-refusal and length limited at once",
    paper="after arXiv:2310.12773, which limits one cost",
    feedback="exact gold",
    form="scores on seven channels",
    signal="the scores",
    optimiser="RLOO",
    regulariser="KL",
    constraint="five limits, a multiplier each (PID or dual ascent)",
    model="a table of 14 requests and 121 responses",
    data="the toy language",
)


def is_harmless(prompt: Prompt) -> bool:
    """Whether a request may be answered: those that only sound harmful are among them."""
    return bool(prompt.tags["kind"] != "harmful")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A limit, what its multiplier needs, and the prompts that it is measured on."""

    label: str
    limit: Limit
    tolerance: float
    gain: float  # of its controller: reward per unit of the measure
    contains: Callable[[Prompt], bool] = lambda _: True

    @property
    def allowed(self) -> str:
        """What is limited, what is allowed and the tolerance."""
        return f"{self.label} (at most {self.limit.at_most:g} ± {self.tolerance:g})"

    @property
    def weights(self) -> Floats:
        """Weights [X, A] by which a policy sums to what is measured."""
        return toy.table().weights_of(self.limit.channel, self.contains)


def harm(category: str, at_most: float) -> Rule:
    """A limit on the share of harmful answers to the requests of a category."""
    limit, label = Limit(f"harm_{category}", at_most, measure=per_category(category)), f"{category}: harmful answers"

    def concerns(prompt: Prompt) -> bool:
        return category in prompt.tags["categories"]

    return Rule(label=label, limit=limit, tolerance=0.03, gain=0.5, contains=concerns)


ALGORITHM = replace(RLOO, samples_per_prompt=8, kl_coef=0.02)
REFUSAL = Limit("refusal", 0.02, measure=among("harmless", is_harmless))
RULES = {
    "theft": harm("theft", 0.10),
    "violence": harm("violence", 0.02),
    "fraud": harm("fraud", 0.20),
    "over_refusal": Rule(label="harmless refused", limit=REFUSAL, tolerance=0.02, gain=0.5, contains=is_harmless),
    "length": Rule(label="words", limit=Limit("length", 5.0), tolerance=0.1, gain=0.1),
}
LIMITS, GAINS = [rule.limit for rule in RULES.values()], [rule.gain for rule in RULES.values()]


@recipe(CARD, quick={"steps": 10}, seeds=5)
def multi_limit(*, steps: int = 300) -> Study:
    """Train under one limit, five limits and a penalty, and print what each policy keeps.

    Args:
        steps: updates of each run.
    """
    best = best_under_limits(toy.table(), [(rule.weights, rule.limit.at_most) for rule in RULES.values()])
    mean_cost = toy.table().mean_of(best.policy, "cost")

    def trial(objective: Callable[[], Any], seed: int) -> Trial:
        trainer = TabularTrainer(
            world=toy.table(), algorithm=ALGORITHM, objective=objective(), samples_per_step=448,
            optimisation=replace(QUICK, steps=steps), start=toy.start(), seed=seed,
        )  # fmt: skip
        policy, reported = trainer.run(steps)
        excess = {name: float((rule.weights * policy).sum()) - rule.limit.at_most for name, rule in RULES.items()}
        ratios = [excess[name] / rule.tolerance for name, rule in RULES.items()]
        return Trial(
            metrics={"share": toy.table().mean_of(policy, "reward") / best.reward}
            | {name: rule.limit.at_most + excess[name] for name, rule in RULES.items()}
            | {"worst": max(ratios), "met": float(sum(ratio <= 1 for ratio in ratios))}
            | {name: value for name, value in reported.items() if name.startswith("multiplier")}
        )

    return Study(
        arms={
            "reward": Unconstrained,
            "one-limit": lambda: Lagrangian(Limit("cost", mean_cost), PID.of_gain(0.5)),
            "penalty": lambda: Penalty({limit.channel: 1.0 for limit in LIMITS}),
            "five-limits": lambda: Lagrangian(*LIMITS, *map(PID.of_gain, GAINS)),
            "five-limits-ascent": lambda: Lagrangian(*LIMITS, *(ProjectedAscent(rate=0.1 * gain) for gain in GAINS)),
        },
        trial=trial,
        labels={"five-limits": "five limits, PID", "five-limits-ascent": "five limits, dual ascent"},
        metrics=[
            Metric(name="share", label="reward, of the optimum's", unit="ratio"),
            *(Metric(name=name, label=rule.allowed, unit="share" * (name != "length")) for name, rule in RULES.items()),
            Metric(name="worst", label="largest excess, in tolerances"),
            Metric(name="met", label="limits met within tolerance, of 5"),
            *(Metric(name=f"multiplier_{r.limit.name}", label=r.label, table="Multipliers") for r in RULES.values()),
        ],
        claims=[
            Claim(text=text, metric=metric, higher=higher, lower=lower, source="ours")
            for text, metric, higher, lower in (
                ("Five limits at once are met within tolerance", "worst", 1.0, "five-limits"),
                ("They cost less than 5 % of the optimum's reward", "share", "five-limits", 0.95),
                ("One limit leaves another one further behind", "worst", "one-limit", "five-limits"),
                ("A penalty leaves a limit further behind", "worst", "penalty", "five-limits"),
                (
                    "PID earns more of the optimum's reward than dual ascent",
                    "share",
                    "five-limits",
                    "five-limits-ascent",
                ),
            )
        ],
        notes=f"""
The toy language ([worlds](../worlds.md)), trained for {steps} steps of 448 samples from a start that helps with
everything. A category's limit is over its own requests, that on over-refusal over harmless ones. The best policy that
meets all follows from a linear programme (reward {best.reward:.3f}, prices of {best.multiplier:.2f} in all). One limit
allows that policy's mean cost; the penalty is 1 on each channel. A policy that breaks limits can earn more.""",
    )
