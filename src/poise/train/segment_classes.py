"""Classes of the segments of a response, as a score model learns them: one channel for each class.

A segment is scored as the response up to its end, so that only what leads to it counts. The channels that learn from
the criterion of such rows are its classes, by their names:

    classes = ("clean", "invented")
    model = ScoreModel(backbone, [Channel(name=name, criteria=("facts",)) for name in classes], pooling="last")
    table = FeedbackTable(model, segments=rows, losses=dict.fromkeys(classes, SEGMENT_CLASS))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poise.errors import ConfigError, DataError
from poise.functional.intervals import share
from poise.models.heads import ScoreModel
from poise.train.channel_losses import BRADLEY_TERRY, ChannelLoss, Judgement
from poise.types import Estimate, Origin, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a response and its class: the characters from `begin` to before `end`."""

    begin: int
    end: int
    name: str  # of the class


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentClasses:
    """The segments of one response under one criterion, in their order and without overlap; gaps may lie between.

    Raises DataError for a segment outside the response, a blank one, or one that begins before the last one's end.

    >>> row = SegmentClasses(
    ...     prompt=Prompt.of("Who wrote it?"),
    ...     response="Ann did. In 1820.",
    ...     segments=(Segment(begin=0, end=8, name="clean"), Segment(begin=9, end=17, name="invented")),
    ...     criterion="facts",
    ... )
    >>> row.texts
    ('Ann did.', 'Ann did. In 1820.')
    """

    prompt: Prompt
    response: str
    segments: tuple[Segment, ...]
    criterion: str
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        if not self.segments:
            raise self._error("there are no segments; give at least one, or leave out the row")
        past = 0
        for each in self.segments:
            where = f"the segment from {each.begin} to {each.end}"
            if not 0 <= each.begin < each.end <= len(self.response):
                raise self._error(
                    f"{where} lies outside a response of {len(self.response)} characters; give 0 <= begin < end"
                )
            if each.begin < past:
                raise self._error(
                    f"{where} begins before the last one ends, at {past}; give them in their order without overlap, "
                    "or those that overlap in a row of their own"
                )
            if not self.response[each.begin : each.end].strip():
                raise self._error(f"{where} is blank; give one with text")
            past = each.end

    def _error(self, problem: str) -> DataError:
        place = f"{self.origin.location}: " if self.origin.location else ""
        return DataError(f"{place}segments of a response to prompt {self.prompt.id}: {problem}")

    @property
    def texts(self) -> tuple[str, ...]:
        """What is read for each segment: the response up to its end."""
        return tuple(self.response[: each.end] for each in self.segments)


def segment_judgements(
    model: ScoreModel,
    rows: Sequence[SegmentClasses],
    losses: Mapping[str, ChannelLoss],
    number: Callable[[Prompt, str], int],
) -> tuple[list[Judgement], float]:
    """One judgement for each row, and the share of segments that the model cannot read whole, which teach nothing.

    `number` gives each response to a prompt its number.

    Raises:
        ConfigError: the channels of a criterion are fewer than two, or have no common loss that reads classes.
        DataError: a class is none of the channels, or the model can read no segment whole.
    """
    names = {criterion: _classes(model, criterion) for criterion in {row.criterion for row in rows}}
    for criterion, classes in names.items():
        _require_common_loss(criterion, classes, losses)
    _require_classes(rows, names)
    judgements, kept = [], 0
    for row in rows:
        classes = names[row.criterion]
        read = [
            (number(row.prompt, text), classes.index(segment.name))
            for segment, text in zip(row.segments, row.texts, strict=True)
            if model.sees_all(row.prompt, text)
        ]
        if read:
            numbers, indices = zip(*read, strict=True)
            judgements.append(
                Judgement(
                    channel=classes[0], first=numbers[0], behind=numbers[1:], class_names=classes, classes=indices
                )
            )
        kept += len(read)
    total = sum(len(row.segments) for row in rows)
    if rows and not kept:
        raise DataError(
            f"the score model can read none of the {total} segments whole: they end beyond its window of "
            f"{model.max_response_tokens} tokens, or the prompts are too long; give it larger windows"
        )
    return judgements, 1 - kept / total if total else 0.0


def _classes(model: ScoreModel, criterion: str) -> tuple[str, ...]:
    return tuple(channel.name for channel in model.channels if criterion in channel.criteria)


def _require_common_loss(criterion: str, classes: Sequence[str], losses: Mapping[str, ChannelLoss]) -> None:
    found = {losses.get(name, BRADLEY_TERRY) for name in classes}
    if len(classes) < 2 or len(found) > 1 or any(loss.reads != "classes" for loss in found):
        raise ConfigError(
            f"segments have classes on {criterion!r}, which channels {', '.join(classes)} learn from: give it two or "
            "more, Channel(name=CLASS, criteria=(CRITERION,)), all with one loss that reads classes, such as "
            f"losses=dict.fromkeys({tuple(classes)}, SEGMENT_CLASS)"
        )


def _require_classes(rows: Sequence[SegmentClasses], names: Mapping[str, Sequence[str]]) -> None:
    unknown = Counter(
        (row.criterion, s.name) for row in rows for s in row.segments if s.name not in names[row.criterion]
    )
    if unknown:
        criterion, name = min(unknown)
        raise DataError(
            f"{unknown.total()} segments have a class that no channel is named after, such as {name!r} "
            f"({unknown[criterion, name]}): the classes of {criterion!r} are {', '.join(names[criterion])}. Correct "
            f"these rows, or add Channel(name={name!r}, criteria=({criterion!r},))"
        )


@torch.no_grad()
def segment_logits(model: ScoreModel, row: SegmentClasses) -> Tensor:
    """Raw scores [S, K] of the S segments of a row under its K classes, in the order of the model's channels."""
    columns = [model.names.index(name) for name in _classes(model, row.criterion)]
    encoded, starts = model.encode([row.prompt] * len(row.texts), row.texts)
    raw: Tensor = model(model.pooled_all(encoded, starts))
    return raw[:, columns]


def segment_accuracy(model: ScoreModel, rows: Sequence[SegmentClasses]) -> Estimate:
    """Share of segments whose most likely class is theirs; one that the model cannot read whole counts as wrong.

    The interval is over prompts. Raises DataError for a class that the model does not have.
    """
    names = {row.criterion: _classes(model, row.criterion) for row in rows}
    _require_classes(rows, names)
    hits, prompts = [], []
    for row in rows:
        for segment, text, best in zip(row.segments, row.texts, segment_logits(model, row).argmax(-1), strict=True):
            is_right = names[row.criterion][int(best)] == segment.name
            hits.append(is_right and model.sees_all(row.prompt, text))
            prompts.append(row.prompt.id)
    return share(hits, prompts)
