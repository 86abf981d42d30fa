"""A prompt and its answer as the token row that somebody else's model scores, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data.text_tokens import TextTokens
from poise.errors import ConfigError, DataError, FeedbackError
from poise.messages import text_only
from poise.types import Completion, Message, Prompt

PAIR, RESPONSE = "pair", "response"
_SAMPLE = ({"role": "user", "content": "poise asks"}, {"role": "assistant", "content": "poise answers"})
_UNBOUNDED = 1_000_000  # tokenizers without a limit say a number beyond all models


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads prompts and answers with a tokenizer; a control token that a text spells out is only text.

    template   a chat template, which gets the conversation with its answer; PAIR: prompt and answer as the tokenizer
               writes two texts; RESPONSE: the answer alone
    opens      whether the template is asked to open another turn behind the answer, in which a guard gives its verdict
    continues  whether it is asked to leave the answer's turn open, as a score model reads that saw no ends of turns
    arguments  what else the template is given
    leads      what is put behind a row that ends so
    begins     token ids in front of the row, such as the one that begins every text

    Raises ConfigError for a template that does not show what is answered.
    """

    tokenizer: Any
    name: str  # for errors
    template: str
    max_tokens: int
    opens: bool = False
    continues: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    leads: Mapping[str, str] = field(default_factory=dict)
    begins: tuple[int, ...] = ()
    tokens: TextTokens = field(init=False)
    reads_parts: bool = field(init=False, default=False)  # the template takes contents as lists of parts

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", TextTokens(self.tokenizer))
        if self.template not in (PAIR, RESPONSE):
            object.__setattr__(self, "reads_parts", self._needs_parts())

    def read(self, prompt: Prompt, completion: Completion, *, then: str = "") -> dict[str, list[int]] | str:
        """The inputs of one row by name, `input_ids` among them, or why there is none to score.

        then  text behind what the template renders, such as what a guard has answered so far

        Raises FeedbackError where the template refuses the conversation, and for a conversation without a template.
        """
        if completion.unfit:
            return completion.unfit
        try:
            messages = text_only([*prompt.messages, *_answers(completion)])
        except DataError as error:
            return str(error)
        is_rendered = self.template not in (PAIR, RESPONSE)
        fields = self._rendered(messages, then) if is_rendered else self._texts(prompt, completion)
        if len(fields["input_ids"]) > self.max_tokens:
            return f"longer than the window of {self.max_tokens} tokens"
        return fields

    def _texts(self, prompt: Prompt, completion: Completion) -> dict[str, list[int]]:
        texts = [completion.text]
        if self.template == PAIR:
            if len(prompt.messages) > 1:
                raise FeedbackError(
                    f"{self.name}: prompt {prompt.id} is a conversation of {len(prompt.messages)} messages, and a pair "
                    "has one. Give a chat template that the model knows, as in ?template=FILE.jinja, or "
                    "?template=response"
                )
            texts.insert(0, prompt.text)
        encoded = self.tokenizer(*texts, split_special_tokens=True, return_attention_mask=False)
        return {key: list(value) for key, value in encoded.items()}

    def _rendered(self, messages: Sequence[Message], then: str) -> dict[str, list[int]]:
        said, meaning = self.tokens.masked_in(list(messages))
        try:
            text = self._by_template(said, as_parts=self.reads_parts)
        except Exception as error:  # a template may raise whatever it likes
            roles = ", ".join(message["role"] for message in messages)
            raise FeedbackError(
                f"{self.name}: its chat template refuses a conversation with the turns {roles}: "
                f"{str(error) or type(error).__name__}. Give a template that takes them, as in ?template=FILE.jinja"
            ) from error
        text += next((lead for end, lead in self.leads.items() if text.endswith(end)), "") + then
        ids = self.tokens.unmasked(text, meaning) if meaning else self.tokens.parsed(text)
        return {"input_ids": [*self.begins, *ids]}

    def _by_template(self, messages: Sequence[Mapping[str, Any]], *, as_parts: bool) -> str:
        if as_parts:
            messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=self.opens,
                continue_final_message=self.continues,
                **self.arguments,
            )
        )

    def _needs_parts(self) -> bool:
        """Whether the template shows an answer only where contents are lists of parts, as that of some guards does."""
        reason = ""
        for as_parts in (False, True):
            try:
                text = self._by_template(_SAMPLE, as_parts=as_parts)
            except Exception as error:  # a template may raise whatever it likes
                reason = reason or f" ({str(error) or type(error).__name__})"
                continue
            if _SAMPLE[-1]["content"] in text:
                return as_parts
        raise ConfigError(
            f"{self.name}: its chat template does not show the answer to a question{reason}. Give one that does, as in "
            "?template=FILE.jinja"
        )


def _answers(completion: Completion) -> list[Message]:
    if completion.turns:
        return [turn.message for turn in completion.turns]
    return [{"role": "assistant", "content": completion.text}]


def window_of(tokenizer: Any, config: Any, asked: int | None, name: str) -> int:
    """How many tokens a model can read: what its tokenizer and configuration say, or less where less is asked for.

    Raises ConfigError where more is asked for.
    """
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = min((int(limit) for limit in limits if limit is not None and limit < _UNBOUNDED), default=_UNBOUNDED)
    if asked is not None and asked > known:
        raise ConfigError(f"{name}: max_tokens={asked}, and the model reads {known} tokens. Give {known} or less")
    return known if asked is None else asked


def usable_device(asked: str | None, name: str) -> Any:
    """The device that is asked for, or the first GPU, or the CPU. Raises ConfigError for one that is not here."""
    import torch

    chosen = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    # torch says "not compiled with CUDA" by AssertionError, and of a device without kernels by NotImplementedError
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name}: device={chosen} cannot be used ({reason:.120}). Here are {here}") from error


def padded(rows: Sequence[Mapping[str, list[int]]], fill: int, *, left: bool = False) -> dict[str, Any]:
    """Rows of token ids as tensors [B, L], filled on the right or left, and the mask of what is not filling."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def filled(values: Sequence[int], by: int) -> list[int]:
        filling = [by] * (width - len(values))
        return [*filling, *values] if left else [*values, *filling]

    found = {
        key: torch.tensor([filled(row[key], fill if key == "input_ids" else 0) for row in rows]) for key in rows[0]
    }
    mask = [filled([1] * len(row["input_ids"]), 0) for row in rows]
    return {**found, "attention_mask": torch.tensor(mask)}


def batches_of(rows: Sequence[Mapping[str, list[int]]], size: int) -> list[list[int]]:
    """The numbers of the rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    return [order[begin : begin + size] for begin in range(0, len(order), size)]
