"""Two responses with a signed preference, as published sets write it: HelpSteer2 and 3, and Chatbot Arena.

HelpSteer's preference runs from -3 (the first response is much better) to 3 (the second is); its size is the margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from poise.data.datasets.base import Item, Place, Text, Turn, answer_text, messages_of, validate
from poise.data.datasets.columns import parse_response, prompt_of, require_no_judgement
from poise.data.datasets.own_rows import Asked, OwnRow
from poise.errors import DataError
from poise.types import Comparison, Message

_STRONGEST = 3
_SIDES = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}
_EVEN = 0.5  # the probability that the first is preferred, where neither is


class SignedPreferenceRow(OwnRow):
    """A prompt, or the turns before the answer, and two responses."""

    prompt: Asked = Field(validation_alias=AliasChoices("prompt", "context"))
    first: Text = Field(validation_alias=AliasChoices("response_1", "response1"))
    second: Text = Field(validation_alias=AliasChoices("response_2", "response2"))
    preference: Annotated[int, Field(ge=-_STRONGEST, le=_STRONGEST)] = Field(
        validation_alias=AliasChoices("preference_strength", "overall_preference")
    )
    preference_statement: Any = None  # why, in words
    preference_elaboration: Any = None
    individual_preference: Any = None  # of each annotator
    all_preferences_unprocessed: Any = None


class ArenaRow(OwnRow):
    """Two conversations that differ in what the assistant said, and the one that a person preferred."""

    conversation_a: list[Turn]
    conversation_b: list[Turn]
    winner: Literal["model_a", "model_b", "tie", "tie (bothbad)"]
    model_a: Text | None = None
    model_b: Text | None = None
    judge: Any = None  # the id of the person
    turn: Any = None
    toxic_chat_tag: Any = None  # of the request, by classifiers
    openai_moderation: Any = None


def parse_signed(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A comparison with the size of the preference as its margin; 0 is a tie."""
    row = validate(SignedPreferenceRow, columns, place)
    require_no_judgement(row, row.prompt)
    prompt, strength = prompt_of(messages_of(row.prompt), row, place), row.preference
    yield _comparison(prompt, (row.first, row.second), None if strength == 0 else int(strength > 0), place, strength)


def parse_arena(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A comparison of the last answers, where what was said before is the same.

    Raises DataError where it is not: the two answers are then to different conversations.
    """
    row = validate(ArenaRow, columns, place)
    sides = [messages_of(row.conversation_a), messages_of(row.conversation_b)]
    if any(len(turns) < 2 or turns[-1]["role"] != "assistant" for turns in sides):
        raise DataError("a conversation does not end with an answer of the assistant")
    if sides[0][:-1] != sides[1][:-1]:
        raise DataError("the two conversations differ before their last answers, which cannot be compared")
    require_no_judgement(row, row.conversation_a, row.conversation_b)
    prompt = prompt_of(tuple(sides[0][:-1]), row, place)
    yield _comparison(prompt, (_said(sides[0]), _said(sides[1])), _SIDES[row.winner], place)


def parse_beavertails(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A safety label, with the harm categories of an unsafe response."""
    yield from parse_response({"safe" if name == "is_safe" else name: each for name, each in columns.items()}, place)


def _said(turns: tuple[Message, ...]) -> str:
    return answer_text(turns[-1])


def _comparison(
    prompt: Any, responses: tuple[str, str], winner: int | None, place: Place, strength: int = 0
) -> Comparison:
    even = _EVEN if winner is None else None
    margin = float(abs(strength))
    return Comparison(
        prompt=prompt, responses=responses, winner=winner, probability=even, margin=margin, origin=place.origin()
    )
