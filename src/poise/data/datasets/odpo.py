"""Responses with ratings, from the experiments of DPO with an offset: sampled continuations and summaries.

Source: Amini et al. (arXiv:2402.10571), repository rycolab/odpo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Any

from pydantic import Field

from poise.data.datasets.base import Item, Place, PromptText, Row, Text, validate
from poise.errors import DataError
from poise.types import Comparison, Demonstration, Prompt

REQUEST = "Summarize this post in one or two sentences:\n\n"


class ContinuationRow(Row):
    """A model's continuation of a text, and what a classifier gives for it."""

    prompt: PromptText
    text: Text
    reward: Annotated[float, Field(allow_inf_nan=False)]


class RatedRow(Row):
    """A post and its summaries, each with points from 1 to 7."""

    post: PromptText
    responses: list[Text]
    rewards: list[Annotated[int, Field(ge=1, le=7)]]


def parse_continuation(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """The continuation as a demonstration of weight 0, with its rating as the tag `reward` of its prompt."""
    row = validate(ContinuationRow, columns, place)
    text = row.text if row.text[:1] in ".,;:!?'" else f" {row.text.lstrip()}"  # the files lost the space before a word
    yield Demonstration(prompt=Prompt.of(row.prompt, **place.tags(reward=row.reward)), response=text, weight=0.0)


def parse_ratings(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A comparison of every two summaries with different points; the margin is their difference.

    Raises DataError unless there is one reward per response.
    """
    row = validate(RatedRow, columns, place)
    if len(row.responses) != len(row.rewards):
        raise DataError(
            f"{len(row.responses)} responses and {len(row.rewards)} rewards: expected one reward per response"
        )
    prompt = Prompt.of(REQUEST + row.post, **place.tags())
    rated = list(zip([text.strip() for text in row.responses], row.rewards, strict=True))
    for (first, ours), (second, theirs) in combinations(rated, 2):
        if ours != theirs and first != second:
            yield Comparison(
                prompt=prompt,
                responses=(first, second),
                winner=0 if ours > theirs else 1,
                margin=float(abs(ours - theirs)),
                origin=place.origin("human"),
            )
