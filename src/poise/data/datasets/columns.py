"""Files in the formats of docs/data.md: what a file holds is read from the names of its columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from poise.data.datasets import hh_rlhf, instructions, pku_saferlhf
from poise.data.datasets.base import (
    Item,
    Place,
    Turn,
    answer_text,
    awaiting_answer,
    is_unknown,
    messages_of,
    names_of,
    require_order,
    validate,
)
from poise.data.datasets.judgements import require_understood
from poise.data.datasets.own_rows import (
    CompletionRow,
    InstructedRow,
    JudgedRow,
    MessagesRow,
    OpenAiPreferenceRow,
    OwnRow,
    PreferenceRow,
    PromptRow,
)
from poise.errors import DataError
from poise.types import Comparison, Demonstration, Message, Prompt, SafetyLabel, Verdict, text_of

_TRANSCRIPT = "\n\nHuman:"
ANSWERS = frozenset(
    (
        "response responses answer answers output outputs reply completion completions generation generations "
        "response_0 response_1 response_a response_b chosen rejected solution preferred_output non_preferred_output "
        "continuation model_output generated_text assistant"
    ).split()
)
_MAY_BE_ANSWERS = frozenset({"text", "content", "message", "target"})  # they are, where something judges them


def parse_preference(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A comparison, and a safety label for each response whose flag is given."""
    row = validate(PreferenceRow, columns, place)
    require_no_judgement(row, row.prompt, row.chosen, row.rejected)
    messages, chosen, rejected = _pair(row)
    prompt = prompt_of(messages, row, place)
    flags = (row.chosen_safe, row.rejected_safe)
    yield Comparison(
        prompt=prompt,
        responses=(chosen, rejected),
        criterion=row.criterion,
        winner=0,
        margin=_margin(row),
        safe=(flags[0], flags[1]) if flags[0] is not None and flags[1] is not None else None,
        origin=place.origin(),
    )
    for response, safe in zip((chosen, rejected), flags, strict=True):
        if safe is not None:
            yield SafetyLabel(prompt=prompt, response=response, safe=safe, origin=place.origin())


