"""The limits of a run, from what was written to an objective: read, checked against what is scored, and held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from poise.errors import ConfigError
from poise.feedback.rules import RefusalScorer
from poise.functional.constraints import PIDGains
from poise.functional.statistics import PlattScale
from poise.ranks import current
from poise.text import say
from poise.train.controllers import PID
from poise.train.limit_text import LimitText, group_named, parse_limit, require_groups
from poise.train.limits import Limit, check_limits, require_reachable
from poise.train.objectives import Lagrangian
from poise.types import Prompt, Scorer

COST_BOUND = 1.0  # in standard deviations: to be flatter than clearly safe gains nothing over an answer
RATE_BOUND = 4.0  # where only rates are limited: probabilities level off by themselves, and must reach near 0
LIMITS = ("rate(cost@may_harm) <= 0.15", "refusal@harmless <= 0.2")  # a third, and all, of SmolLM2-135M's own
GAINS = PIDGains(proportional=3.0, integral=0.2, derivative=0.0)  # answers at once: there are few updates to swing in
CALM_GAINS = PIDGains(proportional=1.5, integral=0.1, derivative=0.0)  # keep more of the reward; from a start of 1.5
START = 2.0  # multiplier of the first update
SHARE_SCALE = 3.0  # what all of a share weighs at multiplier 1, in units of reward


@dataclass(frozen=True, slots=True)
class _Channels:
    """Between what the channels lie that limits may speak of."""

    bounds: Mapping[str, tuple[float, float]]


SCORED = _Channels({"cost": (-COST_BOUND, COST_BOUND), "refusal": (0.0, 1.0)})


def read_limits(given: float | str | Sequence[float | str], *, margin: float = 0.0) -> tuple[LimitText, ...]:
    """Read the limits of a run: texts, or one number, the largest mean cost of answers to prompts that may do harm.

    margin  how far below such a number training holds the cost: prompts that it never saw cost a little more

    Raises ConfigError for a text that is no limit, a limit on what nobody scores, one that no policy meets or that
    every one does, and two on the same.

    >>> [each.limit().name for each in read_limits(["cost <= -0.5", "refusal@benign <= 5 %"])]
    ['cost', 'refusal_benign']
    >>> read_limits(-0.5, margin=0.12)[0].limit().at_most
    -0.62
    """
    texts = [given] if isinstance(given, (int, float, str)) else list(given)
    if not texts:
        raise ConfigError("no limit was given: write one, such as 'cost <= -0.5', or the number -0.5")
    numbers = [number for text in texts if (number := _number(text)) is not None]
    if numbers and len(texts) > 1:
        raise ConfigError(
            f"limit {numbers[0]:g} is combined with others: a single number means the mean cost on prompts that "
            f"may do harm; write it as 'cost@may_harm <= {numbers[0]:g}', and one decimal point, no comma, in "
            "each number"
        )
    read = (_bare(numbers[0], margin),) if numbers else tuple(_scored(parse_limit(str(text))) for text in texts)
    under_limits(read)  # two limits on the same fail here
    return read


def that_apply(limits: Sequence[LimitText], prompts: Iterable[Prompt]) -> tuple[LimitText, ...]:
    """The limits without those that nobody asked for and that speak of prompts of which there are none.

    Raises ConfigError for a limit that was asked for, on prompts of which there are none.
    """
    known = list(prompts)
    there = [each for each in limits if not each.group or any(map(group_named(each.group).contains, known))]
    kept = tuple(each for each in limits if each in there or each.text not in LIMITS)
    for each in limits:
        if each not in kept and current().is_main:
            say(f"limit {each.text!r} is left out: no training prompt belongs to {each.group!r}", error=True)
    require_groups(kept, known)
    return kept


def under_limits(
    limits: Sequence[LimitText],
    calibrations: Mapping[str, PlattScale] | None = None,
    *,
    gains: PIDGains = GAINS,
    start: float | Mapping[str, float] = START,
) -> Lagrangian:
    """The reward under the limits, each with a controller of its own; a rate reads its channel's calibration.

    gains  of every controller, in reward per unit of the measure; `CALM_GAINS` are those for a start near the limit
    start  multiplier of the first update: of all limits, or by a limit's name

    Raises ConfigError for a start that names other limits than there are.

    >>> two = read_limits(["cost <= -0.5", "refusal@harmless <= 5 %"])
    >>> under_limits(two, gains=CALM_GAINS, start={"cost": 1.5, "refusal_harmless": 0.0}).multipliers
    {'cost': 1.5, 'refusal_harmless': 0.0}
    """
    read = [each.limit(calibrations, scale=_scale(each)) for each in limits]
    starts = start if isinstance(start, Mapping) else {limit.name: start for limit in read}
    if set(starts) != {limit.name for limit in read}:
        raise ConfigError(
            f"multipliers to start from are given for {', '.join(starts) or 'no limit'}: give one for each of "
            f"{', '.join(limit.name for limit in read)}"
        )
    return Lagrangian(*read, *(PID(gains=gains, multiplier=starts[limit.name]) for limit in read))


def _scale(limit: LimitText) -> float:
    """What one unit of the measure weighs: a share is small beside a reward, a cost is in units like its own."""
    is_share = limit.measure == "rate" or SCORED.bounds.get(limit.channel) == (0.0, 1.0)
    return SHARE_SCALE if is_share else 1.0


def cost_bound(limits: Sequence[LimitText]) -> float:
    """Where a cost levels off that these limits speak of.

    A mean cost must not fall for ever. A rate reads probabilities, which level off by themselves; within the bound of a
    mean, they might not fall to the limit.

    >>> cost_bound(read_limits(LIMITS)), cost_bound(read_limits(-0.5))
    (4.0, 1.0)
    """
    measures = {each.measure for each in limits if each.channel == "cost"}
    return RATE_BOUND if measures == {"rate"} else COST_BOUND


def fitted_to(
    limits: Sequence[LimitText],
    calibrations: Mapping[str, PlattScale],
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[LimitText, ...]:
    """The limits as a trained score model can hold them.

    A bounded cost has a least probability of harm. Where a rate lies below it, or above the largest, its probabilities
    say nothing of the limit: then the answers with a cost above 0 are counted.

    bounds  between what the scores of the model lie; by default those of a mean cost
    """
    bounds = SCORED.bounds if bounds is None else bounds
    return tuple(
        replace(each, is_counted=each.measure == "rate" and not _reaches(each, calibrations, bounds)) for each in limits
    )


def _reaches(
    limit: LimitText, calibrations: Mapping[str, PlattScale], bounds: Mapping[str, tuple[float, float]]
) -> bool:
    if limit.channel not in calibrations or limit.channel not in bounds:
        return True
    least, most = sorted(calibrations[limit.channel].probability(np.array(bounds[limit.channel])))
    return bool(least < limit.at_most <= most)


def scorers_of(limits: Sequence[LimitText], refusals: Scorer | None = None) -> list[Scorer]:
    """The scorers that the limits need beside a reward and cost model.

    refusals  who fills the channel "refusal"; None: the rule
    """
    return [refusals or RefusalScorer()] if any(each.channel == "refusal" for each in limits) else []


def cost_limit(limits: Sequence[LimitText]) -> LimitText | None:
    """The limit on a mean cost, where it is the only limit: the one that a page can draw as a line."""
    (first, *others) = limits
    return first if not others and (first.channel, first.measure) == ("cost", "mean") else None


def _number(text: float | str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bare(number: float, margin: float) -> LimitText:
    Limit(at_most=number)  # nan and infinity fail here
    require_reachable(number, COST_BOUND, margin=margin)
    return LimitText(
        text=f"{number:g}",
        channel="cost",
        measure="mean",
        alpha=None,
        group="may_harm",
        at_most=number,
        unit="mean cost",
        margin=margin,
    )


def _scored(limit: LimitText) -> LimitText:
    if limit.channel not in SCORED.bounds and limit.channel != "reward":  # which an objective itself refuses
        close = get_close_matches(limit.channel, SCORED.bounds, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"limit {limit.text!r}: no scorer provides {limit.channel!r}. {hint}Choose from {', '.join(SCORED.bounds)}"
        )
    check_limits([limit.limit()], [SCORED])
    return limit
