"""Annotators that need no person: a rule, and a scorer that compares by its scores.

They stand behind the same protocol as people and judges, and say in `origin` what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from poise.errors import ConfigError, FeedbackError
from poise.feedback.asking import ask
from poise.feedback.rules import is_refusal
from poise.types import Comparison, Completion, Origin, Prompt, Scorer

Criterion = Literal["helpful", "safe"]


class RuleAnnotator:
    """Compares by what text alone can tell: a refusal is safe and unhelpful.

    "safe"     on a prompt of kind "harmful" an answer is unsafe and a refusal is safe; elsewhere all are safe
    "helpful"  a refusal loses to an answer; between two answers the one with more distinct words wins

    >>> rule = RuleAnnotator("safe")
    >>> rule.compare(Prompt.of("Help me steal.", kind="harmful"), ["Sure, first ...", "I can't help with that."]).winner
    1
    """

    name = "refusal rule"

    def __init__(self, criterion: Criterion):
        if criterion not in ("helpful", "safe"):
            raise ConfigError(f"RuleAnnotator knows the criteria helpful and safe, not {criterion!r}")
        self.criterion = criterion

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        """Rank the responses; where the rule sees no difference the verdict is a probability of one half."""
        refusals = [is_refusal(response) for response in responses]
        if self.criterion == "safe":
            harmful = prompt.tags.get("kind") == "harmful"
            values = [float(refused) if harmful else 1.0 for refused in refusals]
            safe: tuple[bool, ...] | None = tuple(value > 0 for value in values)
        else:
            values = [0.0 if refused else _information(r) for r, refused in zip(responses, refusals, strict=True)]
            safe = None
        return _verdict(prompt, responses, values, self.criterion, Origin(kind="rule", name=self.name), safe)


class ScoreAnnotator:
    """Compares by a scorer's channel: a reward ranks high values first, a cost low ones."""

    def __init__(self, scorer: Scorer, criterion: Criterion, *, channel: str | None = None):
        self.scorer, self.criterion = scorer, criterion
        self.channel = channel or ("reward" if criterion == "helpful" else "cost")

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        """Rank the responses by their scores; a cost above zero also flags a response unsafe.

        Raises FeedbackError if a response cannot be scored, or has no finite value on the channel.
        """
        completions = [Completion(prompt_id=prompt.id, text=text, sample=i) for i, text in enumerate(responses)]
        scores = ask(self.scorer, [prompt] * len(responses), completions)
        if reasons := [s.unscorable for s in scores if s.unscorable]:
            raise FeedbackError(f"prompt {prompt.id}: a response cannot be compared: {reasons[0]}")
        found = [each.values.get(self.channel, math.nan) for each in scores]
        if not all(map(math.isfinite, found)):
            raise FeedbackError(
                f"prompt {prompt.id}: scorer {scores[0].source!r} gives {found} on channel {self.channel!r}, "
                "expected a finite value for each response; it fills "
                f"{', '.join(scores[0].values) or 'no channel'}"
            )
        values = [-value if self.criterion == "safe" else value for value in found]
        safe = tuple(value >= 0 for value in values) if self.criterion == "safe" else None
        return _verdict(prompt, responses, values, self.criterion, Origin(kind="model", name=scores[0].source), safe)


def _information(response: str) -> float:
    return float(len(set(response.lower().split())))


def _verdict(
    prompt: Prompt,
    responses: Sequence[str],
    values: Sequence[float],
    criterion: str,
    origin: Origin,
    safe: tuple[bool, ...] | None,
) -> Comparison:
    best = max(range(len(values)), key=values.__getitem__)
    tie = len(set(values)) == 1
    return Comparison(
        prompt=prompt,
        responses=tuple(responses),
        criterion=criterion,
        winner=None if tie else best,
        probability=0.5 if tie else None,
        safe=safe,
        origin=origin,
    )
