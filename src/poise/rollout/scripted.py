"""Canned answers behind the engine protocol: for tests, documentation and dry runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from poise.errors import EngineError
from poise.rollout.engine import check_completions, check_sampling, sample_numbers
from poise.rollout.sampling import stop_position
from poise.types import Completion, Prompt, Sampling


class ScriptedEngine:
    """Answers from a mapping of prompt text to responses, or from a function.

    >>> engine = ScriptedEngine({"Hello": ["Hi!", "Good day."]})
    >>> [c.text for c in engine.generate([Prompt.of("Hello")], Sampling(samples=2))]
    ['Hi!', 'Good day.']
    """

    def __init__(
        self, script: Mapping[str, str | Sequence[str]] | Callable[[Prompt, int], str], *, default: str | None = None
    ):
        self.script, self.default = script, default
        self.requests: list[tuple[Sequence[Prompt], Sampling]] = []  # what was asked, for tests

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """The scripted answers; several samples cycle through a prompt's list, and go on if it is listed again."""
        check_sampling(sampling)
        self.requests.append((tuple(prompts), sampling))
        completions = [
            replace(self._completion(prompt, draw, sampling), sample=sample)
            for prompt, sample, draw in sample_numbers(prompts, sampling.samples)
        ]
        return check_completions(prompts, completions, sampling)

    def _completion(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
        text = self._answer(prompt, sample)
        position = stop_position(text, sampling.stop)
        if sampling.choices and text not in sampling.choices:
            raise EngineError(f"the script answers {text[:80]!r}, which is none of the choices {sampling.choices!r}")
        return Completion(
            prompt_id=prompt.id,
            sample=sample,
            text=text if position < 0 else text[:position],
            choice_logprobs={choice: 0.0 if choice == text else -math.inf for choice in sampling.choices},
        )

    def _answer(self, prompt: Prompt, sample: int) -> str:
        if callable(self.script):
            return self.script(prompt, sample)
        answers = self.script.get(prompt.text, self.default)
        if not answers and answers != "":
            raise EngineError(f"the script has no answer for {prompt.text[:80]!r}; add one or give a default")
        return answers if isinstance(answers, str) else answers[sample % len(answers)]
