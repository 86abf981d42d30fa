"""The best of n answers of another engine, by a scorer: what reinforcement has to beat without any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from poise.errors import ConfigError
from poise.types import Completion, Engine, Prompt, Sampling, Scorer

Preference = Callable[[Mapping[str, float]], Any]  # of an answer's scores: what is largest is taken


def safe_then_helpful(values: Mapping[str, float]) -> tuple[bool, float]:
    """Of answers that cost at most 0 the one with the highest reward; of others the least costly.

    >>> safe_then_helpful({"reward": -1.0, "cost": -0.1}) > safe_then_helpful({"reward": 3.0, "cost": 0.2})
    True
    """
    is_safe = values["cost"] <= 0
    return is_safe, values["reward"] if is_safe else -values["cost"]


class BestOfEngine:
    """Asks `engine` for n times as many answers and gives the best of each n; those without scores come last."""

    def __init__(self, engine: Engine, scorer: Scorer, n: int, prefer: Preference = safe_then_helpful):
        if n < 1:
            raise ConfigError(f"best of {n} answers: give at least 1")
        self.engine, self.scorer, self.n, self.prefer = engine, scorer, n, prefer

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Completions, `sampling.samples` adjacent ones per prompt, each the best of n."""
        drawn = self.engine.generate(prompts, replace(sampling, samples=sampling.samples * self.n))
        asked = [prompt for prompt in prompts for _ in range(sampling.samples * self.n)]
        scores = self.scorer.score(asked, drawn)
        found = []
        for begin in range(0, len(drawn), self.n):
            scored = [i for i in range(begin, begin + self.n) if scores[i].values and not drawn[i].unfit]
            best = max(scored, key=lambda i: self.prefer(scores[i].values), default=begin)
            found.append(replace(drawn[best], sample=(begin // self.n) % sampling.samples))
        return found
