"""Responses with scores: ratings on criteria, rankings, or pairs with the difference of their scores as the margin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from poise.data.datasets.base import Item, Place, validate
from poise.data.datasets.columns import answer_of, asked, judged, parse_preference, prompt_of, require_no_judgement
from poise.data.datasets.own_rows import (
    CRITERIA,
    PreferenceRow,
    RankedRow,
    RatedCompletion,
    RatedRow,
    RatingRow,
)
from poise.errors import DataError
from poise.types import Comparison, Prompt, Rating


def parse_rating(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """Ratings of one answer, one for each criterion that has a number, and what else is said of it.

    Raises DataError if no criterion has a rating.
    """
    row = validate(RatingRow, columns, place)
    require_no_judgement(row, row.prompt, row.completion)
    messages = asked(row.prompt)
    prompt, answer = prompt_of(messages, row, place), answer_of(row.completion, messages, "completion")
    values = dict(_ratings(row))
    if not values:
        raise DataError("the answer has no rating: each criterion is empty; leave the row out")
    for criterion, value in values.items():
        yield Rating(prompt=prompt, response=answer, value=value, criterion=criterion, origin=place.origin())
    if (row.label, row.desirable, row.safe, row.unsafe) != (None,) * 4:  # else it would be imitated, and may be bad
        yield from judged(prompt, answer, row, place)


def parse_ranked(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A ranking of several responses to a prompt."""
    row = validate(RankedRow, columns, place)
    require_no_judgement(row)
    prompt = prompt_of(asked(row.prompt), row, place)
    yield prompt
    yield _ranking(prompt, row.completions, _order(row), row.criterion, place)


def parse_rated(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """Of several responses with scores, as the reader of the file chose: pairs with margins, ratings or a ranking."""
    row = validate(RatedRow, columns, place)
    rated = list(_rated(row, place))
    prompt = prompt_of(asked(row.prompt), row, place)
    yield prompt
    if place.scores == "margins":
        yield from _pairs(prompt, rated, row.criterion, place)
    else:
        yield from _scored(prompt, rated, row.criterion, place)


def parse_scored_preference(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A preference; where its responses have scores and these are not to be margins, ratings or a ranking instead."""
    row = validate(PreferenceRow, columns, place)
    scores = (row.score_chosen, row.score_rejected)
    for item in parse_preference(columns, place):
        if isinstance(item, Comparison) and None not in scores and place.scores != "margins":
            rated = list(zip(item.responses, [float(score or 0.0) for score in scores], strict=True))
            yield from _scored(item.prompt, rated, item.criterion, place)
        else:
            yield item


def _scored(prompt: Prompt, rated: Sequence[tuple[str, float]], criterion: str, place: Place) -> Iterator[Item]:
    if place.scores == "ratings":
        for text, value in rated:
            yield Rating(prompt=prompt, response=text, value=value, criterion=criterion, origin=place.origin())
        return
    if len({value for _, value in rated}) < len(rated):
        raise DataError(f"the scores {[value for _, value in rated]} tie: a ranking needs different ones")
    order = sorted(range(len(rated)), key=lambda i: -rated[i][1])
    yield _ranking(prompt, [text for text, _ in rated], order, criterion, place)


def _pairs(prompt: Prompt, rated: Sequence[tuple[str, float]], criterion: str, place: Place) -> Iterator[Item]:
    """A comparison of every two responses whose scores differ; the margin is their difference."""
    for (first, ours), (second, theirs) in combinations(rated, 2):
        if ours != theirs and first != second:
            yield Comparison(
                prompt=prompt,
                responses=(first, second),
                criterion=criterion,
                winner=0 if ours > theirs else 1,
                margin=abs(ours - theirs),
                origin=place.origin(),
            )


def _ranking(prompt: Prompt, texts: Sequence[str], order: Sequence[int], criterion: str, place: Place) -> Comparison:
    return Comparison(
        prompt=prompt, responses=tuple(texts), ranking=tuple(order), criterion=criterion, origin=place.origin()
    )


def _ratings(row: RatingRow) -> Iterator[tuple[str, float]]:
    """Criteria with their numbers: columns of their own, an object of them, or one number and the name beside it."""
    named = {name: getattr(row, name) for name in CRITERIA} | dict(row.ratings or {})
    yield from ((name, value) for name, value in named.items() if value is not None)
    if row.rating is not None:
        if row.criterion is None:
            raise DataError(f"the rating {row.rating:g} is under no criterion: name it in a column criterion")
        yield row.criterion, row.rating


def _order(row: RankedRow) -> list[int]:
    """The numbers of the responses from the best to the worst."""
    if row.ranking is not None:
        return row.ranking
    ranks = row.ranks or []
    if len(ranks) != len(row.completions):
        raise DataError(f"{len(row.completions)} responses and {len(ranks)} ranks: one for each is needed")
    if len(set(ranks)) < len(ranks):
        raise DataError(f"the ranks {ranks} tie: give different ones, 1 for the best")
    return sorted(range(len(ranks)), key=lambda i: ranks[i])


def _rated(row: RatedRow, place: Place) -> Iterator[tuple[str, float]]:
    """The responses with their scores."""
    if row.scores is not None:
        if len(row.scores) != len(row.completions):
            raise DataError(
                f"{len(row.completions)} responses and {len(row.scores)} scores: expected one score per response"
            )
        parts = [{"text": text, "score": score} for text, score in zip(row.completions, row.scores, strict=True)]
    else:
        parts = row.completions
    for part in parts:
        if not isinstance(part, Mapping):
            raise DataError("each of the completions needs a score: as {response, score}, or in a list scores beside")
        found = validate(RatedCompletion, part, place)
        yield found.text, found.score
