"""Some of the channels of a scorer, so that another may fill the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from poise.types import Completion, Prompt, Scorer, Scores


class SelectedChannels:
    """A scorer of which some channels are heard, such as the reward of a judge whose cost another judge gives.

    >>> from poise.feedback.rules import RefusalScorer
    >>> deaf, prompt = SelectedChannels(RefusalScorer(), ()), Prompt.of("Hello")
    >>> deaf.score([prompt], [Completion(prompt_id=prompt.id, text="No.")])[0].values
    {}
    """

    def __init__(self, scorer: Scorer, channels: Collection[str]):
        self.scorer, self.channels = scorer, frozenset(channels)  # `scorer` is where its window is looked for

    @property
    def name(self) -> str:
        """The scorer with the channels that are heard."""
        return f"{getattr(self.scorer, 'name', type(self.scorer).__name__)} ({', '.join(sorted(self.channels))})"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """What the scorer says on the chosen channels."""
        return [
            replace(
                scores,
                values={name: value for name, value in scores.values.items() if name in self.channels},
                spans={name: spans for name, spans in scores.spans.items() if name in self.channels},
                token_values={name: each for name, each in scores.token_values.items() if name in self.channels},
            )
            for scores in self.scorer.score(prompts, completions)
        ]
