"""Messages to token ids: the one renderer for training, scoring and rollout.

A conversation becomes `prompt ids + response ids`. The prompt is the tokenizer's own chat template with the
assistant's turn opened; the response is the plain text, closed by the template's end-of-turn token when it is
finished. `TextRenderer` renders texts and their continuations instead. Which tokens belong to the response is known
from lengths alone, so pad = eos cannot do harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise.errors import ConfigError, ModelError
from poise.types import Message, Prompt

_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]
_ANSWER = "Good day to you"


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

    Raises ModelError at construction if the tokenizer has no template or if the template is not prefix-consistent:
    the ids of a prompt must begin the ids of the same prompt with an answer.
    """

    def __init__(self, tokenizer: Any, *, max_prompt_tokens: int = 512, max_response_tokens: int = 512):
        if max_prompt_tokens < 8 or max_response_tokens < 1:
            raise ConfigError(
                f"max_prompt_tokens={max_prompt_tokens} must be at least 8 and "
                f"max_response_tokens={max_response_tokens} at least 1"
            )
        self.tokenizer = tokenizer
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self.end_of_turn = self._find_end_of_turn()
        eos = tokenizer.eos_token_id
        self.stop_ids: frozenset[int] = frozenset({self.end_of_turn} | ({eos} if eos is not None else set()))
        self.fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Ids of the prompt with the assistant's turn opened, and whether it had to be shortened.

        Too long a conversation loses its oldest turns first (a question leaves with its answers, a system message
        last of all), then the beginning of its last user turn. Raises ConfigError if nothing of that would be left.
        """
        messages = list(messages)
        ids = self._template(messages, open_turn=True)
        truncated = False
        while len(ids) > self.max_prompt_tokens and len(messages) > 1:
            messages = _without_oldest_turn(messages)
            ids, truncated = self._template(messages, open_turn=True), True
        while len(ids) > self.max_prompt_tokens:
            text = self._without_beginning(messages[-1]["content"], len(ids) - self.max_prompt_tokens)
            messages[-1] = {"role": messages[-1]["role"], "content": text}
            ids, truncated = self._template(messages, open_turn=True), True
        return ids, truncated

    def response_ids(self, text: str, *, finished: bool = True) -> tuple[list[int], bool]:
        """Ids of a response, closed by the end of turn if `finished`, and whether it was cut.

        A response that had to be cut is not closed: the model must not learn to stop there.
        """
        ids = self._text_ids(text) + ([self.end_of_turn] if finished else [])
        return ids[: self.max_response_tokens], len(ids) > self.max_response_tokens

    def encode(self, prompt: Prompt, response: str, *, finished: bool = True) -> Encoded:
        """A prompt with a response as ids."""
        head, head_cut = self.prompt_ids(prompt.messages)
        tail, tail_cut = self.response_ids(response, finished=finished)
        return Encoded(ids=tuple(head + tail), prompt_length=len(head), truncated=head_cut or tail_cut)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, without the end of turn."""
        return str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))

    def _without_beginning(self, text: str, excess: int) -> str:
        """The text less about `excess` tokens at its beginning, always shorter than before."""
        ids = self._text_ids(text)
        if len(ids) <= excess:
            raise ConfigError(
                f"max_prompt_tokens={self.max_prompt_tokens} leaves no room for the user's text beside the template"
            )
        # a cut inside a character decodes to replacement characters, which are longer than what they replace
        rest = str(self.tokenizer.decode(ids[excess:], skip_special_tokens=True)).lstrip("\ufffd")
        return rest if len(rest) < len(text) else text[1:]

    def _text_ids(self, text: str) -> list[int]:
        if not text:
            return []
        # a response that spells out <|im_end|> is text: it must neither end its turn nor forge another
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _template(self, messages: Sequence[Message], *, open_turn: bool) -> list[int]:
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=open_turn, tokenize=True, return_dict=True
        )["input_ids"]
        return list(ids)

    def _find_end_of_turn(self) -> int:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template; set tokenizer.chat_template first"
            )
        head = self._template(_PROBE, open_turn=True)
        whole = self._template([*_PROBE, {"role": "assistant", "content": _ANSWER}], open_turn=False)
        answer = self._text_ids(_ANSWER)
        expected = head + answer
        if whole[: len(expected)] != expected:
            raise ModelError(
                f"the chat template of {self.tokenizer.name_or_path!r} is not prefix-consistent: a prompt's ids do not "
                f"begin the ids of the same prompt with an answer ({head[-3:]} against "
                f"{whole[len(head) - 3 : len(head)]}); set a template that puts the answer right after the opened turn"
            )
        rest = whole[len(expected) :]
        if not rest:
            if self.tokenizer.eos_token_id is None:
                raise ModelError(
                    f"the chat template of {self.tokenizer.name_or_path!r} does not end a turn and there is no eos "
                    "token; set tokenizer.eos_token or end the assistant's turn in the template"
                )
            return int(self.tokenizer.eos_token_id)
        return int(rest[0])


class TextRenderer(ChatRenderer):
    """Renders plain text: a response goes on where its prompt ends, without template, roles or turns.

    Only the last message of a prompt is read. A finished response is closed by the eos token.
    """

    def _template(self, messages: Sequence[Message], *, open_turn: bool) -> list[int]:
        return self._text_ids(messages[-1]["content"])

    def _find_end_of_turn(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"tokenizer {self.tokenizer.name_or_path!r} has no eos token to end a text; set eos_token")
        return int(self.tokenizer.eos_token_id)


def _without_oldest_turn(messages: list[Message]) -> list[Message]:
    """The conversation less its first user turn and the answers to it; the system message stays as long as it can."""
    begin = 1 if messages[0]["role"] == "system" and len(messages) > 2 else 0
    end = begin + 1
    while end < len(messages) - 1 and messages[end]["role"] == "assistant":
        end += 1
    return messages[:begin] + messages[end:]
