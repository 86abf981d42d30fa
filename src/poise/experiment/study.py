"""What a recipe says: the arms that it compares, one trial of an arm, and what is read off the trials.

    Study -> runner: every arm from every seed -> Trials -> Results: estimates, claims, pictures -> results/NAME.json

A recipe is a pure function from its arguments to a `Study`. Seeds, processes, folders and pages belong to the runner.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from poise.errors import ConfigError, DataError
from poise.types import Estimate

if TYPE_CHECKING:
    from poise.evaluate.figures import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCard:
    """What a method is, by the axes of the survey "Reinforcement Learning Enhanced LLMs" (arXiv:2412.10400).

    Give literals: `poise list` reads the card without importing the recipe.
    """

    title: str
    paper: str  # "arXiv:2310.12773", or what else the recipe is after
    reported: str = ""  # what the paper found, with its model
    feedback: str = "none"  # who judges: people, an AI judge, a verifier, exact gold
    form: str = "none"  # of the feedback: comparisons, scores, labels, demonstrations
    signal: str = "none"  # what is learned from: a reward model, the comparisons themselves, the verifier
    optimiser: str = "none"
    regulariser: str = "none"
    constraint: str = "none"
    model: str = ""  # what is trained
    data: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A column of a table: a name in `Trial.metrics` or `Trial.by_prompt`, its label and its unit.

    over     what its interval is over: seeds (Student's), or whole prompts (see `poise.functional.intervals`); a fact
             brings its own, and of several seeds the one with the smallest value stands for all (or the largest)
    summary  what stands for all seeds: their mean, or the smallest or largest value, which has no interval
    table    heading of the table in which it stands; the first table has none. A table of facts has a row for each
    per      another metric over prompts: the ratio of the two sums, over the prompts that have both
    change   two metrics over prompts, after and before: their paired difference, over the prompts that have both
    """

    name: str
    label: str
    unit: str = ""  # "share", of a whole, and "ratio", to what it may exceed, print as per cent
    over: Literal["seeds", "prompts", "facts"] = "seeds"
    summary: Literal["mean", "smallest", "largest"] = "mean"
    table: str = ""
    per: str = ""
    change: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A direction that is tested, and that can fail: on `metric`, `higher` lies above `lower`.

    Either side is an arm, or a number that is known. The difference is paired by seed, or by seed and prompt where the
    metric is over prompts. `lower_metric` compares with another metric, such as that of the same arm before training.
    `least` is how far above it lies at least, in percentage points for shares: below 0, it may lose so much. A fact and
    a ratio are compared with a number.
    """

    text: str
    metric: str
    higher: str | float
    lower: str | float
    lower_metric: str = ""
    least: float = 0.0
    source: Literal["paper", "ours"] = "paper"

    @property
    def arms(self) -> set[str]:
        """The arms that it speaks of."""
        return {side for side in (self.higher, self.lower) if isinstance(side, str)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one arm came to from one seed.

    curves     for pictures: as long in every seed
    by_prompt  metric -> prompt id -> its value, or those of its rows: answers, pairs
    facts      what arms share and prompts do not explain, with intervals of its own: what a judge is worth
    paths      what it made: policies, score models, rollouts

    >>> Trial(metrics={"reward": float("nan")})
    Traceback (most recent call last):
    ...
    poise.errors.DataError: a trial's metrics must be finite numbers: reward is nan
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    by_prompt: Mapping[str, Mapping[str, float | Sequence[float]]] = field(default_factory=dict)
    facts: Mapping[str, Estimate] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = [(name, value) for name in self.by_prompt for values in self.rows(name).values() for value in values]
        rows += [(name, fact.value) for name, fact in self.facts.items()]
        lost = [f"{name} is {x}" for name, x in (*self.metrics.items(), *rows) if not math.isfinite(float(x))]
        if lost:
            raise DataError(f"a trial's metrics must be finite numbers: {', '.join(lost[:5])}")

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Trial:
        """The trial that a stage was finished with."""
        return cls(
            **{**document, "facts": {name: Estimate(**fact) for name, fact in document.get("facts", {}).items()}}
        )

    def rows(self, metric: str) -> dict[str, list[float]]:
        """The values of a metric over prompts by the prompt's id.

        >>> Trial(by_prompt={"harm": {"a": 1.0, "b": [0.0, 1.0]}}).rows("harm")
        {'a': [1.0], 'b': [0.0, 1.0]}
        """
        return {
            prompt: list(found) if isinstance(found, Sequence) else [found]
            for prompt, found in self.by_prompt[metric].items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture: `draw` gives its panels, by title; `curves`, `clouds` and `over` make the usual ones."""

    title: str
    across: str  # label of the horizontal axis, with its unit
    up: str
    draw: Callable[[Any], Mapping[str, Sequence[Series]]]  # of the `Results`


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Arms that are compared, one trial of an arm, and what is read off.

    trial    from (the arm's value, a seed) or, for a long one, from (the arm's value, a seed, a part of the run of its
             own), in which its stages are kept, so that a stopped trial goes on with the next stage
    threads  of a trial: tables are small, so that threads only wait for one another; None leaves it to the process
    report   from (the run, the `Results`) to what the summary says besides; it may write further pages into the run

    Raises ConfigError for an arm that cannot name a folder, or a claim about an arm or a metric that is not there.
    """

    arms: Mapping[str, Any]
    trial: Callable[..., Trial]
    metrics: Sequence[Metric]
    claims: Sequence[Claim] = ()
    plots: Sequence[Plot] = ()
    labels: Mapping[str, str] = field(default_factory=dict)  # arm -> what tables call it
    notes: str = ""  # Markdown before the table: what was run, and how it departs from the paper
    discussion: str = ""  # Markdown after the claims
    pilots: Sequence[str] = ()  # settings that were tried before, and what they gave
    threads: int | None = 1
    report: Callable[..., Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if bad := [arm for arm in self.arms if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", arm)]:
            raise ConfigError(f"arm {bad[0]!r} names a folder: use letters, digits, '.', '_' and '-'")
        names = {metric.name for metric in self.metrics if not metric.change}  # a claim names both sides itself
        for claim in self.claims:
            unknown = (claim.arms - set(self.arms)) | ({claim.metric, claim.lower_metric or claim.metric} - names)
            if unknown:
                raise ConfigError(
                    f"claim {claim.text!r} names {', '.join(sorted(unknown))}, which the study does not have"
                )

    def label(self, arm: str) -> str:
        """What tables call an arm."""
        return self.labels.get(arm, arm)

    def only(self, arms: Sequence[str]) -> Study:
        """The study of some arms, with the claims that these can test; of none named, all of it.

        Upper and lower case, and - and _, are alike. Raises ConfigError that lists the arms for one that is not there.
        """
        known = {_plain_name(arm): arm for arm in self.arms}
        if strangers := [arm for arm in arms if _plain_name(arm) not in known]:
            raise ConfigError(f"no arm {', '.join(strangers)}: choose from {', '.join(self.arms)}")
        kept = {known[_plain_name(arm)]: self.arms[known[_plain_name(arm)]] for arm in arms} or dict(self.arms)
        return replace(self, arms=kept, claims=[claim for claim in self.claims if claim.arms <= set(kept)])


def _plain_name(arm: str) -> str:
    return arm.strip().lower().replace("_", "-")
