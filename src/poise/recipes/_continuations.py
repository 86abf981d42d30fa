"""Tasks of continuing text: real beginnings, and two scorers of a text that learned from other rows.

    rows -> signal | judge | train | test      (by a hash of the text, so that no row is on two sides)

The signal is what a policy is trained on: a linear classifier on words, or a linear head on features of the frozen
start model. The judge decides: a linear head on deeper features, fitted to other rows, and never trained against.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.data import load, merge
from poise.errors import ConfigError
from poise.feedback.words import TextScorer, WordClassifier
from poise.functional.statistics import area_under_curve, share
from poise.models.features import FeatureCache
from poise.models.heads import Channel, ScoreModel
from poise.models.load import Backbone
from poise.train.score_model import FeedbackTable, ScoreTrainer
from poise.types import Dataset, Demonstration, Estimate, Prompt, SafetyLabel

SIDES = {"signal": 0.25, "judge": 0.25, "train": 0.3, "test": 0.2}
BAD = Channel(name="cost", higher_is_worse=True)  # the judge's logit of the bad label; the reward is its negative
SIGNALS = ("words", "features")
SIGNAL_DEPTH, JUDGE_DEPTH = 0.4, 0.6  # shares of the layers below a head
_READ_TOKENS = 64
_BEFORE_TEXT = Prompt.of("\n")  # what a head reads a text after
Reader = Callable[[Sequence[str]], Sequence[float]]  # texts [N] to logits [N] of the good label


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A real text with its label, and where it is cut into a beginning and its continuation."""

    words: tuple[str, ...]
    good: bool
    begin: int = 0  # words of the beginning; 0: the text is only read by classifiers

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
class Task:
    """What is continued, and the rows that its classifiers read, by side."""

    name: str
    good: str  # what a high reward says of a text
    read: Mapping[str, tuple[Text, ...]]  # rows of classifiers: signal, judge, test
    cut: Mapping[str, tuple[Text, ...]]  # texts with a beginning: train, test
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def prompts(self, side: str) -> tuple[Prompt, ...]:
        """Beginnings, each once."""
        return tuple({text.prompt.id: text.prompt for text in self.cut[side]}.values())

    def good_texts(self, side: str) -> tuple[Demonstration, ...]:
        """Continuations of texts with the good label, for supervised learning and for perplexity."""
        return tuple(text.demonstration for text in self.cut[side] if text.good)


def side_of(text: str) -> str:
    """The side that a text is on, whatever set it stands in."""
    position, edge = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64, 0.0
    for name, part in SIDES.items():
        edge += part
        if position < edge:
            return name
    return "test"


def imdb_gen(*, most: int = 1800) -> Task:
    """Closings of film reviews, judged by classifiers of single sentences; both test their worth on unseen rows."""
    reviews, sentences = load("movie-reviews"), load("sentence-polarity")
    read = [Text(words=tuple(p.text.split()), good=p.tags["positive"]) for p in sentences.prompts]
    passages = [words[i : i + 40] for p in reviews.prompts for words in [p.text.split()] for i in (0, len(words) - 40)]
    labels = [p.tags["positive"] for p in reviews.prompts for _ in range(2)]
    cut = [Text(words=tuple(w), good=g, begin=16) for w, g in zip(passages, labels, strict=True) if len(w) == 40]
    return _task("imdb-gen", "praise", read, cut, most, merge([reviews, sentences]))


def jigsaw_gen(*, most: int = 1800) -> Task:
    """Comments on Wikipedia's talk pages, cut after eight words."""
    comments, sentences = load("jigsaw"), load("realtoxicityprompts")
    cut = [_comment(prompt, begin=8) for prompt in comments.prompts]
    return _task("jigsaw-gen", "not toxic", [*cut, *_halves(sentences)], cut, most, merge([comments, sentences]))


def realtoxicityprompts_gen(*, most: int = 1800) -> Task:
    """Sentences of the web, cut where RealToxicityPrompts cuts them."""
    comments, sentences = load("jigsaw"), load("realtoxicityprompts")
    cut = [_sentence(label) for label in sentences.labels]
    read = [*_halves(sentences), *(_comment(prompt, begin=8) for prompt in comments.prompts)]
    return _task("realtoxicityprompts-gen", "not toxic", read, cut, most, merge([comments, sentences]))


def starter_gen() -> Task:
    """Answers of the starter set, safe or not: text that comes with the package, for smoke tests."""
    dataset = load("starter")
    words = [(tuple(label.response.split()), label.safe) for label in dataset.labels]
    cut = [Text(words=w[:12], good=safe, begin=4) for w, safe in words if len(w) >= 8]
    return _task("starter-gen", "safe", cut, cut, 160, dataset)


TASKS: dict[str, Callable[[], Task]] = {
    "imdb-gen": imdb_gen,
    "jigsaw-gen": jigsaw_gen,
    "realtoxicityprompts-gen": realtoxicityprompts_gen,
    "starter-gen": starter_gen,
}


