"""What all row readers share: where a row stands, how its columns are checked, how it tags its prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from poise.errors import DataError
from poise.types import Comparison, Demonstration, Message, Origin, Prompt, SafetyLabel, Verdict

_UNKNOWN: tuple[Any, ...] = (None, "", (), [], {})
Item = Prompt | Demonstration | Comparison | SafetyLabel | Verdict
Parse = Callable[[Mapping[str, Any], "Place"], Iterable[Item]]
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands, and what its file says about it."""

    dataset: str
    file: str
    line: int
    split: str = ""  # what the file's name says
    untyped: bool = False

    @property
    def location(self) -> str:
        """The short "file:line" that findings and origins show."""
        return f"{self.file}:{self.line}"

    def origin(self, kind: Literal["human", "judge", "rule", "dataset", "model"] = "dataset") -> Origin:
        """Who judged this row: the data set, or the people behind it."""
        return Origin(kind=kind, name=self.dataset, location=self.location)

    def tags(self, row: Row | None = None, **named: Any) -> dict[str, Any]:
        """Prompt tags: source, line, the publisher's split, a row's further columns and named values, where known."""
        values = {"source": self.dataset, "upstream_split": self.split, **((row and row.model_extra) or {}), **named}
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


def _our_role(role: Any) -> Any:
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _joined_parts(content: Any) -> Any:
    """The text of a content that is given as parts, if all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(content) else content


class Turn(BaseModel):
    """One message of a conversation: role and content, or from and value as ShareGPT has them."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_our_role)] = Field(
        validation_alias=AliasChoices("role", "from")
    )
    content: Annotated[Text, BeforeValidator(_joined_parts)] = Field(validation_alias=AliasChoices("content", "value"))
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # 0: not to be imitated (OpenAI)


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
    return tuple({"role": turn.role, "content": turn.content} for turn in conversation)


def require_order(messages: Sequence[Message]) -> None:
    """Raise DataError unless user and assistant alternate, the user first, after one system turn at most.

    Other orders are what some templates refuse and others render into something else.

    >>> require_order([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}])
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[first:]):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise DataError(
                f"turn {first + number + 1} is the {message['role']}'s where the {expected}'s is due: a conversation "
                "is a system turn or none, then user and assistant in turn"
            )
        if not message["content"].strip() and first + number + 1 < len(messages):
            raise DataError(f"turn {first + number + 1}, the {expected}'s, is empty")


def awaiting_answer(messages: tuple[Message, ...], tags: Mapping[str, Any]) -> Prompt:
    """A prompt from messages of which the last is the user's; raises DataError if it is not, or is empty."""
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"the prompt must end with a user turn, got roles {[m['role'] for m in messages]}")
    if not messages[-1]["content"].strip():
        raise DataError("the last user turn is empty")
    require_order(messages)
    return Prompt.of(messages, **tags)
