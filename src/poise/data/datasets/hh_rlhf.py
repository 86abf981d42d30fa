r"""Anthropic HH-RLHF: two dialogues that differ in the last answer, written as "\n\nHuman: ...\n\nAssistant: ...".

Source: arXiv:2204.05862. The helpful part was collected for help, the harmless part against harm; neither says
whether a response is safe on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.data.datasets.base import Item, Place, Row, Text, awaiting_answer, validate
from poise.errors import DataError
from poise.types import Comparison, Message, text_of

_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {role: speaker for speaker, role in _ROLES.items()}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class HhRow(Row):
    """Two whole dialogues, of which the first was preferred."""

    chosen: Text
    rejected: Text


def parse(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """One comparison; the file says what was asked: harmless-base compares safety on prompts that invite harm.

    Raises DataError if the two dialogues differ before the last answer.
    """
    row = validate(HhRow, columns, place)
    chosen, rejected = parse_transcript(row.chosen), parse_transcript(row.rejected)
    if chosen[:-1] != rejected[:-1]:
        raise DataError("chosen and rejected must agree up to the last answer, but their earlier turns differ")
    invites_harm = "harmless" in place.file
    tags = place.tags(row, kind="harmful" if invites_harm else "benign")
    prompt = awaiting_answer(tuple(chosen[:-1]), tags)
    yield Comparison(
        prompt=prompt,
        responses=(text_of(chosen[-1]), text_of(rejected[-1])),
        criterion="safe" if invites_harm else "helpful",
        winner=0,
        origin=place.origin("human"),
    )


def parse_transcript(text: str, *, awaits_answer: bool = False) -> list[Message]:
    r"""Split a dialogue into messages; raises DataError unless Human and Assistant alternate and both have spoken.

    One that awaits its answer ends with Human, or with "Assistant:" and nothing after it.

    >>> parse_transcript("\n\nHuman: Hello\n\nAssistant: Good day.")[1]
    {'role': 'assistant', 'content': 'Good day.'}
    """
    before, *pieces = _TURN.split(text)
    if awaits_answer and pieces and pieces[-2] == "Assistant" and not pieces[-1].strip():
        del pieces[-2:]
    if before.strip() or not pieces:
        raise DataError(f"a transcript must begin with '\\n\\nHuman:', got {text[:40]!r}")
    messages: list[Message] = [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    for index, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise DataError(f"turns must alternate and begin with Human; turn {index + 1} is {pieces[2 * index]!r}")
        if not message["content"]:
            raise DataError(f"turn {index + 1} of {len(messages)}, {pieces[2 * index]!r}, is empty")
    if messages[-1]["role"] != "assistant" and not awaits_answer:
        raise DataError("a transcript must end with the Assistant's answer, but this one ends with Human")
    return messages


def to_transcript(messages: Sequence[Message]) -> str:
    r"""Write messages as a dialogue: the inverse of `parse_transcript`.

    >>> to_transcript([{"role": "user", "content": "Hello"}])
    '\n\nHuman: Hello'
    """
    return "".join(f"\n\n{_SPEAKERS[message['role']]}: {message['content']}" for message in messages)
