"""Tasks of continuing text: real beginnings, and two scorers of a text that learned from other rows.

    rows -> signal | judge | train | test      (by a hash of the text, so that no row is on two sides)

The signal is what a policy is trained on: a linear classifier on words. The judge decides: a linear head on the
features of the frozen start model, fitted to other rows, and never trained against.
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
JUDGE_DEPTH = 0.6
_JUDGE_TOKENS = 64
_BEFORE_TEXT = Prompt.of("\n")  # what the judge reads a text after


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


def learn_readers(task: Task, backbone: Backbone, *, cache: FeatureCache | None, quick: bool) -> Readers:
    """Fit both to their own rows; the same task and model give the same readers, so that nothing is kept of them."""
    rows = task.read["signal"]
    words = WordClassifier.fit([text.whole for text in rows], [text.good for text in rows])
    signal = TextScorer(value=words.logits, name="words")
    judge = TextScorer(value=_judge(task, backbone, cache, quick), name="judge")
    worth: dict[str, Estimate] = {}
    for place, texts in (("", task.read["test"]), ("_on_texts_to_continue", task.cut["test"])):
        truth = [text.good for text in texts]
        for name, reader in (("signal", signal), ("judge", judge)):
            logits = reader.value([text.whole for text in texts])
            worth[f"{name}_auc{place}"] = area_under_curve(logits, truth)
            worth[f"{name}_accuracy{place}"] = share([(z > 0) == good for z, good in zip(logits, truth, strict=True)])
    return Readers(signal=signal, judge=judge, worth=worth)


def _judge(
    task: Task, backbone: Backbone, cache: FeatureCache | None, quick: bool
) -> Callable[[Sequence[str]], Sequence[float]]:
    """Logits of the good label by a linear head on the start model's features."""
    depth = max(1, round(backbone.trunk.depth * JUDGE_DEPTH))
    model = ScoreModel(
        backbone, (BAD,), depth=depth, pooling="mean", hidden=0, max_response_tokens=_JUDGE_TOKENS, cache=cache
    )
    labels = [SafetyLabel(prompt=_BEFORE_TEXT, response=text.whole, safe=text.good) for text in task.read["judge"]]
    table = FeedbackTable(model, (), labels)  # one prompt, so that every step sees all rows
    trainer = ScoreTrainer(model=model, table=table, steps=20 if quick else 150, weight_decay=5.0, regularisation=0.01)
    for index in range(trainer.steps):
        trainer.step_at(index)

    def logits(texts: Sequence[str]) -> Sequence[float]:
        rows, starts = model.encode([_BEFORE_TEXT] * len(texts), list(texts))
        with torch.no_grad():
            return [-float(z) for z in model(model.features(rows, starts))[:, 0]]

    return logits
