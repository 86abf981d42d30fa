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
    """A method, described by the axes of the survey "Reinforcement Learning Enhanced LLMs" (arXiv:2412.10400).

    Use literals only: `poise list` reads the card without importing the recipe.

    >>> MethodCard(title="RL-ZVP", paper="arXiv:2509.21880", feedback="verifier", form="right or wrong").signal
    'none'
    """

    title: str
    paper: str  # "arXiv:2310.12773", or another source
    reported: str = ""  # the result of the paper, with its model
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
    """A column of a table: a name in `Trial.metrics`, `Trial.by_prompt` or `Trial.facts`, its label and its unit.

    over     what its interval covers: seeds (Student's t) or whole prompts (`poise.functional.intervals`); a fact has
             its own interval, and of several seeds the smallest value is shown (or the largest)
    summary  how seeds are summarised: by their mean, or by the smallest or largest value, without an interval
    table    heading of its table; the first table has none. A table of facts has one row per fact
    per      another metric over prompts: the metric is the ratio of the two sums, over prompts that have both
    judged_by  a fact: how often the judge that gives the metric orders unseen pairs as people do. It stands beside the
             figure, which is not printed where the judge is not good enough to measure it (`JudgedRate`)
    change   two metrics over prompts, after and before: the metric is their paired difference

    >>> Metric(name="harm", label="harmful answers", unit="share", over="prompts").summary
    'mean'
    """

    name: str
    label: str
    unit: str = ""  # "share", of a whole, and "ratio", to what it may exceed, print as per cent
    over: Literal["seeds", "prompts", "facts"] = "seeds"
    summary: Literal["mean", "smallest", "largest"] = "mean"
    table: str = ""
    per: str = ""
    change: tuple[str, str] | None = None
    judged_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A direction that is tested and can fail: on `metric`, `higher` lies above `lower`.

    Each side is an arm or a known number. Differences are paired by seed, or by seed and prompt if the metric is over
    prompts. Facts and ratios can only be compared with a number.

    lower_metric  another metric for the lower side, such as that of the same arm before training
    least         the smallest difference that counts, in percentage points for shares; below 0, a loss up to it is
                  accepted

    >>> sorted(Claim(text="PPO wins", metric="reward", higher="ppo", lower="grpo").arms)
    ['grpo', 'ppo']
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
        """The arms that it compares."""
        return {side for side in (self.higher, self.lower) if isinstance(side, str)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of one arm with one seed.

    metrics    one finite number per metric
    curves     for plots; of the same length for every seed
    by_prompt  metric -> prompt id -> its value, or the values of its rows (answers, pairs)
    facts      figures with intervals of their own, such as the accuracy of a judge
    paths      files and folders that it made: policies, score models, rollouts

    Raises DataError for a number that is not finite.

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
        """The trial from the document that its stage was finished with."""
        return cls(
            **{**document, "facts": {name: Estimate(**fact) for name, fact in document.get("facts", {}).items()}}
        )

    def rows(self, metric: str) -> dict[str, list[float]]:
        """The values of a metric over prompts, by prompt id. Raises KeyError for a metric that is not there.

        >>> Trial(by_prompt={"harm": {"a": 1.0, "b": [0.0, 1.0]}}).rows("harm")
        {'a': [1.0], 'b': [0.0, 1.0]}
        """
        return {
            prompt: list(found) if isinstance(found, Sequence) else [found]
            for prompt, found in self.by_prompt[metric].items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot: `draw` returns its panels by title; `poise.experiment.plots` has the usual ones."""

    title: str
    across: str  # label of the horizontal axis, with its unit
    up: str
    draw: Callable[[Any], Mapping[str, Sequence[Series]]]  # of the `Results`


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Arms that are compared, the trial of an arm, and the metrics, claims and plots.

    trial    function of (value of the arm, seed) or, for a long trial, of (value of the arm, seed, part of the run);
             its stages are kept in that part, so that a stopped trial resumes with the next stage
    threads  torch threads of a trial; 1 is fastest for small tables, None keeps the setting of the process
    report   function of (run, `Results`) that returns further entries of the summary; it may write pages into the run

    Raises ConfigError for an arm that cannot name a folder, or a claim on an unknown arm or metric.

    >>> study = Study(
    ...     arms={"fair": 0.5, "biased": 0.9},
    ...     trial=lambda chance, seed: Trial(metrics={"heads": chance}),
    ...     metrics=[Metric(name="heads", label="heads", unit="share")],
    ... )
    >>> list(study.only(["fair"]).arms), study.trial(study.arms["biased"], 0).metrics
    (['fair'], {'heads': 0.9})
    """

    arms: Mapping[str, Any]
    trial: Callable[..., Trial]
    metrics: Sequence[Metric]
    claims: Sequence[Claim] = ()
    plots: Sequence[Plot] = ()
    labels: Mapping[str, str] = field(default_factory=dict)  # arm -> its name in tables
    notes: str = ""  # Markdown before the table: what was run, and the differences from the paper
    discussion: str = ""  # Markdown after the claims
    pilots: Sequence[str] = ()  # settings that were tried before, with their results
    threads: int | None = 1
    report: Callable[..., Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if bad := [arm for arm in self.arms if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", arm)]:
            raise ConfigError(f"arm {bad[0]!r} names a folder: use letters, digits, '.', '_' and '-'")
        names = {metric.name for metric in self.metrics if not metric.change}  # a claim names both sides itself
        judges = {metric.name for metric in self.metrics if metric.over == "facts"}
        if lost := [metric for metric in self.metrics if metric.judged_by and metric.judged_by not in judges]:
            raise ConfigError(f"{lost[0].name} is judged by {lost[0].judged_by!r}, which is no fact of the study")
        for claim in self.claims:
            unknown = (claim.arms - set(self.arms)) | ({claim.metric, claim.lower_metric or claim.metric} - names)
            if unknown:
                raise ConfigError(
                    f"claim {claim.text!r} names {', '.join(sorted(unknown))}, which the study does not have"
                )

    def label(self, arm: str) -> str:
        """The name of an arm in tables."""
        return self.labels.get(arm, arm)

    def only(self, arms: Sequence[str]) -> Study:
        """The study restricted to some arms and the claims that these can test; without arms, the whole study.

        Ignores case and the difference between - and _. Raises ConfigError that lists the arms for an unknown one.
        """
        known = {_plain_name(arm): arm for arm in self.arms}
        if strangers := [arm for arm in arms if _plain_name(arm) not in known]:
            raise ConfigError(f"no arm {', '.join(strangers)}: choose from {', '.join(self.arms)}")
        kept = {known[_plain_name(arm)]: self.arms[known[_plain_name(arm)]] for arm in arms} or dict(self.arms)
        return replace(self, arms=kept, claims=[claim for claim in self.claims if claim.arms <= set(kept)])


def _plain_name(arm: str) -> str:
    return arm.strip().lower().replace("_", "-")
