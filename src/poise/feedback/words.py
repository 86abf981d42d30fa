"""A linear classifier on words and word pairs: a reward that costs nothing to ask, or a second opinion on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from poise.errors import DataError
from poise.types import Completion, Prompt, Scores

_WORD = r"[^\W_]+(?:'[^\W_]+)?|[!?*]"


@dataclass(frozen=True, slots=True, kw_only=True)
class WordClassifier:
    """Logistic regression on TF-IDF vectors of unit length, by scikit-learn.

        logit = w . x / |x| + b,   x_g = (1 + log count_g) * log((1 + N) / (1 + N_g))

    for words and word pairs g that stand in at least two of the N texts it was fitted to, N_g of which hold g.
    """

    vectors: Any  # the fitted TfidfVectorizer
    regression: Any  # the fitted LogisticRegression

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[bool], *, ridge: float = 0.5) -> WordClassifier:
        """Fit to texts with labels, with a penalty of ridge / 2 |w|^2 on the sum of the losses.

        Raises DataError unless both labels are there and some word stands in two texts.

        >>> words = WordClassifier.fit(["so good", "very good", "so bad", "very bad"], [True, True, False, False])
        >>> words.logits(["good", "bad", "so"]).round(1) > 0
        array([ True, False, False])
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        if len(texts) != len(labels) or set(map(bool, labels)) != {False, True}:
            raise DataError(
                f"a classifier needs texts with both labels, got {len(texts)} texts, {len(labels)} labels with the "
                f"values {sorted(set(map(bool, labels)))}"
            )
        vectors = TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        try:
            vectors.fit(texts)
        except ValueError as error:
            raise DataError(
                f"no word occurs in two of the {len(texts)} texts, so a classifier on words cannot learn from "
                "them: give more texts"
            ) from error
        vectors.idf_ = vectors.idf_ - 1  # scikit-learn adds 1: here a word that stands in every text says nothing
        regression = LogisticRegression(C=1 / ridge, tol=1e-6, max_iter=200)
        return cls(vectors=vectors, regression=regression.fit(vectors.transform(texts), np.asarray(labels, dtype=bool)))

    def logits(self, texts: Sequence[str]) -> Any:
        """Logits [N] of the label True; a text without known words has the offset alone."""
        return self.regression.decision_function(self.vectors.transform(texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScorer:
    """Scores a continuation together with the text that it continues: the Scorer protocol for a function of texts.

    Without `reads_prompt` the function sees the continuation alone, as for an answer to a question. An empty or failed
    continuation is unscorable.
    """

    value: Callable[[Sequence[str]], Sequence[float]]  # texts [N] to values [N]
    channel: str = "reward"
    name: str = "text"
    reads_prompt: bool = True

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """One value per completion, of the whole text."""
        heads = [prompt.text if self.reads_prompt else "" for prompt in prompts]
        values = self.value([head + c.text for head, c in zip(heads, completions, strict=True)])
        return [
            Scores(
                values={self.channel: float(value)},
                source=self.name,
                unscorable="" if completion.text.strip() and completion.finish != "error" else "empty continuation",
            )
            for value, completion in zip(values, completions, strict=True)
        ]


def log_probability(scorer: TextScorer) -> TextScorer:
    """A scorer of logits as one of log-probabilities of the good label, which have nothing left to gain at 0.

        log sigmoid(z)

    The logit of a linear classifier pays as much for a word in a text that is good already as in one that is not;
    fine-tuned classifiers have a ceiling, and a log-probability gives a linear one the same.

    >>> log_probability(TextScorer(value=lambda texts: [float(text) for text in texts])).value(["-800", "800"])
    [-800.0, -0.0]
    """

    def log_probabilities(texts: Sequence[str]) -> list[float]:
        return [-float(np.logaddexp(0.0, -float(z))) for z in scorer.value(texts)]

    return replace(scorer, value=log_probabilities)
