"""What all row readers share: where a row stands, how its columns are checked, how it tags its prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from poise.data.kept_columns import with_kept
from poise.errors import DataError
from poise.messages import text_only
from poise.types import Comparison, Demonstration, Message, Origin, Prompt, Rating, SafetyLabel, Verdict, text_of

_UNKNOWN: tuple[Any, ...] = (None, "", (), [], {})
Item = Prompt | Demonstration | Comparison | SafetyLabel | Verdict | Rating
Parse = Callable[[Mapping[str, Any], "Place"], Iterable[Item]]
Record = TypeVar("Record", bound=BaseModel)

ScoresAs = Literal["margins", "ratings", "rankings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands, and what its file says about it."""

    dataset: str
    file: str
    line: int
    split: str = ""  # what the file's name says
    untyped: bool = False
    scores: ScoresAs = "margins"  # what the scores of responses become

    @property
    def location(self) -> str:
        """The short "file:line" that findings and origins show."""
        return f"{self.file}:{self.line}"

    def origin(self, kind: Literal["human", "judge", "rule", "dataset", "model"] = "dataset") -> Origin:
        """Who judged this row: the data set, or the people behind it."""
        return Origin(kind=kind, name=self.dataset, location=self.location)

    def tags(self, row: Row | None = None, **named: Any) -> dict[str, Any]:
        """Prompt tags: source, line, the publisher's split, a row's further columns and named values, where known."""
        values = {
            "source": self.dataset,
            "upstream_split": self.split,
            **with_kept((row and row.model_extra) or {}),
            **named,
        }
        return {name: value for name, value in values.items() if not is_unknown(value)} | {"line": self.location}


def is_unknown(value: Any) -> bool:
    """True for what stands where nothing is known: null, an empty text, list or object, and NaN."""
    return value in _UNKNOWN or (isinstance(value, float) and math.isnan(value))


def _encodable(text: str) -> str:
    text.encode()  # half of a surrogate pair passes JSON and fails in every tokenizer
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
PromptText = Annotated[Text, AfterValidator(_not_blank)]
Categories = dict[str, bool | None] | list[str] | str | None


class Row(BaseModel):
    """The columns a reader needs, with their exact types; columns it does not know become tags."""

    model_config = ConfigDict(strict=True, extra="allow")


_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "developer": "system"}
_ROLES |= {"function": "tool", "observation": "tool"}


def _our_role(role: Any) -> Any:
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _joined_parts(content: Any) -> Any:
    """The text of a content that is given as parts, if all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(content) else content


def _of_known_types(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A content whose parts say what they are and have it, or refer to it."""
    for part in [] if isinstance(content, str) else content or [{}]:
        kind, rest = part.get("type"), [name for name, value in part.items() if name != "type" and value is not None]
        if not isinstance(kind, str) or not rest or (kind == "text" and not isinstance(part.get("text"), str)):
            raise ValueError("should be text, or parts with a type and a text or image reference")
        json.dumps(part, ensure_ascii=False, default=str).encode()
    return content


def _arguments(value: Any) -> Any:
    """Arguments as an object; OpenAI's files have its JSON text."""
    if not isinstance(value, str):
        return {} if value is None else value
    try:
        return json.loads(value or "{}")
    except ValueError as error:
        raise ValueError(f"should be an object, or an object as JSON text ({error})") from error


class _Function(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    name: PromptText
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments)] = Field(default_factory=dict)


