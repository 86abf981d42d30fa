"""A linear classifier on words and word pairs: a reward that costs nothing to ask, or a second opinion on another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from poise.errors import DataError
from poise.types import Completion, Prompt, Scores

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[!?*]")


@dataclass(frozen=True, slots=True, kw_only=True)
class WordClassifier:
    """Logistic regression on TF-IDF vectors of unit length.

        logit = w . x / |x| + b,   x_g = (1 + log count_g) * log((1 + N) / (1 + N_g))

    for words and word pairs g that stand in at least two of the N texts it was fitted to, N_g of which hold g.
    """

    places: dict[str, int]
    rarity: Any  # [V] log((1 + N) / (1 + N_g))
    weights: Any  # [V]
    offset: float

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[bool], *, ridge: float = 0.5) -> WordClassifier:
        """Fit to texts with labels; raises DataError unless both labels are there.

        >>> words = WordClassifier.fit(["so good", "very good", "so bad", "very bad"], [True, True, False, False])
        >>> words.logits(["good", "bad", "so"]).round(1) > 0
        array([ True, False, False])
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        truth = np.asarray(labels, dtype=float)
        if len(texts) != len(truth) or set(truth) != {0.0, 1.0}:
            raise DataError(
                f"a classifier needs texts with both labels, got {len(texts)} texts, {set(truth)} as labels"
            )
        holders = Counter(gram for text in texts for gram in set(_grams(text)))
        places = {gram: place for place, gram in enumerate(sorted(g for g, count in holders.items() if count > 1))}
        counts = np.array([holders[gram] for gram in places], dtype=float)
        rarity = np.log((1 + len(texts)) / (1 + counts))
        rows = _vectors(texts, places, rarity)

        def loss(parameters: Any) -> tuple[float, Any]:
            logits = rows @ parameters[:-1] + parameters[-1]
            residual = expit(logits) - truth
            slope = np.append(rows.T @ residual + ridge * parameters[:-1], residual.sum())
            value = np.logaddexp(0, logits).sum() - truth @ logits + ridge / 2 * parameters[:-1] @ parameters[:-1]
            return float(value), slope

        best = minimize(loss, np.zeros(len(places) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
        return cls(places=places, rarity=rarity, weights=best[:-1], offset=float(best[-1]))

    def logits(self, texts: Sequence[str]) -> Any:
        """Logits [N] of the label True."""
        return _vectors(texts, self.places, self.rarity) @ self.weights + self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScorer:
    """Scores a continuation together with the text that it continues: the Scorer protocol for a function of texts.

    An empty or failed continuation is unscorable.
    """

    value: Callable[[Sequence[str]], Sequence[float]]  # texts [N] to values [N]
    channel: str = "reward"
    name: str = "text"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """One value per completion, of the whole text."""
        values = self.value([p.text + c.text for p, c in zip(prompts, completions, strict=True)])
        return [
            Scores(
                values={self.channel: float(value)},
                source=self.name,
                unscorable="" if completion.text.strip() and completion.finish != "error" else "empty continuation",
            )
            for value, completion in zip(values, completions, strict=True)
        ]


def _grams(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def _vectors(texts: Sequence[str], places: dict[str, int], rarity: Any) -> Any:
    """A sparse matrix [N, V] of rows of unit length; a text without known words is a row of zeros."""
    from scipy.sparse import csr_array

    starts, columns, values = [0], list[int](), list[float]()
    for text in texts:
        counts = Counter(places[gram] for gram in _grams(text) if gram in places)
        row = np.array([1 + np.log(count) for count in counts.values()]) * rarity[list(counts)]
        columns += counts
        values += (row / max(float(np.linalg.norm(row)), 1e-12)).tolist()
        starts.append(len(columns))
    return csr_array((values, columns, starts), shape=(len(texts), len(places)))