def parse_pair_without_prompt(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """Two message lists with a common beginning, or two transcripts of HH-RLHF."""
    chosen = columns.get("chosen")
    if isinstance(chosen, str) and chosen.startswith(_TRANSCRIPT):
        require_no_judgement(validate(hh_rlhf.HhRow, columns, place))
        yield from hh_rlhf.parse(columns, place)
    else:
        yield from parse_preference(columns, place)


def parse_openai_preference(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A comparison, from a file for OpenAI's preference fine-tuning."""
    row = validate(OpenAiPreferenceRow, columns, place)
    require_no_judgement(row, row.input, row.input.messages, row.preferred_output, row.non_preferred_output)
    messages = messages_of(row.input.messages)
    row.tools = row.tools or row.input.tools
    answers = (("preferred_output", row.preferred_output), ("non_preferred_output", row.non_preferred_output))
    chosen, rejected = (answer_of(answer, messages, name) for name, answer in answers)
    yield Comparison(
        prompt=prompt_of(messages, row, place), responses=(chosen, rejected), winner=0, origin=place.origin()
    )


def parse_messages(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """What is said of the last turn, or a prompt if the last turn is the user's."""
    row = validate(MessagesRow, columns, place)
    messages = messages_of(row.messages)
    if not messages or messages[-1]["role"] != "assistant":
        yield prompt_of(messages, row, place)
        return
    require_no_judgement(row, row.messages)
    require_order(messages)
    prompt = prompt_of(messages[:-1], row, place)
    answer, calls = _text_or_calls(messages[-1], row), bool(messages[-1].get("tool_calls"))
    for item in judged(prompt, answer, row, place, weight=row.messages[-1].weight, calls=calls):
        yield _as_given(item, row.messages) if isinstance(item, Demonstration) else item


def _text_or_calls(answer: Message, row: JudgedRow) -> str:
    """The text of an answer, which may call tools where nothing is said of it."""
    judged = (row.label, row.desirable, row.safe, row.unsafe) != (None,) * 4
    return text_of(answer) if answer.get("tool_calls") and not judged else answer_text(answer)


def _as_given(item: Demonstration, turns: Sequence[Turn]) -> Demonstration:
    """The demonstration with the calls of its answer, and with which turns before it are not to be imitated."""
    offset = len(item.prompt.messages) - len(turns) + 1  # of a system turn from a column
    passed_over = tuple(
        i + offset for i, turn in enumerate(turns[:-1]) if turn.role == "assistant" and not _counts(turn)
    )
    return replace(item, tool_calls=tuple(turns[-1].message.get("tool_calls", ())), passed_over=passed_over)


def _counts(turn: Turn) -> bool:
    return turn.weight is None or turn.weight > 0


def parse_completion(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """What is said of an answer: a verdict or a safety label; an answer of which nothing is said is a demonstration."""
    row = validate(CompletionRow, columns, place)
    require_no_judgement(row, row.prompt, row.completion)
    messages = asked(row.prompt)
    answer = answer_of(row.completion, messages, "completion")
    last = row.completion[-1].weight if isinstance(row.completion, list) else None
    yield from judged(prompt_of(messages, row, place), answer, row, place, weight=last)


def parse_response(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """What is said of a response; where nothing is said it may be a good or a bad one.

    Raises DataError if neither safety nor a verdict is given.
    """
    for item in parse_completion(columns, place):
        if isinstance(item, Demonstration):
            raise DataError(
                "of the response neither safe nor label is given; rename it to completion if it should be imitated"
            )
        yield item


def parse_instruction(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """The same for an instruction and its output; one without any output is a prompt."""
    row = validate(InstructedRow, columns, place)
    own = {name: value for name, value in columns.items() if name not in type(row).model_fields}
    require_no_judgement(validate(instructions.InstructionRow, own, place))
    past = [
        Message(role=role, content=text)
        for turn in row.history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    for item in instructions.parse(own, place):
        prompt = item if isinstance(item, Prompt) else item.prompt
        whole = prompt_of((*past, *prompt.messages), row, place, tags=prompt.tags)
        if isinstance(item, Demonstration):
            yield from judged(whole, item.response, row, place)
        else:
            yield whole


def parse_pku(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A decoupled pair."""
    require_no_judgement(validate(pku_saferlhf.PkuRow, columns, place))
    yield from pku_saferlhf.parse(columns, place)


def parse_prompt(columns: Mapping[str, Any], place: Place) -> Iterator[Item]:
    """A prompt. Raises DataError if the row also has an answer."""
    row = validate(PromptRow, columns, place)
    given = {name for name, value in columns.items() if not is_unknown(value)}
    if answers := sorted(ANSWERS & given):
        raise DataError(
            f"a row of a file of prompts has an answer in {answers}: put prompts and answers into separate files"
        )
    if _MAY_BE_ANSWERS & given:
        require_no_judgement(row)
    yield prompt_of(asked(row.prompt), row, place)


def require_no_judgement(row: Any, *conversations: Any) -> None:
    """Raise DataError for a judgement in columns or turns that no format reads."""
    turns = [turn for each in conversations if isinstance(each, list) for turn in each]
    require_understood(row, *(each for each in conversations if not isinstance(each, (str, list))), *turns)


def prompt_of(
    messages: tuple[Message, ...], row: OwnRow, place: Place, *, tags: Mapping[str, Any] | None = None
) -> Prompt:
    """The prompt of a row, with its tags, its system turn and its tools. Raises DataError for two system turns."""
    known = dict(place.tags(row) if tags is None else tags)
    upstream = known.pop("upstream_split", None)  # of files in our own formats, the file's name is the split
    own = {
        "kind": row.kind,
        "split": row.split or upstream,
        "categories": names_of(row.categories) or names_of(row.category),
    }
    if row.system and row.system.strip():
        if messages and messages[0]["role"] == "system":
            raise DataError("there is a system turn in the column system and in the conversation: keep one")
        messages = (Message(role="system", content=row.system), *messages)
    prompt = awaiting_answer(messages, known | {name: value for name, value in own.items() if value})
    return prompt.with_tools(row.tools) if row.tools else prompt


def judged(
    prompt: Prompt, answer: str, row: JudgedRow, place: Place, *, weight: float | None = None, calls: bool = False
) -> Iterator[Item]:
    """A verdict, a safety label, or both; where nothing is said of an answer, it is to be imitated.

    Raises DataError for an empty answer.
    """
    is_desirable, is_safe = row.label, row.safe
    if row.desirable is not None:
        is_desirable = _agreed("label", "desirable", row.label, row.desirable)
    if row.unsafe is not None:
        is_safe = _agreed("safe", "unsafe", row.safe, not row.unsafe)
    if is_desirable is not None:
        yield Verdict(prompt=prompt, response=answer, desirable=is_desirable, origin=place.origin())
    if is_safe is not None:
        harms = names_of(row.categories) or names_of(row.category)
        yield SafetyLabel(prompt=prompt, response=answer, safe=is_safe, categories=harms, origin=place.origin())
    if is_desirable is None and is_safe is None:
        if not (answer.strip() or calls):
            raise DataError("the answer is empty: there is nothing to imitate")
        weights = [each for each in (row.weight, weight) if each is not None]
        yield Demonstration(prompt=prompt, response=answer, weight=min(weights, default=1.0))


def _agreed(one: str, other: str, first: bool | None, second: bool) -> bool:
    if first is not None and first != second:
        raise DataError(f"the columns {one} and {other} contradict each other")
    return second


def _margin(row: PreferenceRow) -> float:
    """By how much the chosen response is better: as given, or the difference of both scores."""
    if row.margin is not None and row.margin < 0:
        raise DataError(f"the chosen response is better by a margin below 0, {row.margin:g}")
    scores = (row.score_chosen, row.score_rejected)
    if scores[0] is None or scores[1] is None:
        if scores != (None, None):
            raise DataError("only one of the two responses has a score")
        return row.margin or 0.0
    if scores[0] < scores[1]:
        raise DataError(f"the chosen response has the lower score, {scores[0]:g} against {scores[1]:g}")
    return scores[0] - scores[1] if row.margin is None else row.margin


def _pair(row: PreferenceRow) -> tuple[tuple[Message, ...], str, str]:
    """The prompt's messages and the two responses."""
    if row.prompt is not None:
        messages = asked(row.prompt)
    elif row.instruction is not None:
        if not isinstance(row.input, (str, type(None))):
            raise DataError(f"input should be the text that the instruction is about, got {row.input!r:.60}")
        messages = messages_of(instructions.joined(row.instruction, row.input or ""))
    elif isinstance(row.chosen, str) or isinstance(row.rejected, str):
        raise DataError(
            "without a prompt, chosen and rejected must both be lists of messages, or both transcripts that begin with "
            "'\\n\\nHuman:'. If another column is the prompt, say so with --columns prompt=..."
        )
    else:
        messages = _common_beginning(messages_of(row.chosen), messages_of(row.rejected))
    return messages, answer_of(row.chosen, messages, "chosen"), answer_of(row.rejected, messages, "rejected")


def asked(prompt: str | list[Turn]) -> tuple[Message, ...]:
    """The messages of a prompt: of turns, of one user text, or of a transcript that ends where the answer begins."""
    if isinstance(prompt, str) and prompt.startswith(_TRANSCRIPT):
        return tuple(hh_rlhf.parse_transcript(prompt, awaits_answer=True))
    return messages_of(prompt)


def _common_beginning(first: tuple[Message, ...], second: tuple[Message, ...]) -> tuple[Message, ...]:
    """What both conversations begin with, short of the answer that ends the shorter one."""
    longest = max(0, min(len(first), len(second)) - 1)
    length = next((index for index in range(longest) if first[index] != second[index]), longest)
    return first[:length]


def answer_of(response: str | list[Turn], prompt: tuple[Message, ...], column: str) -> str:
    """The text of a response that is given as text, as one assistant turn, or as the whole conversation.

    Raises DataError unless it adds exactly one assistant turn to the prompt.
    """
    if isinstance(response, str) and not response.startswith(_TRANSCRIPT):
        return response
    messages: Sequence[Message] = (
        tuple(hh_rlhf.parse_transcript(response)) if isinstance(response, str) else messages_of(response)
    )
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if [message["role"] for message in messages] != ["assistant"]:
        roles = [message["role"] for message in messages]
        raise DataError(f"{column} must add one assistant turn to the prompt, but adds {roles}")
    return answer_text(messages[0])