class _Call(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    id: Text | None = None
    function: _Function

    def as_templates_know_it(self) -> dict[str, Any]:
        known = {"type": "function", "function": {"name": self.function.name, "arguments": self.function.arguments}}
        return {"id": self.id} | known if self.id else known


_UNREAD = ("reasoning_content", "reasoning", "thinking", "audio", "images")


class Turn(BaseModel):
    """One message of a conversation: role and content, or from and value as ShareGPT has them."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_our_role)] = Field(
        validation_alias=AliasChoices("role", "from")
    )
    content: Annotated[Text | list[dict[str, Any]], BeforeValidator(_joined_parts), AfterValidator(_of_known_types)] = (
        Field(validation_alias=AliasChoices("content", "value"))
    )
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # 0: not to be imitated (OpenAI)
    tool_calls: list[_Call] | None = None
    tool_call_id: Text | None = None
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_are_content(cls, turn: Any) -> Any:
        """Calls may stand without a content, and one call where OpenAI's older files have it."""
        if not isinstance(turn, dict):
            return turn
        turn = {name: value for name, value in turn.items() if name != "tool_calls" or value}
        if turn.get("function_call") is not None and "tool_calls" not in turn:
            turn["tool_calls"] = [{"function": turn.pop("function_call")}]
        if "tool_calls" in turn and turn.get("content", turn.get("value")) is None:
            turn["content"] = ""
        return turn

    @model_validator(mode="after")
    def _holds_nothing_unread(self) -> Turn:
        extra = self.model_extra or {}
        if unread := [name for name in _UNREAD if not is_unknown(extra.get(name))]:
            raise ValueError(f"holds {', '.join(unread)}, which is not read: only its content and its calls are")
        if extra.get("train") is False:
            raise ValueError("says train=false: set weight=0 for a turn that should not be imitated")
        return self

    @property
    def message(self) -> Message:
        """The turn as a message, with the keys that its role has."""
        message: Message = {"role": self.role, "content": self.content}
        if self.role == "assistant" and self.tool_calls:
            message["tool_calls"] = [call.as_templates_know_it() for call in self.tool_calls]
        if self.role == "tool":
            message |= {"tool_call_id": self.tool_call_id} if self.tool_call_id else {}
            message |= {"name": self.name} if self.name else {}
        return message


def validate(record: type[Record], columns: Mapping[str, Any], place: Place) -> Record:
    """Check the columns of one row; raises DataError that names each column with its value and the rule it broke."""
    try:
        known = {name: value for name, value in columns.items() if value is not None}  # Parquet fills gaps with null
        return record.model_validate(known, strict=not place.untyped)
    except ValidationError as error:
        raise DataError("; ".join(_explained(problem) for problem in error.errors(include_url=False))) from None


def _explained(problem: Any) -> str:
    column = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))  # brackets name a type of several
    if problem["type"] == "missing":
        return f"column {column!r} is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{column} {message}, got {problem['input']!r:.60}"


def names_of(categories: Categories) -> tuple[str, ...]:
    """Harm categories as names, from a list, a mapping of flags or one text."""
    if isinstance(categories, str):
        return (categories,) if categories else ()
    if isinstance(categories, Mapping):
        return tuple(name for name, holds in categories.items() if holds)
    return tuple(categories or ())


def messages_of(conversation: str | list[Turn]) -> tuple[Message, ...]:
    """One user text, or turns, as messages."""
    if isinstance(conversation, str):
        return ({"role": "user", "content": conversation},)
    return tuple(turn.message for turn in conversation)


def answer_text(message: Message) -> str:
    """The text of an answer; DataError where it is more than a text."""
    if message.get("tool_calls"):
        raise DataError("the answer calls tools, which only a demonstration can contain")
    return text_of(text_only([message])[0])


def require_order(messages: Sequence[Message]) -> None:
    """Raise DataError unless user and assistant alternate, the user first, after one system turn at most.

    After an assistant's calls the tools answer, and then the assistant goes on. Other orders are what some templates
    refuse and others render into something else.

    >>> require_order([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}])
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    due: tuple[str, ...] = ("user",)
    calls: Sequence[Mapping[str, Any]] = ()
    for number, message in enumerate(messages[first:], start=first + 1):
        role, own = message["role"], message.get("tool_calls") or ()
        if role not in due:
            expected = "'s or the ".join(due)
            raise DataError(
                f"turn {number} is the {role}'s where the {expected}'s is due: a "
                "conversation is a system turn or none, then user and assistant in turn, and what tools answer to the "
                "assistant's calls"
            )
        if not text_of(message).strip() and not own and role != "tool" and number < len(messages):
            raise DataError(f"turn {number}, the {role}'s, is empty")
        if role == "tool":
            _require_called(message, calls, number)
        calls = own if role == "assistant" else calls
        due = {"user": ("assistant",), "tool": ("tool", "assistant")}.get(role, ("tool",) if own else ("user",))


def _require_called(message: Message, calls: Sequence[Mapping[str, Any]], number: int) -> None:
    """Raise DataError where a tool answers a call that nobody made."""
    made = {call["id"] for call in calls if call.get("id")}
    if made and message.get("tool_call_id") and message["tool_call_id"] not in made:
        raise DataError(
            f"turn {number} answers the call {message['tool_call_id']!r}, and the calls before it are {sorted(made)}"
        )


def awaiting_answer(messages: tuple[Message, ...], tags: Mapping[str, Any]) -> Prompt:
    """A prompt from messages of which the last is the user's or a tool's; DataError if it is not, or is empty."""
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise DataError(f"the prompt must end with a user turn, got roles {[m['role'] for m in messages]}")
    if messages[-1]["role"] == "user" and not text_of(messages[-1]).strip():
        raise DataError("the last user turn is empty")
    require_order(messages)
    return Prompt.of(messages, **tags)
