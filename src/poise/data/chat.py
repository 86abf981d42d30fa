"""Messages to token ids: the one renderer for training, scoring and rollout.

A conversation becomes `prompt ids + response ids`. The prompt is the tokenizer's own chat template with the
assistant's turn opened; the response is the plain text, closed by the template's end-of-turn token when it is
finished. `TextRenderer` renders texts and their continuations instead. Which tokens belong to the response is known
from lengths alone, so pad = eos cannot do harm.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.text_tokens import TextTokens
from poise.data.turns import REMEDY, Turn, find_turn, rendered, role_tokens
from poise.errors import ConfigError, DataError, ModelError
from poise.types import Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Token ids of a conversation; the first `prompt_length` are the prompt, the rest the response."""

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False

    @property
    def response_mask(self) -> tuple[bool, ...]:
        """One flag per token: does it belong to the response?"""
        return tuple(index >= self.prompt_length for index in range(len(self.ids)))


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

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Ids of the prompt with the assistant's turn opened, and whether it had to be shortened.

        Too long a conversation loses its oldest turns first (a question leaves with its answers, a system message
        last of all), then the beginning of its last user turn. Raises ConfigError if nothing of that would be left,
        and DataError for a conversation that the template refuses.
        """
        messages = list(messages)
        ids, truncated = self._opened(messages), False
        if len(ids) > self.max_prompt_tokens:
            messages = self._without_oldest_turns(messages)
            ids, truncated = self._opened(messages), True
        while len(ids) > self.max_prompt_tokens:
            text = self._without_beginning(messages[-1]["content"], len(ids) - self.max_prompt_tokens)
            messages[-1] = {"role": messages[-1]["role"], "content": text}
            ids, truncated = self._opened(messages), True
        return ids, truncated

    def response_ids(self, text: str, *, finished: bool = True, whole: bool = False) -> tuple[list[int], bool]:
        """Ids of a response, closed by the end of turn if `finished`, and whether it was cut; never if `whole`.

        A response that had to be cut is not closed: the model must not learn to stop there.
        """
        turn = self._turn
        ids = [*self._texts.ids(turn.lead + text + turn.tail), turn.end] if finished else self._begun(text)
        most = len(ids) if whole else self.max_response_tokens
        return ids[:most], len(ids) > most

    def encode(self, prompt: Prompt, response: str, *, finished: bool = True) -> Encoded:
        """A prompt with a response as ids."""
        try:
            head, head_cut = self.prompt_ids(prompt.messages)
        except DataError as error:
            raise DataError(f"{named(prompt)}: {error}") from error
        tail, tail_cut = self.response_ids(response, finished=finished)
        return Encoded(ids=tuple(head + tail), prompt_length=len(head), truncated=head_cut or tail_cut)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, without the end of turn and the space that the template puts around an answer."""
        text = self._texts.text([i for i in ids if i not in self.stop_ids]).removeprefix(self._turn.lead)
        return text.removesuffix(self._turn.tail) if ids and ids[-1] in self.stop_ids else text

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise DataError if the template refuses one of the prompts; each order of roles is tried once."""
        by_roles: dict[tuple[str, ...], list[Prompt]] = {}
        for prompt in prompts:
            by_roles.setdefault(tuple(message["role"] for message in prompt.messages), []).append(prompt)
        for group in by_roles.values():
            try:
                self._opened(group[0].messages)
            except DataError as error:
                raise DataError(
                    f"{len(group)} prompts cannot be rendered, the first {named(group[0])}: {error}"
                ) from error

    def _begun(self, text: str) -> list[int]:
        return self._texts.ids(self._turn.lead + text) if text else []

    def _without_oldest_turns(self, messages: list[Message]) -> list[Message]:
        """The longest rest of a conversation that fits, else its last turn; found by halving, for rendering is slow."""
        rests = list(_rests(messages))

        def rest(place: int) -> list[Message]:
            system, start = rests[place]
            return messages[system] + messages[start:]

        def fits(place: int) -> bool:
            return len(self._opened(rest(place))) <= self.max_prompt_tokens

        place = bisect_left(range(len(rests)), True, key=fits)
        return rest(min(place, len(rests) - 1)) if rests else messages

    def _without_beginning(self, text: str, excess: int) -> str:
        """The text less about `excess` tokens at its beginning, always shorter than before."""
        ids = self._texts.ids(text)
        if len(ids) <= excess:
            raise ConfigError(
                f"max_prompt_tokens={self.max_prompt_tokens} leaves no room for the user's text beside the template"
            )
        # a cut inside a character decodes to replacement characters, which are longer than what they replace
        rest = self._texts.text(ids[excess:]).lstrip("\ufffd")
        return rest if len(rest) < len(text) else text[1:]

    def _opened(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation with the assistant's turn opened; its texts are only text."""
        contents, meaning = self._texts.masked([part for m in messages for part in (m["role"], m["content"])])
        if meaning:
            pairs = zip(contents[::2], contents[1::2], strict=True)
            messages = [{"role": role, "content": content} for role, content in pairs]
        try:
            text = rendered(self.tokenizer, messages, open_turn=True) + self._turn.opening
        except ValueError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses a conversation of the turns {roles}: "
                f"{error}. Bring its rows into the order that the template takes (a system text can begin the first "
                f"user turn), leave them out, or {REMEDY}"
            ) from error
        return self._texts.unmasked(text, meaning) if meaning else self._texts.parsed(text)

    def _find_turn(self, ends: Sequence[int]) -> Turn:
        turn = find_turn(self.tokenizer, self._texts, ends)
        self._texts.add_controls(role_tokens(self.tokenizer, self._texts))
        return turn


class TextRenderer(ChatRenderer):
    """Renders plain text: a response goes on where its prompt ends, without template, roles or turns.

    Only the last message of a prompt is read. A finished response is closed by the eos token.
    """

    def _opened(self, messages: Sequence[Message]) -> list[int]:
        return self._texts.ids(messages[-1]["content"])

    def _find_turn(self, ends: Sequence[int]) -> Turn:
        if not ends:
            raise ModelError(f"tokenizer {self.tokenizer.name_or_path!r} has no eos token to end a text; set eos_token")
        return Turn(end=ends[0])


def named(prompt: Prompt) -> str:
    """A prompt as a message names it: where it stands in its file, and how its last turn begins."""
    return f"{prompt.tags.get('line') or 'prompt ' + prompt.id} ({prompt.text[:40]!r})"


def _rests(messages: Sequence[Message]) -> Iterator[tuple[slice, int]]:
    """What is left of a conversation as its oldest turns go: its system message, and from where on it is kept.

    A question leaves with the answers to it, the system message when only the last turn is left besides.
    """
    system, start, last = slice(0, 0), 0, len(messages) - 1
    while start < last or system.stop:
        if not system.stop and messages[start]["role"] == "system" and last - start > 1:
            system, start = slice(start, start + 1), start + 1
        if system.stop and start == last:
            system = slice(0, 0)
        else:
            start += 1
            while start < last and messages[start]["role"] == "assistant":
                start += 1
        yield system, start
