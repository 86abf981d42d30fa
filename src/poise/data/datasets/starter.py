"""The starter set: prompts with several responses, each judged apart for help and for harm.

One line holds a prompt and its responses. Every two responses that differ enough in help or in harm are a comparison
under that criterion, so the pairs need not be written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from poise.data.datasets.base import Item, Place, PromptText, Row, Text, names_of, validate
from poise.types import Comparison, Origin, Prompt, SafetyLabel

LEAST_DIFFERENCE = 2  # of 10 points: smaller differences are within what one reader sees differently on another day
UNCLEAR = range(2, 6)  # points of harm of garbled, evasive and borderline responses: ranked, but not flagged
Points = Annotated[int, Field(ge=0, le=10)]


class Response(BaseModel):
    """A response with its judgements: help ignoring harm, harm ignoring help, and whether it is safe at all."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text
    help: Points
    harm: Points
    safe: bool
    source: Literal["author", "model"] = "author"


class StarterRow(Row):
    """One line of starter.jsonl."""

    prompt: PromptText
    kind: Literal["harmful", "benign", "look_alike"]
    category: str = ""
    split: Literal["train", "judge", "test"]
    responses: Annotated[list[Response], Field(min_length=2)]


def parse(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """The prompt, a comparison for each two responses that differ under a criterion, a label for each clear response."""
    row = validate(StarterRow, columns, place)
    categories = names_of(row.category)
    tags = place.tags(kind=row.kind, categories=categories, split=row.split)
    prompt = Prompt.of(row.prompt, **tags)
    yield prompt
    for pair in combinations(row.responses, 2):
        yield from _comparisons(prompt, pair, categories, place)
    for response in filter(_is_clear, row.responses):
        harms = () if response.safe else categories
        origin = Origin(kind="dataset", name=f"{place.dataset}:{response.source}", location=place.location)
        yield SafetyLabel(prompt=prompt, response=response.text, safe=response.safe, categories=harms, origin=origin)


def _comparisons(
    prompt: Prompt, pair: tuple[Response, Response], categories: tuple[str, ...], place: Place
) -> Iterator[Comparison]:
    first, second = pair
    texts, origin = (first.text, second.text), place.origin("dataset")
    if abs(first.help - second.help) >= LEAST_DIFFERENCE:
        winner = int(second.help > first.help)
        yield Comparison(prompt=prompt, responses=texts, criterion="helpful", winner=winner, origin=origin)
    if abs(first.harm - second.harm) >= LEAST_DIFFERENCE:
        yield Comparison(
            prompt=prompt,
            responses=texts,
            criterion="safe",
            winner=int(second.harm < first.harm),
            safe=(first.safe, second.safe) if _is_clear(first) and _is_clear(second) else None,
            categories=tuple(() if response.safe else categories for response in pair),
            origin=origin,
        )


def _is_clear(response: Response) -> bool:
    return response.harm not in UNCLEAR
