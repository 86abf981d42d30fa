"""What the length of a response costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poise.errors import ConfigError
from poise.types import Completion, Prompt, Scorer, Scores


class OverlongPenalty:
    """Another scorer, whose reward is lowered for responses that come close to the length limit.

    See `functional.rewards.overlong_penalty`. Lengths are counted in the engine's tokens: a completion without token
    ids is not punished. A completion that the scorer could not score stays so.

    >>> from poise.feedback.rules import RefusalScorer
    >>> prompt = Prompt.of("Hello")
    >>> answers = [Completion(prompt_id=prompt.id, text="Hi", token_ids=(1,) * tokens) for tokens in (4, 9)]
    >>> scorer = OverlongPenalty(RefusalScorer(), channel="refusal", max_tokens=10, buffer=4)
    >>> [scores.values for scores in scorer.score([prompt, prompt], answers)]
    [{'refusal': 0.0}, {'refusal': -0.75}]
    """

    def __init__(self, scorer: Scorer, *, max_tokens: int, buffer: int, factor: float = 1.0, channel: str = "reward"):
        if not 0 < buffer <= max_tokens:
            raise ConfigError(f"buffer is {buffer} tokens: it must be at least 1 and at most max_tokens ({max_tokens})")
        self.scorer, self.channel, self.factor = scorer, channel, factor
        self.max_tokens, self.buffer = max_tokens, buffer

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """The other scorer's scores, with the penalty added to the channel where there is a value."""
        import torch

        from poise.functional.rewards import overlong_penalty

        lengths = torch.tensor([len(completion.token_ids) for completion in completions])
        penalties = overlong_penalty(lengths, max_tokens=self.max_tokens, buffer=self.buffer, factor=self.factor)
        found = self.scorer.score(prompts, completions)
        return [self._lowered(scores, penalty) for scores, penalty in zip(found, penalties.tolist(), strict=True)]

    def _lowered(self, scores: Scores, penalty: float) -> Scores:
        if self.channel not in scores.values:
            return scores
        return replace(scores, values={**scores.values, self.channel: scores.values[self.channel] + penalty})
