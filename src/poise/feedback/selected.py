"""Some of the channels of a scorer, so that another may fill the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from poise.types import Completion, Prompt, Scorer, Scores

Value = TypeVar("Value")


class SelectedChannels:
    """A scorer of which some channels are heard, such as the reward of a judge whose cost another judge gives.

    channels  those that are heard; of a mapping, each under the name that it maps to

    >>> from poise.feedback.rules import RefusalScorer
    >>> deaf, prompt = SelectedChannels(RefusalScorer(), ()), Prompt.of("Hello")
    >>> deaf.score([prompt], [Completion(prompt_id=prompt.id, text="No.")])[0].values
    {}
    """

    def __init__(self, scorer: Scorer, channels: Collection[str] | Mapping[str, str]):
        self.scorer = scorer  # where its window is looked for
        self.channels = dict(channels) if isinstance(channels, Mapping) else {name: name for name in channels}

    @property
    def name(self) -> str:
        """The scorer with the channels that are heard."""
        return (
            f"{getattr(self.scorer, 'name', type(self.scorer).__name__)} ({', '.join(sorted(self.channels.values()))})"
        )

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """What the scorer says on the chosen channels."""
        return [
            replace(
                scores,
                values=self._heard(scores.values),
                spans=self._heard(scores.spans),
                token_values=self._heard(scores.token_values),
            )
            for scores in self.scorer.score(prompts, completions)
        ]

    def _heard(self, given: Mapping[str, Value]) -> dict[str, Value]:
        return {self.channels[name]: value for name, value in given.items() if name in self.channels}
