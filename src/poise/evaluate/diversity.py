"""How varied a set of responses is: distinct n-grams, repetition within a response, duplicates between them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from poise.functional.intervals import pulled_estimate
from poise.functional.statistics import ngrams
from poise.types import Estimate

REPETITIVE = 0.5  # a response is repetitive when at least this share of its 4-grams has been said before


def repeated_share(text: str, n: int = 4) -> float:
    """Give the share of word n-grams that repeat an earlier one in the same text: 0 for short or varied text.

    >>> repeated_share("no no no no no no no no")
    0.8
    """
    grams = ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_repetitive(text: str) -> bool:
    """Tell whether a response runs in circles: half of its 4-grams or more repeat.

    >>> is_repetitive("and so on " * 20), is_repetitive("Boil the eggs for eight minutes.")
    (True, False)
    """
    return repeated_share(text) >= REPETITIVE


def duplicates(texts: Sequence[str], prompts: Sequence[Hashable]) -> list[bool]:
    """Flag texts that also answer another prompt, the mark of a policy that collapsed to one constant reply.

    texts    [N]
    prompts  [N] the prompt of each text; equal answers to one prompt are not duplicates

    >>> duplicates(["Sorry.", "Sorry.", "Paris."], ["a", "b", "c"])
    [True, True, False]
    """
    asked = defaultdict(set)
    for text, prompt in zip(texts, prompts, strict=True):
        asked[_folded(text)].add(prompt)
    return [len(asked[_folded(text)]) > 1 for text in texts]


def equal_commonest(texts: Sequence[str]) -> list[bool]:
    """Flag texts that equal the most frequent one but for case and spacing; of several as frequent, the first.

    The share of these is that of the answer which a collapsed policy gives to everything. It is 1/N where no text is
    said twice: the most frequent one is chosen from the same texts, so in few of them a small share means nothing.

    texts  [N]

    >>> equal_commonest(["No.", "Boil it.", "no. ", "No."])
    [True, False, True, True]
    """
    counts = Counter(map(_folded, texts))
    most = max(counts, key=counts.__getitem__, default="")
    return [_folded(text) == most for text in texts]


def commonest_answer(texts: Sequence[str]) -> str:
    """The text that is said most often but for case and spacing, as it first stands; of several, the first.

    texts  [N], at least one

    >>> commonest_answer(["Boil it.", "No. ", "no."])
    'No.'
    """
    return texts[equal_commonest(texts).index(True)].strip()


def distinct_estimate(
    texts: Sequence[str], n: int, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Estimate:
    """Estimate distinct-n with an interval by the jackknife over prompts (a bootstrap would repeat texts and bias it).

        u_g = mean d - d_g,   d_g = distinct-n without the texts of prompt g

    The interval is Student's over these, as for a mean: it is about what as many texts hold on average. `n` of the
    estimate counts texts. Texts without a single n-gram give 0 and no interval.
    Source: Li et al. (arXiv:1510.03055) for distinct-n; Efron and Stein (1981) for the jackknife.

    texts     [N]
    clusters  [N] prompts; by default every text is its own
    """
    groups: dict[Hashable, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for label, text in zip(clusters or range(len(texts)), texts, strict=True):
        groups[label].update(ngrams(text, n))
    owners = Counter(gram for grams in groups.values() for gram in grams)
    total, kinds = sum(grams.total() for grams in groups.values()), len(owners)
    value = kinds / total if total else 0.0
    left_out = np.array(
        [
            (kinds - sum(owners[gram] == 1 for gram in grams)) / (total - grams.total())
            for grams in groups.values()
            if total > grams.total()
        ]
    )
    found = pulled_estimate(
        value, left_out.mean() - left_out if len(left_out) else left_out, len(left_out) - 1.0, n=len(texts),
        level=level, unit="share", method=f"distinct-{n}, jackknife over {len(groups)} prompts",
    )  # fmt: skip
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
