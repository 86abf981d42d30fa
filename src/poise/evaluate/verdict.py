"""What a run came to in one sentence: were the limits met, what got better and what worse, against which start.

Only paired differences decide, and only where their whole interval lies on one side of 0; all else is "no difference
told from chance". A limit is met where the whole interval of what it measures lies at or below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from poise.estimates import PER_CENT
from poise.types import Estimate

Tone = Literal["better", "worse", "changed", "no difference", "not told"]
Outcome = Literal["met", "not met", "not told"]
EVEN = 0.5  # a rate of wins where nothing has changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure from a start to what came of it.

    difference  paired by prompt and sample, after minus before; of a rate of wins, how far it lies above one half
    before      None for a figure that compares already
    """

    name: str
    label: str
    after: Estimate
    difference: Estimate
    better: Literal["lower", "higher", ""]
    before: Estimate | None = None

    @property
    def tone(self) -> Tone:
        """What the interval of the difference says.

        >>> even = Estimate(value=-3.0, n=40, low=-9.0, high=2.0)
        >>> Change(name="harm", label="harm", after=even, difference=even, better="lower").tone
        'no difference'
        """
        low, high = self.difference.low, self.difference.high
        above, below = low is not None and low > 0, high is not None and high < 0
        if low is high is None:
            return "not told"
        if not (above or below):
            return "no difference"
        if not self.better:
            return "changed"
        return "better" if above == (self.better == "higher") else "worse"

    def __str__(self) -> str:
        """As it stands in the sentence: from where to where and by how much, the latter alone if it is nothing."""
        if self.before is None:
            return f"{self.label} {self.after:bare}"
        was, now = (f"{replace(each, low=None, high=None):bare}" for each in (self.before, self.after))
        unit = self.after.unit
        was = was.removesuffix(" %" if unit in PER_CENT else f" {unit}") if unit else was
        change = _signed(self.difference)
        return f"{self.label} {change}" if self.tone == "no difference" else f"{self.label} {was} → {now} ({change})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFinding:
    """What a limit came to on prompts that training never saw.

    target   what training held, a margin below the limit
    prompts  which prompts: "test" or "validation"
    by       who measured: the training signal, the judge, a rule
    """

    text: str
    label: str
    at_most: float
    target: float
    found: Estimate
    prompts: str = "test"
    by: str = "the training signal"

    @property
    def outcome(self) -> Outcome:
        """Whether the limit is met, as far as the interval tells.

        >>> found = Estimate(value=-0.6, n=80, low=-0.7, high=-0.45)
        >>> LimitFinding(text="-0.5", label="mean cost", at_most=-0.5, target=-0.6, found=found).outcome
        'not told'
        """
        low, high = self.found.low, self.found.high
        if high is not None and high <= self.at_most:
            return "met"
        return "not met" if low is not None and low > self.at_most else "not told"

    def __str__(self) -> str:
        scale, unit = (100, " %") if self.found.unit == "share" else (1, "")
        return f"{self.label} {self.found:bare}, at most {scale * self.at_most:g}{unit}"


def _signed(difference: Estimate) -> str:
    """A difference with its sign, points with one digit.

    >>> _signed(Estimate(value=6.25, n=9, unit="percentage points", low=-0.04, high=12.3))
    '+6.2 points [-0.0, 12.3]'
    """
    sign = "+" if difference.value > 0 else ""
    if difference.unit != "percentage points":
        return f"{sign}{difference:bare}"
    interval = difference.interval_text(lambda end: f"{end:.1f}")
    return f"{sign}{difference.value:.1f} points {interval}".strip()


def wins_above_even(rate: Estimate) -> Estimate:
    """How far a rate of wins lies above one half, in percentage points.

    >>> wins_above_even(Estimate(value=0.6, n=9, unit="share", low=0.45, high=0.75)).low
    -5.0
    """

    def moved(x: float | None) -> float | None:
        return None if x is None else round(100 * (x - EVEN), 9)

    value = round(100 * (rate.value - EVEN), 9)
    return Estimate(
        value=value, n=rate.n, unit="percentage points", low=moved(rate.low), high=moved(rate.high), level=rate.level,
        method=rate.method,
    )  # fmt: skip


def limits_clause(limits: Sequence[LimitFinding]) -> str:
    """Whether the limits were met, with what was found.

    >>> limits_clause([])
    'No limit was held'
    """
    if not limits:
        return "No limit was held"
    prompts = {each.prompts for each in limits}
    on = f"on unseen {prompts.pop()} prompts" if len(prompts) == 1 else "on unseen prompts"
    counts = [each.outcome for each in limits]
    found = "; ".join(f"{each}{_said(each) if len(limits) > 1 else ''}" for each in limits)
    if len(set(counts)) == 1:
        alone = len(limits) == 1
        words = {
            "met": f"The limit was met {on}" if alone else f"All {len(limits)} limits were met {on}",
            "not met": f"The limit was not met {on}" if alone else f"None of {len(limits)} limits was met {on}",
            "not told": f"Whether the limit{' was' if alone else 's were'} met {on} is not statistically clear",
        }
        return f"{words[counts[0]]} ({found})"
    return f"{counts.count('met')} of {len(limits)} limits were met {on} ({found})"


def _said(limit: LimitFinding) -> str:
    return {"met": ": met", "not met": ": not met", "not told": ": cannot be told"}[limit.outcome]


def changes_clause(changes: Sequence[Change], against: str) -> str:
    """What got better, what worse and what cannot be told, against a start.

    >>> changes_clause([], "the start model")
    'nothing was measured against the start model'
    """
    if not changes:
        return f"nothing was measured against {against}"
    heads: dict[Tone, str] = {
        "better": "better",
        "worse": "worse",
        "changed": "changed",
        "no difference": "no difference told from chance",
        "not told": "without an interval",
    }
    parts = []
    for tone, head in heads.items():
        those = [str(change) for change in changes if change.tone == tone]
        if those:
            parts.append(f"{head}: {', '.join(those)}")
        elif tone in ("better", "worse"):
            parts.append(f"nothing {head}")
    return f"against {against} {'; '.join(parts)}"


def sentence(changes: Sequence[Change], limits: Sequence[LimitFinding], *, against: str) -> str:
    """The sentence that stands first, wherever a run is spoken of.

    >>> sentence([], [], against="the start model")
    'No limit was held; nothing was measured against the start model.'
    """
    return f"{limits_clause(limits)}; {changes_clause(changes, against)}."