def task_named(name: str) -> Task:
    """The task of that name; ConfigError names those there are."""
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}: there are {', '.join(TASKS)}")
    return TASKS[name]()


def _task(name: str, good: str, read: Iterable[Text], cut: Iterable[Text], most: int, data: Dataset) -> Task:
    read, cut = list(read), [text for text in cut if len(text.words) > text.begin > 0]
    sides = {side: [text for text in read if text.words and side_of(text.whole) == side] for side in SIDES}
    parts = {side: [text for text in cut if side_of(text.whole) == side] for side in ("train", "test")}
    if {text.whole for text in cut}.isdisjoint(text.whole for text in read):  # other rows: all sides may be continued
        parts = {"train": [t for t in cut if side_of(t.whole) != "test"], "test": parts["test"]}
    return Task(
        name=name,
        good=good,
        read={side: _first(rows, most) for side, rows in sides.items()},
        cut={side: _first(rows, most) for side, rows in parts.items()},
        provenance=data.provenance,
    )


def _first(texts: Sequence[Text], most: int) -> tuple[Text, ...]:
    """At most so many, in an order that has nothing to do with the files'."""
    return tuple(sorted(texts, key=lambda text: hashlib.sha256(text.whole.encode()).digest()[8:])[:most])


def _comment(prompt: Prompt, *, begin: int) -> Text:
    words = tuple(prompt.text.split())[:40]
    return Text(words=words, good=not prompt.tags["toxic"], begin=begin if len(words) >= begin + 4 else 0)


def _sentence(label: SafetyLabel) -> Text:
    first, second = label.prompt.text.split()[-24:], label.response.split()
    toxic = not label.safe or label.prompt.tags.get("toxicity", 0.0) >= 0.5
    return Text(words=(*first, *second), good=not toxic, begin=len(first))


def _halves(dataset: Dataset) -> list[Text]:
    """Both halves of every sentence as one text: toxic if one of them is."""
    return [_sentence(label) for label in dataset.labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Signal and judge of a task, with what they are worth on rows that neither has seen."""

    signal: TextScorer
    judge: TextScorer
    worth: Mapping[str, Estimate]  # "signal_auc", "judge_accuracy", ...


def learn_readers(
    task: Task, backbone: Backbone, *, signal: str = "words", cache: FeatureCache | None, quick: bool
) -> Readers:
    """Fit both to their own rows; the same task and model give the same readers, so that nothing is kept of them.

    A policy that a signal on words has moved is mostly a policy of those words: on continuations of the same
    beginning it hardly agrees with the judge. A signal that reads features reads more of what the judge reads.
    """
    rows = {side: task.read[side] for side in ("signal", "judge")}
    if signal == "words":
        words = WordClassifier.fit([text.whole for text in rows["signal"]], [text.good for text in rows["signal"]])
        logits: Reader = words.logits
    else:
        logits = _head(rows["signal"], backbone, cache, depth=SIGNAL_DEPTH, quick=quick)
    readers = {"signal": logits, "judge": _head(rows["judge"], backbone, cache, depth=JUDGE_DEPTH, quick=quick)}
    worth: dict[str, Estimate] = {}
    for place, texts in (("", task.read["test"]), ("_on_texts_to_continue", task.cut["test"])):
        truth = [text.good for text in texts]
        for name, reader in readers.items():
            found = reader([text.whole for text in texts])
            worth[f"{name}_auc{place}"] = area_under_curve(found, truth)
            worth[f"{name}_accuracy{place}"] = share([bool(z > 0) == g for z, g in zip(found, truth, strict=True)])
    scorers = {name: TextScorer(value=reader, name=name) for name, reader in readers.items()}
    return Readers(signal=scorers["signal"], judge=scorers["judge"], worth=worth)


def _head(
    texts: Sequence[Text], backbone: Backbone, cache: FeatureCache | None, *, depth: float, quick: bool
) -> Reader:
    """Logits of the good label by a linear head on the start model's features at a share of its depth."""
    layers = max(1, round(backbone.trunk.depth * depth))
    model = ScoreModel(
        backbone, (BAD,), depth=layers, pooling="mean", hidden=0, max_response_tokens=_READ_TOKENS, cache=cache
    )
    labels = [SafetyLabel(prompt=_BEFORE_TEXT, response=text.whole, safe=text.good) for text in texts]
    table = FeedbackTable(model, (), labels)  # one prompt, so that every step sees all rows
    trainer = ScoreTrainer(model=model, table=table, steps=20 if quick else 150, weight_decay=5.0, regularisation=0.01)
    for index in range(trainer.steps):
        trainer.step_at(index)

    def logits(texts: Sequence[str]) -> Sequence[float]:
        rows, starts = model.encode([_BEFORE_TEXT] * len(texts), list(texts))
        with torch.no_grad():
            return [-float(z) for z in model(model.features(rows, starts))[:, 0]]

    return logits
