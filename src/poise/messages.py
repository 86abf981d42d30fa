"""Messages of a conversation: who says what, in text or in parts, and which tools are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from poise.errors import DataError

Part = Mapping[str, Any]  # {"type": "text", "text": ...}, or another type with what refers to it


class Message(TypedDict):
    """One message, with the keys that chat templates know."""

    role: str  # system, user, assistant or tool
    content: str | Sequence[Part]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]  # of the assistant: {"type": "function", "function": ...}
    tool_call_id: NotRequired[str]  # of a tool: which call it answers
    name: NotRequired[str]  # of a tool: the function that was called


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTurn:
    """One turn of a response: what the policy said, or what a tool or another speaker said to that.

    The tokens of all turns, one after the other, go on where the prompt ends. Those that a template puts around
    messages belong to the turn that is not the policy's, but for the end of turn, which the policy says itself.
    """

    message: Message
    token_ids: tuple[int, ...] = ()  # as the model reads them; () where the engine does not say
    token_logprobs: tuple[float, ...] = ()  # nats, of the policy's turns alone

    @property
    def is_sampled(self) -> bool:
        """Whether the policy said it, so that it is learned from."""
        return self.message["role"] == "assistant"


def text_of(message: Message) -> str:
    """The text of a message; what is no text in it is named in brackets.

    >>> parts = [{"type": "text", "text": "What is it? "}, {"type": "image", "url": "a.png"}]
    >>> text_of({"role": "user", "content": parts})
    'What is it? [image]'
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) if _is_text(part) else f"[{part.get('type', 'part')}]" for part in content)


def transcript(turns: Iterable[RolloutTurn]) -> str:
    """A response of several turns as a person reads it: who says what, and which tools are called.

    >>> transcript([RolloutTurn(message={"role": "assistant", "content": "5"})])
    'assistant: 5'
    """
    return "\n\n".join(f"{turn.message['role']}: {_with_calls(turn.message)}" for turn in turns)


def _with_calls(message: Message) -> str:
    functions = [call.get("function", {}) for call in message.get("tool_calls", ())]
    calls = [f"{each.get('name')}({json.dumps(each.get('arguments', {}), ensure_ascii=False)})" for each in functions]
    return "\n".join([text_of(message), *calls] if text_of(message) else calls)


def text_only(messages: Iterable[Message]) -> list[Message]:
    """The messages with the parts of their contents joined to texts, as a model reads them that knows only text.

    Raises DataError for a part that is no text.
    """
    found: list[Message] = []
    for number, message in enumerate(messages, start=1):
        others = [] if isinstance(message["content"], str) else [p for p in message["content"] if not _is_text(p)]
        if others:
            kind = others[0].get("type") if isinstance(others[0], Mapping) else type(others[0]).__name__
            raise DataError(
                f"turn {number}, of role {message['role']!r}, has a part of type {kind!r}, but this model reads "
                "only text: use a server whose model supports it, or remove the row"
            )
        found.append({**message, "content": text_of(message)})
    return found


def prompt_id(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Name a prompt by its content: the same messages have the same id in every file and run.

    Parts of text count as the text that they make.
    """
    text = "\x1e".join(f"{m['role']}\x1f{text_of(m).strip()}{_beyond_text(m)}" for m in messages)
    text += f"\x1d{_canonical(tools)}" if tools else ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _beyond_text(message: Message) -> str:
    """What a message says besides its text, "" for one of text alone."""
    more = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    if not isinstance(message["content"], str):
        others = [part for part in message["content"] if not _is_text(part)]
        more |= {"content": message["content"]} if others else {}
    return f"\x1f{_canonical(more)}" if more else ""


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
