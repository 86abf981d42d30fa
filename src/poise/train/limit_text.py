"""Limits as text: what `--limit` says, and what a run records of it.

cost <= -0.5              the mean cost of all responses
rate(cost) <= 2 %         the share of harmful responses, or 0.02
cvar0.1(cost) <= 0        the mean cost of the worst tenth
refusal@benign <= 0.05    the mean of the channel `refusal` over prompts of one kind
rate(cost@theft) <= 0.05  over the prompts with one harm category
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from poise.errors import ConfigError
from poise.feedback.groups import PromptGroup, may_harm, of_category
from poise.functional.statistics import PlattScale
from poise.train.limits import MEAN, Limit, Measure, cvar, rate
from poise.types import Prompt

KINDS: Mapping[str, Callable[[Prompt], bool]] = {
    "harmful": lambda prompt: prompt.tags.get("kind") == "harmful",
    "benign": lambda prompt: prompt.tags.get("kind") == "benign",
    "look_alike": lambda prompt: prompt.tags.get("kind") == "look_alike",
    "harmless": lambda prompt: not may_harm(prompt),
    "may_harm": may_harm,
}
EXAMPLES = "'cost <= -0.5', 'rate(cost) <= 2 %', 'cvar0.1(cost) <= 0' or 'refusal@benign <= 0.05'"
_NAME = r"[A-Za-z][\w-]*"
_LIMIT = re.compile(
    rf"(?:(?P<measure>mean|rate|cvar(?P<alpha>[\d.]*))\()?\s*(?P<channel>{_NAME})\s*(?:@\s*(?P<group>{_NAME}))?\s*(?P<end>\))?"
    r"\s*<=\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<percent>%)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitText:
    """A limit as it was written, and how it was understood."""

    text: str
    channel: str
    measure: str  # mean, rate or cvar
    alpha: float | None  # share of the worst responses, of a cvar
    group: str  # "" for all prompts
    at_most: float
    unit: str
    margin: float = 0.0  # how far below `at_most` training holds it
    is_counted: bool = False  # of a rate: answers above zero are counted, though their channel is calibrated

    def limit(self, calibrations: Mapping[str, PlattScale] | None = None, *, scale: float = 1.0) -> Limit:
        """The limit. A rate counts each response with its probability of harm where its channel is calibrated.

        >>> parse_limit("refusal@benign <= 5 %").limit().name
        'refusal_benign'
        """
        measure: Measure = MEAN
        if self.measure == "rate":
            measure = rate(None if self.is_counted else (calibrations or {}).get(self.channel))
        elif self.alpha is not None:
            measure = cvar(self.alpha)
        if self.group:
            measure = replace(measure, among=group_named(self.group))
        return Limit(self.channel, self.at_most - self.margin, measure=measure, scale=scale)

    def __str__(self) -> str:
        """As a sentence.

        >>> str(parse_limit("refusal@benign <= 5 %"))
        'Limit refusal@benign <= 5 %: the mean of refusal, over prompts in benign, at most 0.05 (share).'
        """
        worst = f"the mean of the worst {100 * (self.alpha or 1):g} % of" if self.alpha else ""
        what = {"mean": "the mean of", "rate": "the share of harmful answers by"}.get(self.measure, worst)
        counted = " (answers with a cost above 0 are counted: its probabilities do not reach as far)"
        what += counted if self.is_counted else ""
        held = f", held at {self.at_most - self.margin:g} in training" if self.margin else ""
        where = f"prompts in {self.group}" if self.group else "all prompts"
        return f"Limit {self.text}: {what} {self.channel}, over {where}, at most {self.at_most:g} ({self.unit}){held}."

    def record(self) -> dict[str, object]:
        """What run.json and the report say of it."""
        return asdict(self)


def parse_limit(text: str) -> LimitText:
    """Read a limit such as `cost <= -0.5`, `rate(cost) <= 2 %`, `cvar0.1(cost) <= 0` or `refusal@benign <= 0.05`.

    Raises ConfigError that shows how limits are written.

    >>> parse_limit("cvar0.1(cost@theft) <= 0").alpha
    0.1
    """
    found = _LIMIT.fullmatch(text.strip())
    if found is None or bool(found["measure"]) != bool(found["end"]):
        hint = "; a limit is an upper bound" if ">" in text else ""
        raise ConfigError(f"limit {text!r} cannot be read{hint}: write it as {EXAMPLES}")
    kind = (found["measure"] or "mean").rstrip("0123456789.")
    alpha = _alpha(text, found["alpha"]) if kind == "cvar" else None
    at_most = float(found["number"]) / (100 if found["percent"] else 1)
    unit = "share" if kind == "rate" or found["percent"] else f"mean {found['channel']}"
    read = LimitText(
        text=text.strip(),
        channel=found["channel"],
        measure=kind,
        alpha=alpha,
        group=found["group"] or "",
        at_most=at_most,
        unit=unit,
    )
    read.limit()  # a rate above 1 fails here, before anything is trained
    return read


def group_named(name: str) -> PromptGroup:
    """The prompts of a kind (harmful, benign, look_alike, harmless, may_harm), or of a harm category."""
    return PromptGroup(name=name, contains=KINDS[name]) if name in KINDS else of_category(name)


def require_groups(limits: Sequence[LimitText], prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError for a limit on a group that no prompt belongs to, naming the groups that there are."""
    for each in limits:
        if each.group and not any(map(group_named(each.group).contains, prompts)):
            categories = {name for prompt in prompts for name in prompt.tags.get("categories", ())}
            there = [name for name, contains in KINDS.items() if any(map(contains, prompts))]
            raise ConfigError(
                f"limit {each.text!r}: no training prompt belongs to {each.group!r}. "
                f"There are {', '.join([*there, *sorted(categories)])}"
            )


def _alpha(text: str, written: str) -> float:
    try:
        alpha = float(written)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha <= 1:
        raise ConfigError(
            f"limit {text!r}: cvar needs the share of the worst responses, above 0 and at most 1: cvar0.1"
        )
    return alpha
