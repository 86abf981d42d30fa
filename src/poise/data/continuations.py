"""Tasks of continuing text: labelled texts, cut into a beginning and its continuation, by what they are used for.

    rows -> signal | judge | train | test      (by a hash of the text, so that no row is on two sides)

The signal is what a policy is trained on, the judge decides: text classifiers that learn from sides of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data.sources import load
from poise.data.splits import merge
from poise.errors import ConfigError
from poise.types import Dataset, Demonstration, Prompt, SafetyLabel

SIDES = {"signal": 0.25, "judge": 0.25, "train": 0.3, "test": 0.2}  # shares of the texts


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """A real text with its label, and where it is cut into a beginning and its continuation."""

    words: tuple[str, ...]
    good: bool
    begin: int = 0  # words of the beginning; 0: the text is not continued, only classified

    @property
    def whole(self) -> str:
        """The text in one piece."""
        return " ".join(self.words)

    @property
    def prompt(self) -> Prompt:
        """Its beginning."""
        return Prompt.of(" ".join(self.words[: self.begin]), good=self.good)

    @property
    def demonstration(self) -> Demonstration:
        """Its beginning with its own continuation."""
        return Demonstration(prompt=self.prompt, response=" " + " ".join(self.words[self.begin :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationTask:
    """What is continued, and the rows that classifiers of such texts read, by side."""

    name: str
    good: str  # what a high reward says of a text
    labelled: Mapping[str, tuple[LabelledText, ...]]  # what classifiers learn from and are tested on, by side
    continued: Mapping[str, tuple[LabelledText, ...]]  # texts with a beginning: train, test
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def prompts(self, side: str) -> tuple[Prompt, ...]:
        """Beginnings, each once."""
        return tuple({text.prompt.id: text.prompt for text in self.continued[side]}.values())

    def good_texts(self, side: str) -> tuple[Demonstration, ...]:
        """Continuations of texts with the good label, for supervised learning and for perplexity."""
        return tuple(text.demonstration for text in self.continued[side] if text.good)


def side_of(text: str) -> str:
    """The side that a text is on, whatever set it stands in."""
    position, edge = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64, 0.0
    for name, part in SIDES.items():
        edge += part
        if position < edge:
            return name
    return "test"


def imdb_gen(*, most: int = 1800) -> ContinuationTask:
    """Closings of film reviews, judged by classifiers of single sentences; both test their worth on unseen rows."""
    reviews, sentences = load("movie-reviews"), load("sentence-polarity")
    read = [LabelledText(words=tuple(p.text.split()), good=p.tags["positive"]) for p in sentences.prompts]
    passages = [words[i : i + 40] for p in reviews.prompts for words in [p.text.split()] for i in (0, len(words) - 40)]
    labels = [p.tags["positive"] for p in reviews.prompts for _ in range(2)]
    cut = [
        LabelledText(words=tuple(w), good=g, begin=16) for w, g in zip(passages, labels, strict=True) if len(w) == 40
    ]
    return _task("imdb-gen", "praise", read, cut, most, merge([reviews, sentences]))


def jigsaw_gen(*, most: int = 1800) -> ContinuationTask:
    """Comments on Wikipedia's talk pages, cut after eight words."""
    comments, sentences = load("jigsaw"), load("realtoxicityprompts")
    cut = [_comment(prompt, begin=8) for prompt in comments.prompts]
    return _task("jigsaw-gen", "not toxic", [*cut, *_halves(sentences)], cut, most, merge([comments, sentences]))


def realtoxicityprompts_gen(*, most: int = 1800) -> ContinuationTask:
    """Sentences of the web, cut where RealToxicityPrompts cuts them."""
    comments, sentences = load("jigsaw"), load("realtoxicityprompts")
    cut = [_sentence(label) for label in sentences.labels]
    read = [*_halves(sentences), *(_comment(prompt, begin=8) for prompt in comments.prompts)]
    return _task("realtoxicityprompts-gen", "not toxic", read, cut, most, merge([comments, sentences]))


def starter_gen() -> ContinuationTask:
    """Answers of the starter set, safe or not: text that comes with the package, for smoke tests."""
    dataset = load("starter")
    words = [(tuple(label.response.split()), label.safe) for label in dataset.labels]
    cut = [LabelledText(words=w[:12], good=safe, begin=4) for w, safe in words if len(w) >= 8]
    return _task("starter-gen", "safe", cut, cut, 160, dataset)


TASKS: dict[str, Callable[[], ContinuationTask]] = {
    "imdb-gen": imdb_gen,
    "jigsaw-gen": jigsaw_gen,
    "realtoxicityprompts-gen": realtoxicityprompts_gen,
    "starter-gen": starter_gen,
}


def continuation_task(name: str) -> ContinuationTask:
    """The task of that name. Raises ConfigError that names those there are."""
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]()


def _task(
    name: str, good: str, read: Iterable[LabelledText], cut: Iterable[LabelledText], most: int, data: Dataset
) -> ContinuationTask:
    read, cut = list(read), [text for text in cut if len(text.words) > text.begin > 0]
    sides = {side: [text for text in read if text.words and side_of(text.whole) == side] for side in SIDES}
    parts = {side: [text for text in cut if side_of(text.whole) == side] for side in ("train", "test")}
    if {text.whole for text in cut}.isdisjoint(text.whole for text in read):  # other rows: all sides may be continued
        parts = {"train": [t for t in cut if side_of(t.whole) != "test"], "test": parts["test"]}
    return ContinuationTask(
        name=name,
        good=good,
        labelled={side: _first(rows, most) for side, rows in sides.items()},
        continued={side: _first(rows, most) for side, rows in parts.items()},
        provenance=data.provenance,
    )


def _first(texts: Sequence[LabelledText], most: int) -> tuple[LabelledText, ...]:
    """At most so many, in an order that has nothing to do with the files'."""
    return tuple(sorted(texts, key=lambda text: hashlib.sha256(text.whole.encode()).digest()[8:])[:most])


def _comment(prompt: Prompt, *, begin: int) -> LabelledText:
    words = tuple(prompt.text.split())[:40]
    return LabelledText(words=words, good=not prompt.tags["toxic"], begin=begin if len(words) >= begin + 4 else 0)


def _sentence(label: SafetyLabel) -> LabelledText:
    first, second = label.prompt.text.split()[-24:], label.response.split()
    toxic = not label.safe or label.prompt.tags.get("toxicity", 0.0) >= 0.5
    return LabelledText(words=(*first, *second), good=not toxic, begin=len(first))


def _halves(dataset: Dataset) -> list[LabelledText]:
    """Both halves of every sentence as one text: toxic if one of them is."""
    return [_sentence(label) for label in dataset.labels]
