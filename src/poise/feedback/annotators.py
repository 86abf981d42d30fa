"""Annotators that wait for no person: a rule, a scorer, someone who errs, and what people have written down.

They stand behind the same protocol as people and judges, and say in `origin` what they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from poise.errors import ConfigError, FeedbackError
from poise.feedback.asking import ask
from poise.feedback.rules import is_refusal
from poise.types import Annotator, Comparison, Completion, Dataset, Origin, Prompt, SafetyLabel, Scorer

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


class ErringAnnotator:
    """A simulated person: says what another annotator says, and errs at a known rate.

    flip_rate  chance that a verdict is turned around, and for each flag on its own that it is; drawn from the seed, the
               criterion, the prompt and the responses, so that the same question always gets the same answer

    A model that learned the underlying annotator by heart therefore agrees with this one at 1 - flip_rate at most.
    """

    def __init__(self, annotator: Annotator, *, flip_rate: float = 0.1, seed: int = 0):
        if not 0 <= flip_rate < 0.5:
            raise ConfigError(f"flip_rate is {flip_rate}: give a share from 0 to below 0.5, where labels say nothing")
        self.annotator, self.flip_rate, self.seed = annotator, flip_rate, seed

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        """The verdict, turned around now and then: the runner-up wins, and a soft verdict speaks for the other side."""
        found = self.annotator.compare(prompt, responses)
        draw = random.Random(repr((self.seed, found.criterion, prompt.id, tuple(responses))))
        if draw.random() < self.flip_rate:
            found = _turned_around(found)
        if found.safe is not None:
            found = replace(found, safe=tuple(flag != (draw.random() < self.flip_rate) for flag in found.safe))
        name = f"{found.origin.name or found.origin.kind}, {self.flip_rate:.0%} flipped"
        return replace(found, origin=replace(found.origin, name=name))


class RecordedAnnotator:
    """What people wrote down of these very responses, read from their file, in whichever order they stand there.

    judged  the data set that `poise.load` made of the file

    A pair that several people judged has the share of those who prefer a response as its probability, and a response
    is safe where more than half of them say so. A pair whose responses both have labels, but which nobody preferred
    one of, is undecided: a null id in the columns of PKU-SafeRLHF says so.
    """

    def __init__(self, judged: Dataset, criterion: Criterion):
        self.name, self.criterion = judged.name, criterion
        self._said: dict[tuple[str, frozenset[str]], list[Comparison]] = {}
        self._flags: dict[tuple[str, str], list[SafetyLabel]] = {}
        for row in judged.comparisons:
            if row.criterion == criterion:
                self._said.setdefault((row.prompt.id, frozenset(row.responses)), []).append(row)
        for label in judged.labels:
            self._flags.setdefault((label.prompt.id, label.response), []).append(label)

    def knows(self, prompt: Prompt, responses: Sequence[str]) -> bool:
        """Whether somebody judged these responses."""
        return (prompt.id, frozenset(responses)) in self._said or self._are_labelled(prompt, responses)

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        """The recorded verdict. Raises FeedbackError if there is none on these responses."""
        if not self.knows(prompt, responses):
            raise FeedbackError(
                f"{self.name} has no comparison by the criterion {self.criterion!r} of {len(responses)} responses to "
                f"prompt {prompt.id} ({prompt.text[:60]!r}): have people compare them, put what they said into that "
                "file, and repeat the command"
            )
        found = [_in_order(row, responses) for row in self._said.get((prompt.id, frozenset(responses)), ())]
        verdict = _agreed(found) if found else self._undecided(prompt, responses)
        labelled = self.criterion == "safe" and self._are_labelled(prompt, responses)
        flags = tuple(self._is_safe(prompt, text) for text in responses) if labelled else verdict.safe
        return replace(verdict, prompt=prompt, responses=tuple(responses), safe=flags)

    def _are_labelled(self, prompt: Prompt, responses: Sequence[str]) -> bool:
        return all((prompt.id, text) in self._flags for text in responses)

    def _is_safe(self, prompt: Prompt, text: str) -> bool:
        labels = self._flags[prompt.id, text]
        return 2 * sum(label.safe for label in labels) > len(labels)

    def _undecided(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        origin = self._flags[prompt.id, responses[0]][0].origin
        level = [0.0] * len(responses)
        return _verdict(prompt, responses, level, self.criterion, origin, None)


def _in_order(found: Comparison, responses: Sequence[str]) -> Comparison:
    """The same verdict for responses in another order."""
    order = [found.responses.index(response) for response in responses]
    probability = found.probability
    if probability is not None and order[0] == 1:
        probability = 1 - probability
    return replace(
        found,
        responses=tuple(responses),
        winner=None if found.winner is None else order.index(found.winner),
        probability=probability,
        safe=None if found.safe is None else tuple(found.safe[place] for place in order),
        categories=tuple(found.categories[place] for place in order) if found.categories else (),
        ranking=tuple(order.index(place) for place in found.ranking),
    )


def _agreed(found: Sequence[Comparison]) -> Comparison:
    """One verdict of several on the same two responses: the share of them that prefer the first."""
    first = found[0]
    if len(found) == 1 or len(first.responses) != 2 or len({(row.winner, row.probability) for row in found}) == 1:
        return first
    shares = [row.probability if row.probability is not None else float(row.winner == 0) for row in found]
    return replace(first, winner=None, probability=sum(shares) / len(shares), margin=0.0)


def _turned_around(found: Comparison) -> Comparison:
    """The same comparison of two responses for the other side; of more, the last of a ranking or another one wins."""
    probability = None if found.probability is None else 1 - found.probability
    if found.winner is None:
        return replace(found, probability=probability)
    other = (found.winner + 1) % len(found.responses)
    ranking = tuple(reversed(found.ranking))
    return replace(found, winner=ranking[0] if ranking else other, ranking=ranking, probability=probability)


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
