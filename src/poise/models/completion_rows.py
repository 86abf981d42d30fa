"""Completions as the rows that a score model reads: whole, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from poise.data.chat import ChatRenderer, Encoded
from poise.messages import text_of
from poise.models.load import Backbone
from poise.types import Completion, Prompt


class CompletionReader:
    """Renders completions from their text, within a window for prompts and one for responses, in tokens.

    cuts_prompts  of a prompt longer than the window the last turns that fit are read; else such a one is not judged
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        cuts_prompts: bool = False,
    ):
        self.backbone, self.cuts_prompts = backbone, cuts_prompts
        self.renderer = backbone.renderer(max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens)

    def read(self, prompt: Prompt, completion: Completion) -> Encoded | str:
        """A whole completion as tokens, or why there is none to score."""
        if completion.unfit:
            return completion.unfit
        if completion.turns:
            return self._conversation(prompt, completion)
        head, is_cut = self.renderer.prompt_ids(prompt.messages, prompt.tools)
        if is_cut and not self.cuts_prompts:
            return f"the prompt is longer than the window of {self.renderer.max_prompt_tokens} tokens"
        # a text may have more tokens than it was sampled in, which are those that the window counts
        fits = 0 < len(completion.token_ids) <= self.renderer.max_response_tokens
        tail, is_cut = self.renderer.response_ids(completion.text, finished=False, whole=fits)
        if is_cut:
            return f"longer than the window of {self.renderer.max_response_tokens} tokens"
        return Encoded(ids=(*head, *tail), prompt_length=len(head))

    def _conversation(self, prompt: Prompt, completion: Completion) -> Encoded | str:
        """A completion of several turns as the template writes it, to its last answer; the mask tells the answers."""
        messages = [turn.message for turn in completion.turns]
        last = max(number for number, turn in enumerate(completion.turns) if turn.is_sampled)
        row = self._renderer_of_both.encode_every_turn(
            replace(prompt, messages=(*prompt.messages, *messages[:last])),
            text_of(messages[last]),
            finished=False,
            tool_calls=tuple(messages[last].get("tool_calls", ())),
            passed_over=[number for number, each in enumerate(prompt.messages) if each["role"] == "assistant"],
        )
        window = self._renderer_of_both.max_prompt_tokens
        return f"the conversation is longer than the window of {window} tokens" if row.truncated else row

    @cached_property
    def _renderer_of_both(self) -> ChatRenderer:
        """Its window is that of prompts and that of responses together: a conversation goes on after its prompt."""
        prompt, response = self.renderer.max_prompt_tokens, self.renderer.max_response_tokens
        return self.backbone.renderer(max_prompt_tokens=prompt + response, max_response_tokens=response)


def masks_of(rows: Sequence[Encoded]) -> list[tuple[bool, ...]] | None:
    """Which tokens of each response the assistant said; None where that is all of them."""
    return [row.response_mask[row.prompt_length :] for row in rows] if any(row.mask for row in rows) else None
