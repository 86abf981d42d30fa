"""Records of the formats of docs/data.md: the columns that rows of a user's own files may have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from poise.data.datasets.base import Categories, PromptText, Row, Text, Turn

_SAID = {"true": True, "false": False}
_FLAGS: dict[Any, bool] = {**_SAID, "1": True, "0": False}


def _said(value: Any) -> Any:
    """True or false; a table says so in words. 0 and 1 may be classes, of which either may be the good one."""
    found = _SAID.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError(
            "should be true or false: the meaning of other values is unknown (--columns desirable=... or safe=... or "
            "unsafe=... says what 1 is)"
        )
    return found


def _flag(value: Any) -> Any:
    """True or false, also as 1 or 0, where the column's name says what 1 means."""
    if isinstance(value, str):
        return _FLAGS.get(value.lower(), value)
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def _turns(value: Any) -> Any:
    """One turn on its own as a list of one."""
    return [value] if isinstance(value, dict) else value


def _tools(value: Any) -> Any:
    """Tools as OpenAI has them, from a list of them or of their functions alone, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError as error:
            raise ValueError(f"should be a list of tools, or such a list as JSON text ({error})") from error
    for tool in value if isinstance(value, list) else [value]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError('should be a list of tools, each {"type": "function", "function": {"name": ...}}')
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


Flag = Annotated[Annotated[bool, Field(strict=True)], BeforeValidator(_flag)]
Said = Annotated[Annotated[bool, Field(strict=True)], BeforeValidator(_said)]
Tools = Annotated[list[dict[str, Any]] | None, BeforeValidator(lambda value: value and _tools(value))]
Number = Annotated[float, Field(allow_inf_nan=False)]
Asked = Annotated[PromptText | list[Turn], BeforeValidator(_turns)]
Answer = Annotated[Text | list[Turn], BeforeValidator(_turns)]


class OwnRow(Row):
    """Columns that every format may have besides its own."""

    kind: Literal["harmful", "benign", "look_alike"] | None = None
    split: str | None = None
    category: Categories = None
    categories: Categories = None
    system: Text | None = None  # a system turn before the prompt
    tools: Tools = Field(default=None, validation_alias=AliasChoices("tools", "functions"))  # that may be called


class PreferenceRow(OwnRow):
    """Two responses of which one is preferred; without `prompt`, what both begin with is the prompt."""

    prompt: Asked | None = Field(default=None, validation_alias=AliasChoices("prompt", "conversations"))
    instruction: PromptText | None = None
    input: Any = None  # what the instruction is about
    chosen: Answer
    rejected: Answer
    margin: Number | None = None
    score_chosen: Number | None = Field(
        default=None, validation_alias=AliasChoices("score_chosen", "chosen_score", "chosen-rating", "chosen_rating")
    )
    score_rejected: Number | None = Field(
        default=None,
        validation_alias=AliasChoices("score_rejected", "rejected_score", "rejected-rating", "rejected_rating"),
    )
    criterion: str = "helpful"
    chosen_safe: Flag | None = None
    rejected_safe: Flag | None = None
    messages: Any = None  # of UltraFeedback's chosen response, once more


class JudgedRow(OwnRow):
    """What may be said of one answer; an answer of which nothing is said is there to be imitated."""

    label: Said | None = None  # desirable or not, as TRL has it
    desirable: Flag | None = None
    safe: Flag | None = None
    unsafe: Flag | None = None
    weight: Annotated[Number, Field(ge=0)] | None = None  # of a demonstration


class MessagesRow(JudgedRow):
    """A conversation whose last turn is the answer."""

    messages: list[Turn] = Field(validation_alias=AliasChoices("messages", "conversations", "conversation"))


class CompletionRow(JudgedRow):
    """A prompt with its answer."""

    prompt: Asked
    completion: Answer = Field(validation_alias=AliasChoices("completion", "response"))


class InstructedRow(JudgedRow):
    """What may stand beside an instruction and its output."""

    history: list[Annotated[list[Text], Field(min_length=2, max_length=2)]] = Field(default_factory=list)


class PromptRow(OwnRow):
    """A prompt alone."""

    prompt: Asked


class OpenAiInput(Row):
    """The conversation before the answer, in OpenAI's preference files."""

    messages: list[Turn]
    tools: Tools = None


class OpenAiPreferenceRow(OwnRow):
    """A conversation and two answers."""

    input: OpenAiInput
    preferred_output: Answer
    non_preferred_output: Answer


class RatedCompletion(Row):
    """A response with its score."""

    text: Text = Field(validation_alias=AliasChoices("response", "text", "completion", "content", "output"))
    score: Number = Field(validation_alias=AliasChoices("score", "overall_score", "rating", "reward"))


class RatedRow(OwnRow):
    """A prompt with several responses, each with a score: within itself, or in a list of scores beside."""

    prompt: Asked = Field(validation_alias=AliasChoices("prompt", "instruction"))
    completions: list[Any] = Field(validation_alias=AliasChoices("completions", "responses"))
    scores: list[Number] | None = Field(default=None, validation_alias=AliasChoices("scores", "ratings", "rewards"))
    criterion: str = "helpful"


class RatingRow(JudgedRow):
    """A prompt with an answer that has grades: in columns named after the criteria, in an object, or in one column."""

    prompt: Asked
    completion: Answer = Field(validation_alias=AliasChoices("completion", "response"))
    helpfulness: Number | None = None
    correctness: Number | None = None
    coherence: Number | None = None
    complexity: Number | None = None
    verbosity: Number | None = None
    ratings: dict[str, Number | None] | None = None
    rating: Number | None = Field(default=None, validation_alias=AliasChoices("rating", "score"))
    criterion: str | None = None  # of `rating`


class RankedRow(OwnRow):
    """A prompt with several responses: a rank for each, 1 for the best, or their numbers, the best first."""

    prompt: Asked = Field(validation_alias=AliasChoices("prompt", "instruction"))
    completions: list[Text] = Field(validation_alias=AliasChoices("completions", "responses"))
    ranks: list[Number] | None = None
    ranking: list[int] | None = None  # from 0
    criterion: str = "helpful"


CRITERIA = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer's
ROWS = (
    RatingRow,
    RankedRow,
    PreferenceRow,
    MessagesRow,
    CompletionRow,
    InstructedRow,
    PromptRow,
    OpenAiPreferenceRow,
    RatedRow,
)
