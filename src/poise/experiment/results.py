"""What a study found: an estimate of every metric, claims with their verdicts and the power they had, one document.

Intervals are Student's over seeds, or those of `poise.functional.intervals` over whole prompts. A claim holds if the
whole interval of its paired difference lies above 0, and is contradicted if the whole interval lies below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri, stdtrit

from poise.errors import DataError
from poise.estimates import NOT_MEASURABLE, PER_CENT, Estimate, JudgedRate
from poise.evaluate.figures import Series
from poise.experiment.study import Claim, Metric, Study, Trial
from poise.functional.intervals import mean, paired_difference, ratio_of_sums, student_mean

Outcome = Literal["holds", "not shown", "contradicted", "not measurable"]
Row = tuple[int, str, int]  # seed, prompt id, which row of the prompt
ENOUGH_SIGNS = 6  # seeds that all differ by the very same, whose sign alone then has p <= 2 / 2^6 < 0.05
_KEPT = ("metrics", "by_prompt", "facts", "paths")  # of a trial: all that estimates and verdicts are made of
POWER = 0.8  # how often a difference of the size that is reported as detectable would be shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on a claim, with the power of its test.

    difference  higher minus lower minus `least`, paired, in the unit of the metric
    detectable  the smallest true difference that 4 of 5 repetitions would show; None if unknown
    """

    text: str
    source: str
    metric: str
    higher: str | float
    lower: str | float
    difference: Estimate
    outcome: Outcome
    seeds: int
    prompts: int = 0  # 0 where the interval is over seeds
    left_out: int = 0  # rows of prompts that only one side has: answers that could not be scored
    detectable: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The trials of every arm: `trials[arm][i]` has the seed `seeds[i]`."""

    study: Study
    seeds: tuple[int, ...]
    trials: Mapping[str, Sequence[Trial]]

    def values(self, arm: str, metric: str) -> np.ndarray:
        """The metric of every seed [N]; a metric over prompts is averaged over its prompts."""
        return np.array([_value(trial, metric) for trial in self.trials[arm]])

    def has(self, arm: str, metric: str) -> bool:
        """Whether the arm's trials report the metric; of two, on prompts of both, and a ratio over more than 0."""
        found = next((each for each in self.study.metrics if each.name == metric), None)
        two = _two_of(found) if found else ()
        there = all(
            name in trial.metrics or trial.by_prompt.get(name) or name in trial.facts
            for trial in self.trials[arm]
            for name in two or (metric,)
        )
        if not there or not two:
            return there
        below = self._rows_of_both(arm, *two)[1]
        return bool(below) and (found is None or not found.per or sum(below) > 0)

    def estimate(self, arm: str, metric: Metric) -> Estimate:
        """The metric of an arm, with its interval."""
        if metric.over == "prompts":
            return self._over_prompts(arm, metric)
        if metric.over == "facts":
            worst = max if metric.summary == "largest" else min
            return worst((trial.facts[metric.name] for trial in self.trials[arm]), key=lambda fact: fact.value)
        values = self.values(arm, metric.name)
        if metric.summary != "mean":
            extreme = values.min() if metric.summary == "smallest" else values.max()
            method = f"{metric.summary} of {len(values)} seeds"
            return Estimate(value=float(extreme), n=len(values), unit=metric.unit, method=method)
        return student_mean(values, unit=metric.unit)

    def verdict(self, claim: Claim) -> Verdict:
        """Test a claim: it holds if the whole interval of its paired difference, minus `least`, lies above 0."""
        metric = self._metric(claim.metric)
        difference, prompts, left_out = self._difference(claim, metric)
        difference = _beyond(difference, claim.least)
        low, high = difference.low, difference.high
        if low is high is None and not prompts and len(self.seeds) >= ENOUGH_SIGNS:
            low = high = difference.value if difference.method.endswith("nothing varies") else None
        outcome: Outcome = "not shown"
        if not self._is_measurable(claim, metric):
            outcome = NOT_MEASURABLE
        elif low is not None and low > 0:
            outcome = "holds"
        elif high is not None and high < 0:
            outcome = "contradicted"
        return Verdict(
            text=claim.text,
            source=claim.source,
            metric=metric.label,
            higher=claim.higher,
            lower=claim.lower,
            difference=difference,
            outcome=outcome,
            seeds=len(self.seeds),
            prompts=prompts,
            left_out=left_out,
            detectable=detectable(difference, prompts or len(self.seeds)),
        )

    def judged(self, arm: str, metric: Metric) -> Estimate | JudgedRate:
        """What the metric is for an arm; where a judge gives it, beside what that judge is worth."""
        found = self.estimate(arm, metric)
        return JudgedRate(rate=found, right=self._worth(arm, metric)) if metric.judged_by else found

    def _worth(self, arm: str, metric: Metric) -> Estimate | None:
        """How often the judge of a metric is right, of several seeds the worst."""
        judge = next((each for each in self.study.metrics if each.name == metric.judged_by), None)
        return self.estimate(arm, judge) if judge is not None and self.has(arm, judge.name) else None

    def _is_measurable(self, claim: Claim, metric: Metric) -> bool:
        sides = [side for side in (claim.higher, claim.lower) if isinstance(side, str)]
        rates = [self.judged(side, metric) for side in sides if metric.judged_by]
        return all(rate.is_measurable for rate in rates if isinstance(rate, JudgedRate))

    def series(self, arm: str, x: str, y: str) -> Series:
        """A curve as a line with the band of its seeds' intervals."""
        every = [student_mean(row) for row in np.array([trial.curves[y] for trial in self.trials[arm]]).T]
        return _with_intervals(self.study.label(arm), self.mean_curve(arm, x).tolist(), every, is_line=True)

    def points(self, at: Mapping[str, float], metric: str, label: str = "") -> Series:
        """A metric of arms over the number that each has in `at`, with whiskers; arms without it are left out."""
        there = {arm: x for arm, x in at.items() if arm in self.trials and self.has(arm, metric)}
        every = [self.estimate(arm, self._metric(metric)) for arm in there]
        return _with_intervals(label or self._metric(metric).label, list(there.values()), every, is_line=False)

    def mean_curve(self, arm: str, name: str) -> np.ndarray:
        """A curve averaged over seeds [T]."""
        return np.mean([trial.curves[name] for trial in self.trials[arm]], axis=0)

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Every metric of every arm that has it."""
        return {
            arm: {each.name: self.estimate(arm, each) for each in self.study.metrics if self.has(arm, each.name)}
            for arm in self.trials
        }

    def document(self) -> dict[str, Any]:
        """All that pages show, to be kept as results/NAME.json; `poise.experiment.pages` renders it."""
        study = self.study
        return {
            "seeds": list(self.seeds),
            "arms": {arm: study.label(arm) for arm in self.trials},
            "metrics": list(study.metrics),
            "trials": {
                arm: [
                    {"seed": seed, **{name: kept for name in _KEPT if (kept := getattr(trial, name))}}
                    for seed, trial in zip(self.seeds, trials, strict=True)
                ]
                for arm, trials in self.trials.items()
            },
            "estimates": self.estimates(),
            "claims": [self.verdict(claim) for claim in study.claims if self._can_test(claim)],
            "untested": [claim.text for claim in study.claims if not self._can_test(claim)],
            "plots": [
                {"title": plot.title, "across": plot.across, "up": plot.up, "panels": plot.draw(self)}
                for plot in study.plots
            ],
            "notes": study.notes.strip(),
            "discussion": study.discussion.strip(),
            "pilots": list(study.pilots),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any], study: Study) -> Results:
        """The results again from the document that they were kept in, for the study that made it; without curves."""
        trials = {
            arm: [Trial.read({name: row[name] for name in _KEPT if name in row}) for row in rows]
            for arm, rows in document["trials"].items()
        }
        return cls(study=study, seeds=tuple(document["seeds"]), trials=trials)

    def _can_test(self, claim: Claim) -> bool:
        """Whether both sides were measured, on prompts that they share: data without harmless prompts say no wins."""
        sides = (claim.higher, claim.metric), (claim.lower, claim.lower_metric or claim.metric)
        if not all(self.has(arm, metric) for arm, metric in sides if isinstance(arm, str)):
            return False
        metric = self._metric(claim.metric)
        return metric.over != "prompts" or bool(metric.per) or bool(_paired(*(self._prompt_side(*s) for s in sides))[0])

    def _metric(self, name: str) -> Metric:
        return next(metric for metric in self.study.metrics if metric.name == name)

    def _difference(self, claim: Claim, metric: Metric) -> tuple[Estimate, int, int]:
        """The difference with its interval, over how many prompts that is, and how many rows had no counterpart.

        Shares differ by percentage points.
        """
        second = claim.lower_metric or claim.metric
        if metric.over == "facts" or metric.per:
            return *self._from_number(claim, metric), 0
        if metric.over == "prompts":
            high, low = self._prompt_side(claim.higher, claim.metric), self._prompt_side(claim.lower, second)
            keys, left_out = _paired(high, low)
            prompts = [prompt for _, prompt, _ in keys]
            below, above = ([_at(side, key) for key in keys] for side in (low, high))
            return paired_difference(below, above, prompts, unit=metric.unit), len(set(prompts)), left_out
        scale, unit = (100.0, "percentage points") if metric.unit in PER_CENT else (1.0, metric.unit)
        difference = self._side(claim.higher, claim.metric) - self._side(claim.lower, second)
        return student_mean(np.broadcast_to(scale * difference, len(self.seeds)), unit=unit), 0, 0

    def _side(self, side: str | float, metric: str) -> Any:
        return self.values(side, metric) if isinstance(side, str) else float(side)

    def _from_number(self, claim: Claim, metric: Metric) -> tuple[Estimate, int]:
        """How far a figure with an interval of its own lies above a number, or below it."""
        if isinstance(claim.higher, str) == isinstance(claim.lower, str):
            raise DataError(f"claim {claim.text!r} is on {metric.name}: compare one arm with a number")
        is_above = isinstance(claim.higher, str)
        arm, number = (claim.higher, claim.lower) if is_above else (claim.lower, claim.higher)
        found, sign = self.estimate(str(arm), metric), 1 if is_above else -1
        scale, unit = (100.0, "percentage points") if metric.unit in PER_CENT else (1.0, metric.unit)

        def moved(x: float | None) -> float | None:
            return None if x is None else scale * sign * (x - float(number))

        low, high = (moved(x) for x in ((found.low, found.high) if is_above else (found.high, found.low)))
        value = scale * sign * (found.value - float(number))
        prompts = {prompt for _, prompt, _ in self._prompt_rows(str(arm), metric.name)} if metric.per else set()
        return replace(found, value=value, low=low, high=high, unit=unit), len(prompts)

    def _over_prompts(self, arm: str, metric: Metric) -> Estimate:
        if not (two := _two_of(metric)):
            rows = self._prompt_rows(arm, metric.name)
            return mean(list(rows.values()), [prompt for _, prompt, _ in rows], unit=metric.unit)
        first, second, prompts = self._rows_of_both(arm, *two)
        if metric.change:
            return paired_difference(second, first, prompts, unit=metric.unit)
        return ratio_of_sums(first, second, prompts, unit=metric.unit)

    def _rows_of_both(self, arm: str, first: str, second: str) -> tuple[list[float], list[float], list[str]]:
        """Two metrics of an arm on the rows of prompts that both have, with the prompts."""
        ours, theirs = self._prompt_rows(arm, first), self._prompt_rows(arm, second)
        keys = _paired(ours, theirs)[0]
        return [ours[key] for key in keys], [theirs[key] for key in keys], [prompt for _, prompt, _ in keys]

    def _prompt_side(self, side: str | float, metric: str) -> dict[Row, float] | float:
        return self._prompt_rows(side, metric) if isinstance(side, str) else float(side)

    def _prompt_rows(self, arm: str, metric: str) -> dict[Row, float]:
        """The metric of every seed, prompt and row of it."""
        every = zip(self.seeds, self.trials[arm], strict=True)
        return {
            (seed, prompt, number): float(x)
            for seed, trial in every
            for prompt, found in trial.rows(metric).items()
            for number, x in enumerate(found)
        }


def detectable(difference: Estimate, n: int) -> float | None:
    """The smallest true difference whose interval would lie above 0 in 4 of 5 repetitions; None without an interval.

        half * (1 + q_0.8 / q),   half = q * standard error,   q the quantile of the interval

    q is Student's over n seeds and the normal one over prompts. If nothing varies it is 0.

    >>> round(detectable(Estimate(value=0.0, n=5, low=-1.0, high=1.0, method="Student"), n=5), 2)
    1.34
    """
    if difference.low is None or difference.high is None:
        return None
    half, side = (difference.high - difference.low) / 2, (1 + difference.level) / 2
    if difference.method == "Student":
        return half * (1 + float(stdtrit(n - 1, POWER)) / float(stdtrit(n - 1, side)))
    return half * (1 + float(ndtri(POWER)) / float(ndtri(side)))


def _beyond(difference: Estimate, least: float) -> Estimate:
    """How far a difference lies above the least that a claim names."""
    low, high = (None if x is None else x - least for x in (difference.low, difference.high))
    return replace(difference, value=difference.value - least, low=low, high=high) if least else difference


def _value(trial: Trial, metric: str) -> float:
    if metric in trial.metrics:
        return float(trial.metrics[metric])
    if metric in trial.facts:
        return trial.facts[metric].value
    return float(np.mean([x for found in trial.rows(metric).values() for x in found]))


def _two_of(metric: Metric) -> tuple[()] | tuple[str, str]:
    """The two metrics that a difference or a ratio is of."""
    return metric.change or ((metric.name, metric.per) if metric.per else ())


def _paired(high: Any, low: Any) -> tuple[list[Row], int]:
    """The rows of prompts that both sides have, and how many only one of them has.

    Rows of a prompt are told apart by their number alone, so that of a prompt with unequally many none are paired.
    """
    sides = [side for side in (high, low) if isinstance(side, dict)]
    counts = [Counter((seed, prompt) for seed, prompt, _ in side) for side in sides]
    common = [key for key in sides[0] if len({count[key[:2]] for count in counts}) == 1]
    return sorted(common), len({key for side in sides for key in side}) - len(common)


def _at(side: Any, key: Row) -> float:
    return float(side[key]) if isinstance(side, dict) else float(side)


def _with_intervals(label: str, x: Sequence[float], every: Sequence[Estimate], *, is_line: bool) -> Series:
    return Series(
        label=label,
        x=x,
        y=[each.value for each in every],
        low=[each.value if each.low is None else each.low for each in every],
        high=[each.value if each.high is None else each.high for each in every],
        is_line=is_line,
    )
