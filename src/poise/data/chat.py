"""Messages to token ids: the one renderer for training, scoring and rollout.

A conversation becomes `prompt ids + response ids`. The prompt is the tokenizer's own chat template with the
assistant's turn opened; the response is the plain text, closed by the template's end-of-turn token when it is
finished. `TextRenderer` renders texts and their continuations instead. Which tokens belong to the response is known
from lengths alone, so pad = eos cannot do harm.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from poise.data.text_tokens import TextTokens
from poise.data.turns import ANSWER, ONE_ANSWER, REMEDY, Tools, Turn, find_turn, left_out, rendered, role_tokens
from poise.errors import ConfigError, DataError, ModelError
from poise.messages import text_only
from poise.types import Message, Prompt, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Token ids of a conversation; the first `prompt_length` are the prompt, the rest the response.

    A response of several turns has a mask: what a user or a tool says between them is in the response and not of it.
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False
    mask: tuple[bool, ...] = ()  # one flag per token after the prompt; () for a response of one turn

    @property
    def response_mask(self) -> tuple[bool, ...]:
        """One flag per token: did the assistant say it in the response?"""
        own = self.mask or (True,) * (len(self.ids) - self.prompt_length)
        return (False,) * self.prompt_length + own


class ChatRenderer:
    """Renders prompts and responses with a tokenizer's chat template, and proves that it may.

    end_ids  further tokens that end a turn, such as those of a model's generation_config

    What messages and responses say is text: a control token that they spell out is split. Raises ModelError at
    construction if the tokenizer has no template, if the template ends a turn by nothing that is called an end, or if
    it is not prefix-consistent: the ids of a prompt must begin the ids of the same prompt with an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_tokens: int = 512,
        max_response_tokens: int = 512,
        end_ids: Sequence[int] = (),
    ):
        if max_prompt_tokens < 8 or max_response_tokens < 1:
            raise ConfigError(
                f"max_prompt_tokens={max_prompt_tokens} must be at least 8 and "
                f"max_response_tokens={max_response_tokens} at least 1"
            )
        self.tokenizer = tokenizer
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        eos = tokenizer.eos_token_id
        self._texts = TextTokens(tokenizer)
        ends = list(self._texts.spelt([*([] if eos is None else [eos]), *end_ids]))
        self._texts.add_controls(ends)
        self._turn = self._find_turn(ends)
        self.end_of_turn = self._turn.end
        self.stop_ids: frozenset[int] = frozenset(ends)
        self.fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = ()) -> tuple[list[int], bool]:
        """Ids of the prompt with the assistant's turn opened, and whether it had to be shortened.

        Too long a conversation loses its oldest turns first (a question leaves with its answers, a system message
        last of all), then the beginning of its last user turn. Raises ConfigError if nothing of that would be left,
        and DataError for a conversation that the template refuses, or of which it leaves something out.
        """
        kept, ids = self._fitting(messages, tools)
        return ids, kept != list(messages)

    def _fitting(self, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], list[int]]:
        """The messages that fit into the window, and their ids."""
        messages = list(messages)
        self._require_shown(messages, tools)
        ids = self._opened(messages, tools)
        if len(ids) > self.max_prompt_tokens:
            messages = self._without_oldest_turns(messages, tools)
            ids = self._opened(messages, tools)
        while len(ids) > self.max_prompt_tokens:
            text = self._without_beginning(text_of(messages[-1]), len(ids) - self.max_prompt_tokens)
            messages[-1] = {**messages[-1], "content": text}
            ids = self._opened(messages, tools)
        return messages, ids

    def response_ids(self, text: str, *, finished: bool = True, whole: bool = False) -> tuple[list[int], bool]:
        """Ids of a response, closed by the end of turn if `finished`, and whether it was cut; never if `whole`.

        A response that had to be cut is not closed: the model must not learn to stop there.
        """
        turn = self._turn
        ids = [*self._texts.ids(turn.lead + text + turn.tail), turn.end] if finished else self._begun(text)
        most = len(ids) if whole else self.max_response_tokens
        return ids[:most], len(ids) > most

    def encode(self, prompt: Prompt, response: str, *, finished: bool = True, tool_calls: Tools = ()) -> Encoded:
        """A prompt with a response as ids; DataError with the prompt's place where the template does not take them."""
        return self._encoded(prompt, response, finished=finished, tool_calls=tool_calls)[1]

    def encode_every_turn(
        self,
        prompt: Prompt,
        response: str,
        *,
        finished: bool = True,
        tool_calls: Tools = (),
        passed_over: Sequence[int] = (),
    ) -> Encoded:
        """The same ids, with the assistant's turns within the prompt as a part of the response.

        Its mask is True on the tokens of the assistant's turns, the end of each included; not on those that stand at
        the numbers `passed_over` among the prompt's messages. Raises DataError where the
        template writes a turn otherwise once others follow it: then the turn that the model is shown is not the one
        that it would say.
        """
        messages, row = self._encoded(prompt, response, finished=finished, tool_calls=tool_calls)
        head = row.ids[: row.prompt_length]
        try:
            others = {id(prompt.messages[i]) for i in passed_over}
            spans = self._answers(messages, head, prompt.tools, others)
        except DataError as error:
            raise DataError(f"{named(prompt)}: {error}") from error
        if not spans:
            return row
        said = {place for start, stop in spans for place in range(start, stop)}
        mask = [place in said or place >= len(head) for place in range(spans[0][0], len(row.ids))]
        return replace(row, prompt_length=spans[0][0], mask=tuple(mask))

    def reply_ids(self, messages: Sequence[Message], replies: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Ids from the end of an answer to these messages on to the next: the replies, and the assistant's turn opened.

        What the assistant said stands for itself in its own tokens, and is not read here. Raises DataError where the
        template refuses the replies or leaves them out.
        """
        before = [ANSWER if message["role"] == "assistant" else message for message in messages]
        whole = [*before, ANSWER, *replies]
        self._require_shown(whole, tools)
        head = self._tokens(before, tools, open_turn=True)
        ids = self._opened(whole, tools)
        end = self._end_of_answer(head, ids)
        return ids[end:]

    def _encoded(
        self, prompt: Prompt, response: str, *, finished: bool, tool_calls: Tools
    ) -> tuple[list[Message], Encoded]:
        """The messages of the prompt that fit, and the row."""
        try:
            messages, head = self._fitting(prompt.messages, prompt.tools)
            if tool_calls:
                tail, tail_cut = self._call_ids(messages, head, response, prompt.tools, tool_calls)
            else:
                tail, tail_cut = self.response_ids(response, finished=finished)
        except DataError as error:
            raise DataError(f"{named(prompt)}: {error}") from error
        cut = tail_cut or messages != list(prompt.messages)
        return messages, Encoded(ids=tuple(head + tail), prompt_length=len(head), truncated=cut)

    def _call_ids(
        self, messages: Sequence[Message], head: Sequence[int], text: str, tools: Tools, calls: Tools
    ) -> tuple[list[int], bool]:
        """Ids of an answer that calls tools, as the template writes it."""
        answer: Message = {"role": "assistant", "content": text, "tool_calls": list(calls)}
        self._require_shown([*messages, answer], tools)
        whole = self._tokens([*messages, answer], tools, open_turn=False)
        tail = whole[len(head) : self._end_of_answer(head, whole)]
        return tail[: self.max_response_tokens], len(tail) > self.max_response_tokens

    def _answers(
        self, messages: Sequence[Message], ids: Sequence[int], tools: Tools, others: Container[int]
    ) -> list[tuple[int, int]]:
        """Where the assistant's turns among the messages, less `others`, begin and end in the ids of these."""
        places = [i for i, m in enumerate(messages) if i and m["role"] == "assistant" and id(m) not in others]
        heads = [self._opened(messages[:i], tools) for i in places]
        spans = [(len(head), self._end_of_answer(head, ids)) for head in heads]
        if any(stop > start for (_, stop), (start, _) in pairwise(spans)):
            raise DataError(f"the chat template of {self.tokenizer.name_or_path!r} does not end every answer")
        return spans

    def _end_of_answer(self, head: Sequence[int], ids: Sequence[int]) -> int:
        """The place in `ids` behind the answer that follows `head` there; DataError unless they begin with it."""
        size, name = len(head), self.tokenizer.name_or_path
        if list(ids[:size]) != list(head):
            raise DataError(
                f"the chat template of {name!r} renders a conversation differently once its answer or further "
                f"turns follow, so the text before the answer changes; {ONE_ANSWER}"
            )
        end = next((place for place in range(size, len(ids)) if ids[place] in self.stop_ids), None)
        if end is None:
            raise DataError(
                f"the chat template of {name!r} does not end an answer if further turns follow; {ONE_ANSWER}"
            )
        return end + 1

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, without the end of turn and the space that the template puts around an answer."""
        text = self._texts.text([i for i in ids if i not in self.stop_ids]).removeprefix(self._turn.lead)
        return text.removesuffix(self._turn.tail) if ids and ids[-1] in self.stop_ids else text

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise DataError if the template refuses one of the prompts; each order of roles is tried once."""
        by_roles: dict[tuple[Any, ...], list[Prompt]] = {}
        for prompt in prompts:
            by_roles.setdefault((bool(prompt.tools), *map(_shape, prompt.messages)), []).append(prompt)
        for group in by_roles.values():
            try:
                self._require_shown(group[0].messages, group[0].tools)
                self._opened(group[0].messages, group[0].tools)
            except DataError as error:
                raise DataError(
                    f"{len(group)} prompts cannot be rendered, the first {named(group[0])}: {error}"
                ) from error

    def _begun(self, text: str) -> list[int]:
        return self._texts.ids(self._turn.lead + text) if text else []

    def _without_oldest_turns(self, messages: list[Message], tools: Tools) -> list[Message]:
        """The longest rest of a conversation that fits, else its last turn; found by halving, for rendering is slow."""
        rests = list(_rests(messages))

        def rest(place: int) -> list[Message]:
            system, start = rests[place]
            return messages[system] + messages[start:]

        def fits(place: int) -> bool:
            return len(self._opened(rest(place), tools)) <= self.max_prompt_tokens

        place = bisect_left(range(len(rests)), True, key=fits)
        return rest(min(place, len(rests) - 1)) if rests else messages

    def _without_beginning(self, text: str, excess: int) -> str:
        """The text less about `excess` tokens at its beginning, always shorter than before."""
        ids = self._texts.ids(text)
        if len(ids) <= excess:
            raise ConfigError(
                f"max_prompt_tokens={self.max_prompt_tokens} leaves no room for the user's text next to the template"
            )
        # a cut inside a character decodes to replacement characters, which are longer than what they replace
        rest = self._texts.text(ids[excess:]).lstrip("\ufffd")
        return rest if len(rest) < len(text) else text[1:]

    def _opened(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Ids of a conversation with the assistant's turn opened."""
        return self._tokens(messages, tools, open_turn=True, then=self._turn.opening)

    def _tokens(self, messages: Sequence[Message], tools: Tools, *, open_turn: bool, then: str = "") -> list[int]:
        """Ids of a conversation; its texts are only text."""
        (said, known), meaning = self._texts.masked_in((text_only(messages), list(tools)))
        try:
            text = rendered(self.tokenizer, said, open_turn=open_turn, tools=known) + then
        except ValueError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} rejects a conversation with the turns "
                f"{roles}: {error}. Reorder the turns as the template requires (a system text can be put into the "
                f"first user turn), remove these rows, or {REMEDY}"
            ) from error
        return self._texts.unmasked(text, meaning) if meaning else self._texts.parsed(text)

    def _require_shown(self, messages: Sequence[Message], tools: Tools) -> None:
        """Raise DataError where the template leaves out what tools there are, their calls or their answers."""
        try:
            missing = left_out(self.tokenizer, text_only(messages), list(tools))
        except ValueError:  # for another reason, which rendering names
            return
        if missing:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} leaves out {missing}: the model would not "
                f"see it. Remove such rows, or {REMEDY}"
            )

    def _find_turn(self, ends: Sequence[int]) -> Turn:
        turn = find_turn(self.tokenizer, self._texts, ends)
        self._texts.add_controls(role_tokens(self.tokenizer, self._texts))
        return turn


