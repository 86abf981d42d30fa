"""A signal of one's own: scorers by name fill channels, limits speak of them, and answers are measured by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from poise.errors import ConfigError
from poise.evaluate.suite import SuiteResult, channel
from poise.feedback.named import Loading, scorers_by_channel
from poise.functional.intervals import mean
from poise.models.load import Backbone
from poise.pipeline.limits import START, under_limits
from poise.plan.work import current_planner
from poise.train.limit_text import LimitText, parse_limit
from poise.train.limits import check_limits
from poise.train.objectives import Objective, Unconstrained
from poise.types import Completion, Estimate, Prompt, Scorer, Scores

REFUSAL = "rule:refusal"  # fills the channel "refusal" where a limit speaks of it and nothing else is named


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSignal:
    """What fills each channel by name, and the limits on them; without limits the reward alone is maximised.

    >>> OwnSignal.read(reward=["py:mine.py:short"], limits=["refusal@benign <= 5 %"]).channels["refusal"]
    ('rule:refusal',)
    """

    channels: Mapping[str, tuple[str, ...]]
    limits: tuple[LimitText, ...] = ()
    higher_is_worse: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        *,
        reward: Sequence[str],
        cost: Sequence[str] = (),
        others: Sequence[str] = (),
        limits: float | Sequence[float | str] = (),
    ) -> OwnSignal:
        """From the options of a recipe: `others` are CHANNEL=SCORER, and a number is a limit on the mean cost.

        Raises ConfigError for a channel that is limited and not filled, or filled and not limited.
        """
        channels = {"reward": tuple(reward), "cost": tuple(cost)}
        for text in others:
            name, is_there, scorer = text.partition("=")
            if not is_there or not name.isidentifier() or not scorer.strip():
                raise ConfigError(f"scorer {text!r}: write CHANNEL=SCORER, as length=py:mine.py:words")
            channels[name] = (*channels.get(name, ()), scorer.strip())
        several = (limits,) if isinstance(limits, (int, float)) else limits
        read = tuple(parse_limit(_written(text)) for text in several)
        limited = {limit.channel for limit in read}
        if "refusal" in limited:
            channels.setdefault("refusal", (REFUSAL,))
        found = {name: scorers for name, scorers in channels.items() if scorers or name == "reward"}
        _require_whole(found, read)
        under_limits(read)  # two limits on the same fail here
        return cls(channels=found, limits=read, higher_is_worse={name: name in limited for name in found})

    def scorers(self, backbone: Backbone) -> list[Scorer]:
        """The scorers, loaded; on the backbone of the policy where they name it as theirs.

        Raises as `scorers_by_channel` does, and ConfigError without a reward, or for a limit that no score of its
        channel can be beyond.
        """
        if not self.channels["reward"]:
            raise ConfigError("no reward: say what is maximised, as --reward py:mine.py:function or --reward FOLDER")
        if current_planner() is not None:
            return [_Unasked(tuple(self.channels))]
        worse, loading = self.higher_is_worse, Loading(backbone=backbone)
        found = scorers_by_channel(self.channels, higher_is_worse=worse, loading=loading)
        check_limits([each.limit() for each in self.limits], found)
        bounds = {name: ends for scorer in found for name, ends in getattr(scorer, "bounds", {}).items()}
        for limit in self.limits:
            if limit.measure == "rate" and bounds.get(limit.channel, (-1.0, 1.0))[0] >= 0:
                raise ConfigError(
                    f"limit {limit.text!r} counts the answers with a {limit.channel} above 0, and no {limit.channel} "
                    f"is below: limit its mean, as '{limit.channel} <= {limit.at_most:g}'"
                )
        return found

    def objective(self, *, multiplier: float = START) -> Objective:
        """The reward under the limits, each with a controller of its own, or the reward alone."""
        return under_limits(self.limits, start=multiplier) if self.limits else Unconstrained()

    def measured(self, answers: SuiteResult) -> tuple[dict[str, dict[str, list[float]]], dict[str, Estimate]]:
        """Each channel by prompt with what could not be scored, and what each limit comes to, by its text."""
        rows: dict[str, dict[str, list[float]]] = {}
        for name in self.channels:
            for rollout, value in channel(answers.rollouts, name):
                rows.setdefault(name, {}).setdefault(rollout.prompt.id, []).append(value)
        for rollout in answers.rollouts:
            lost = float(not set(self.channels) <= set(rollout.scores.values))
            rows.setdefault("unscorable", {}).setdefault(rollout.prompt.id, []).append(lost)
        found = {limit.text: _comes_to(limit, answers) for limit in self.limits}
        return rows, {text: estimate for text, estimate in found.items() if estimate is not None}


@dataclass(frozen=True, slots=True)
class _Unasked:
    """Stands for scorers where a run is only planned."""

    channels: tuple[str, ...]

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Zero on every channel."""
        return [Scores(values=dict.fromkeys(self.channels, 0.0)) for _ in completions]


def _written(text: float | str) -> str:
    try:
        return f"cost <= {float(text):g}"
    except ValueError:
        return str(text)


def _require_whole(channels: Mapping[str, Sequence[str]], limits: Sequence[LimitText]) -> None:
    limited = {limit.channel for limit in limits}
    for limit in limits:
        if limit.channel == "reward":
            raise ConfigError(f"limit {limit.text!r}: the reward is maximised and cannot be limited too; fill another")
        if limit.channel not in channels:
            say = "--cost SCORER" if limit.channel == "cost" else f"--scorer {limit.channel}=SCORER"
            raise ConfigError(f"limit {limit.text!r}: nothing fills the channel {limit.channel!r}; give {say}")
    for name in channels:
        if name != "reward" and name not in limited:
            raise ConfigError(
                f"{name} is scored and nothing limits it: say how much there may be, as --limit '{name} <= 0', or "
                f"leave it out; for a price, put it into the reward: --reward 'SCORER + -0.5*{channels[name][0]}'"
            )


def _comes_to(limit: LimitText, answers: SuiteResult) -> Estimate | None:
    """What a limit measures of these answers; None where none of its prompts has an answer with a score."""
    wanted = limit.limit()
    among = wanted.measure.among
    rows = [(r, v) for r, v in channel(answers.rollouts, limit.channel) if among is None or among.contains(r.prompt)]
    if not rows:
        return None
    scores = torch.tensor([value for _, value in rows], dtype=torch.float64)
    unit = "share" if limit.unit == "share" else ""
    costs = wanted.measure.costs(scores, scores).tolist()
    return replace(mean(costs, [r.prompt.id for r, _ in rows]), unit=unit)
