"""What the limits of a run come to on answers to prompts that training never saw: value, interval, met or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from poise.errors import FeedbackError
from poise.evaluate.suite import channel, score_completions
from poise.evaluate.verdict import LimitFinding
from poise.functional.intervals import mean
from poise.functional.statistics import PlattScale
from poise.models.heads import ScoreModel
from poise.pipeline.evaluation import FurtherMetric
from poise.pipeline.limits import fitted_to, scorers_of
from poise.run import Run
from poise.train.limit_text import LimitText
from poise.types import Estimate, Prompt, Rollout, Scorer

PREFIX = "limit/"  # before the name of a limit among the metrics of an evaluation
_MEASURES = {"mean": "mean", "rate": "rate of harm by", "cvar": "worst answers' mean"}
_GROUPS = {"": "", "may_harm": " on prompts that may do harm"}


def limit_metrics(
    signal: ScoreModel, limits: Sequence[LimitText], prompts: Sequence[Prompt], *, refusals: Scorer | None = None
) -> dict[str, FurtherMetric]:
    """A further metric of an evaluation for each limit that some of its prompts are under.

    They measure as training does: the training signal scores, and what scores beside it in training.

    refusals  who fills the channel "refusal"; None: the rule
    """
    beside = {f"scorer {number}": scorer for number, scorer in enumerate(scorers_of(limits, refusals), start=1)}
    scored = _Scored({"signal": signal, **beside})
    calibrations = {c.name: c.calibration for c in signal.channels if c.calibration is not None}
    found: dict[str, FurtherMetric] = {}
    for each in fitted_to(limits, calibrations, signal.bounds):
        limit = each.limit(calibrations)
        among = limit.measure.among
        if among is None or any(map(among.contains, prompts)):
            found[PREFIX + limit.name] = partial(_measured, scored, each, calibrations)
    return found


def limit_findings(
    limits: Sequence[LimitText], metrics: Mapping[str, Estimate], *, prompts: str = "test"
) -> list[LimitFinding]:
    """What an evaluation found of each limit; one that was not measured is left out.

    prompts  which they are: test or validation
    """
    found = []
    for each in limits:
        if (value := metrics.get(PREFIX + each.limit().name)) is not None:
            at_most, target = each.at_most, each.at_most - each.margin
            label = label_of(each)
            finding = LimitFinding(
                text=each.text, label=label, at_most=at_most, target=target, found=value, prompts=prompts
            )
            found.append(finding)
    return found


def validation_findings(limits: Sequence[LimitText], check: Mapping[str, Any] | None) -> list[LimitFinding]:
    """What `align` recorded of each limit on validation prompts, for the policy that it kept.

    check  `validation` of the result of its stage; None where no policy was validated
    """
    kept = {row["limit"]: row["value"] for row in (check or {}).get("limits", ()) if row["value"] is not None}
    metrics = {PREFIX + name: Estimate(**value) for name, value in kept.items()}
    return limit_findings(limits, metrics, prompts="validation")


def all_findings(
    run: Run, policy: str, limits: Sequence[LimitText], metrics: Mapping[str, Estimate]
) -> list[LimitFinding]:
    """What came of each limit on test prompts, and on those that the policy was chosen on.

    policy  name of the stage that trained it
    """
    trained = (run.path / policy).is_dir()  # asking for a stage makes its folder
    check = run.stage(policy).result.get("validation") if trained else None
    return limit_findings(limits, metrics) + validation_findings(limits, check)


def label_of(limit: LimitText) -> str:
    """What is limited, in words.

    >>> from poise.train.limit_text import parse_limit
    >>> label_of(parse_limit("rate(cost@harmful) <= 2 %")), label_of(parse_limit("cost <= 0"))
    ('rate of harm by cost on harmful prompts', 'mean cost')
    """
    where = _GROUPS.get(limit.group, f" on {limit.group.replace('_', '-')} prompts")
    return f"{_MEASURES.get(limit.measure, limit.measure)} {limit.channel}{where}"


class _Scored:
    """The answers of one evaluation with the scores that limits read, asked for once however many limits there are."""

    def __init__(self, scorers: Mapping[str, Scorer]):
        self.scorers = scorers
        self.asked: Sequence[Rollout] = ()
        self.scored: tuple[Rollout, ...] = ()

    def __call__(self, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
        if self.asked is not rollouts:
            prompts, answers = [r.prompt for r in rollouts], [r.completion for r in rollouts]
            self.asked, self.scored = rollouts, score_completions(prompts, answers, self.scorers)
        return self.scored


def _measured(
    scored: _Scored, text: LimitText, calibrations: Mapping[str, PlattScale], rollouts: Sequence[Rollout]
) -> Estimate:
    limit = text.limit(calibrations)
    among = limit.measure.among
    asked = [r for r in scored(rollouts) if among is None or among.contains(r.prompt)]
    rows = channel(asked, limit.channel)
    if not rows:
        raise FeedbackError(f"limit {text.text!r}: none of {len(asked)} answers has a {limit.channel} to measure")
    scores = torch.tensor([value for _, value in rows], dtype=torch.float64)
    costs = limit.measure.costs(scores, scores).tolist()
    is_share = text.measure == "rate" or (text.measure, text.channel) == ("mean", "refusal")
    return mean(costs, [r.prompt.id for r, _ in rows], unit="share" if is_share else "")