class TextRenderer(ChatRenderer):
    """Renders plain text: a response goes on where its prompt ends, without template, roles or turns.

    Only the last message of a prompt is read. A finished response is closed by the eos token.
    """

    def _tokens(self, messages: Sequence[Message], tools: Tools, *, open_turn: bool, then: str = "") -> list[int]:
        return self._texts.ids(text_of(text_only(messages[-1:])[0]))

    def _require_shown(self, messages: Sequence[Message], tools: Tools) -> None:
        if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            raise DataError("plain text has no tools: use a model with a chat template, or remove such rows")

    def _answers(
        self, messages: Sequence[Message], ids: Sequence[int], tools: Tools, others: Container[int]
    ) -> list[tuple[int, int]]:
        return []

    def reply_ids(self, messages: Sequence[Message], replies: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Raise DataError: where there are no turns there is no reply."""
        raise DataError("plain text has no turns: use a model with a chat template to continue after a reply")

    def _find_turn(self, ends: Sequence[int]) -> Turn:
        if not ends:
            raise ModelError(f"tokenizer {self.tokenizer.name_or_path!r} has no eos token to end a text; set eos_token")
        return Turn(end=ends[0])


def _shape(message: Message) -> tuple[str, bool]:
    """What tells a template's rules of order apart."""
    return message["role"], bool(message.get("tool_calls"))


def named(prompt: Prompt) -> str:
    """A prompt as a message names it: where it stands in its file, and how its last turn begins."""
    return f"{prompt.tags.get('line') or 'prompt ' + prompt.id} ({prompt.text[:40]!r})"


def _rests(messages: Sequence[Message]) -> Iterator[tuple[slice, int]]:
    """What is left of a conversation as its oldest turns go: its system message, and from where on it is kept.

    A question leaves with the answers to it, the system message when only the last turn is left besides.
    """
    system, start = slice(0, 0), 0
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1)
    while start < last or system.stop:
        if not system.stop and messages[start]["role"] == "system" and last - start > 1:
            system, start = slice(start, start + 1), start + 1
        if system.stop and start == last:
            system = slice(0, 0)
        else:
            start += 1
            while start < last and messages[start]["role"] in ("assistant", "tool"):
                start += 1
        yield system, start
