"""Texts with a label: sentiment of film reviews, toxicity of comments. A text is a prompt, its label a tag.

`positive` is True for praise, `toxic` for what people called toxic. Sources: Pang and Lee (ACL 2004 and 2005) for the
reviews; the Jigsaw toxic comment challenge (2017) for the comments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from poise.data.datasets.base import Item, Place, PromptText, Row, validate
from poise.types import Prompt

KINDS_OF_TOXICITY = ("severe_toxic", "obscene", "threat", "insult", "identity_hate")


class SentimentRow(Row):
    """A review or a sentence of one."""

    text: PromptText
    label: Literal["pos", "neg"]


class CommentRow(Row):
    """A comment, with flags for each kind of toxicity as further columns."""

    comment_text: PromptText
    toxic: Literal["0", "1", 0, 1]


def parse_sentiment(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """The text, with the tag `positive`."""
    row = validate(SentimentRow, columns, place)
    yield Prompt.of(row.text, **place.tags(positive=row.label == "pos"))


def parse_comment(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """The comment, with the tag `toxic` and the further flags that are set as `categories`."""
    row = validate(CommentRow, columns, place)
    kinds = tuple(name for name in KINDS_OF_TOXICITY if str(columns.get(name)) == "1")
    yield Prompt.of(row.comment_text, **place.tags(toxic=str(row.toxic) == "1", categories=kinds))
