"""Responses of several turns: an engine answers, an environment replies, the engine goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from poise.data.chat import ChatRenderer
from poise.errors import ConfigError, EngineError
from poise.messages import Message, RolloutTurn, text_of
from poise.rollout.engine import check_completions, check_sampling, sample_numbers
from poise.types import Completion, Engine, Prompt, Sampling


@runtime_checkable
class Environment(Protocol):
    """The other side of a conversation with the policy: a tool, a simulated user, a game."""

    def reply(self, prompt: Prompt, messages: Sequence[Message]) -> Message | None:
        """The reply to the last of `messages`, which follow the prompt; None ends the conversation."""
        ...


class ScriptedEnvironment:
    """Fixed replies in one role: the first reply to the first answer, and so on.

    >>> environment = ScriptedEnvironment(["Are you sure?"])
    >>> environment.reply(Prompt.of("2 + 2?"), [{"role": "assistant", "content": "5"}])
    {'role': 'user', 'content': 'Are you sure?'}
    """

    def __init__(self, replies: Sequence[str], *, role: str = "user"):
        self.replies, self.role = tuple(replies), role

    def reply(self, prompt: Prompt, messages: Sequence[Message]) -> Message | None:
        """The reply to the answer with this number; None after the last reply."""
        number = sum(message["role"] == "assistant" for message in messages)
        return None if number > len(self.replies) else {"role": self.role, "content": self.replies[number - 1]}


class ConversationEngine:
    r"""An engine whose completions are conversations with an environment.

    A conversation ends when the environment has no reply, after `max_turns` answers, when an answer is cut at
    `Sampling.max_tokens` (which applies to each answer), or when the next answer would not fit into the context of the
    model. Engines that continue from token ids (`NativeEngine`, `VLLMEngine`) sample every answer after the exact
    tokens sampled before, and the completion has all of them. Other engines receive the conversation as text, and the
    trainer computes its own log-probabilities. Raises ConfigError if `max_turns` is below 1.

    >>> from poise.rollout.scripted import ScriptedEngine
    >>> engine = ConversationEngine(ScriptedEngine({"2 + 2?": "5", "Sure?": "4"}), ScriptedEnvironment(["Sure?"]))
    >>> (completion,) = engine.generate([Prompt.of("2 + 2?")], Sampling())
    >>> [text_of(turn.message) for turn in completion.turns], completion.text
    (['5', 'Sure?', '4'], '5\n\n4')
    """

    def __init__(self, engine: Engine, environment: Environment, *, max_turns: int = 4):
        if max_turns < 1:
            raise ConfigError(f"max_turns={max_turns}: a conversation needs at least 1 answer")
        self.engine, self.environment, self.max_turns = engine, environment, max_turns

    @property
    def policy(self) -> Any:
        """The policy whose weights the engine uses; None for an engine with other weights."""
        return getattr(self.engine, "policy", None)

    @property
    def reference(self) -> bool:
        """Whether it samples from the reference."""
        return bool(getattr(self.engine, "reference", False))

    @property
    def renderer(self) -> ChatRenderer | None:
        """The renderer of the engine, if it has one."""
        return getattr(self.engine, "renderer", None)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """`sampling.samples` adjacent conversations per prompt; one with a single answer is the engine's completion.

        Raises ConfigError for choices with several turns, EngineError for a reply with the role assistant, and
        DataError for a conversation that the chat template rejects.
        """
        check_sampling(sampling)
        if sampling.choices and self.max_turns > 1:
            raise ConfigError("choices need a single answer: use the engine itself, or set max_turns=1")
        draws = sample_numbers(prompts, sampling.samples)
        first = self.engine.generate(prompts, sampling)
        talks = [_Talk(prompt, draw, each) for (prompt, _, draw), each in zip(draws, first, strict=True)]
        for _ in range(1, self.max_turns):
            going_on = [talk for talk in talks if self._hears(talk, sampling)]
            if not going_on:
                break
            answers = self._answers(going_on, replace(sampling, samples=1))
            for talk, answer in zip(going_on, answers, strict=True):
                talk.answers.append(answer)
        return check_completions(prompts, [talk.completion(exact=self._is_exact) for talk in talks], sampling)

    @property
    def _is_exact(self) -> bool:
        return hasattr(self.engine, "generate_rows") and self.renderer is not None

    def _hears(self, talk: _Talk, sampling: Sampling) -> bool:
        """Whether the conversation goes on; the reply is then a part of it."""
        if talk.is_over:
            return False
        reply = self.environment.reply(talk.prompt, talk.messages)
        if reply is None:
            talk.ended = True
            return False
        if reply["role"] == "assistant":
            raise EngineError(
                f"the environment {type(self.environment).__name__} replied as the assistant, but only the policy "
                "may do that: reply as the user or as a tool"
            )
        talk.hear(reply, self._reply_ids(talk, reply))
        if self._is_exact and self._is_too_long(talk, sampling):
            talk.forget_reply()
            return False
        return True

    def _reply_ids(self, talk: _Talk, reply: Message) -> tuple[int, ...]:
        """The reply's tokens with what the template puts around it, up to the policy's next word."""
        renderer, last = self.renderer, talk.answers[-1].token_ids
        if renderer is None or not self._is_exact:
            return ()
        end = () if last and last[-1] in renderer.stop_ids else (renderer.end_of_turn,)  # after a text that ends it
        before = [*talk.prompt.messages, *talk.messages[:-1]]
        return (*end, *renderer.reply_ids(before, [reply], talk.prompt.tools))

    def _is_too_long(self, talk: _Talk, sampling: Sampling) -> bool:
        context = getattr(self.engine, "context", None)
        return context is not None and len(self._row(talk)) + sampling.max_tokens > context

    def _row(self, talk: _Talk) -> list[int]:
        """All that the model has read before its next answer."""
        renderer = self.renderer
        assert renderer is not None
        head = renderer.prompt_ids(talk.prompt.messages, talk.prompt.tools)[0]
        return head + [token for turn in talk.turns for token in turn.token_ids]

    def _answers(self, talks: Sequence[_Talk], sampling: Sampling) -> list[Completion]:
        prompts = [talk.so_far for talk in talks]
        if not self._is_exact:
            return self.engine.generate(prompts, sampling)
        goes_on: Any = self.engine
        found: list[Completion] = goes_on.generate_rows(prompts, [self._row(talk) for talk in talks], sampling)
        return found


class _Talk:
    """A conversation under way."""

    def __init__(self, prompt: Prompt, draw: int, first: Completion):
        self.prompt, self.draw = prompt, draw
        self.answers, self.replies = [first], list[RolloutTurn]()
        self.is_cut = self.ended = False

    @property
    def is_over(self) -> bool:
        return self.ended or self.is_cut or self.answers[-1].finish != "stop"

    def hear(self, reply: Message, token_ids: tuple[int, ...]) -> None:
        self.replies.append(RolloutTurn(message=reply, token_ids=token_ids))

    def forget_reply(self) -> None:
        self.replies.pop()
        self.is_cut = True

    @property
    def turns(self) -> list[RolloutTurn]:
        """All turns after the prompt."""
        turns = []
        for number, answer in enumerate(self.answers):
            message: Message = {"role": "assistant", "content": answer.text}
            turns.append(RolloutTurn(message=message, token_ids=answer.token_ids, token_logprobs=answer.token_logprobs))
            turns += self.replies[number : number + 1]
        return turns

    @property
    def messages(self) -> list[Message]:
        return [turn.message for turn in self.turns]

    @property
    def so_far(self) -> Prompt:
        """The conversation as a prompt, whose draws are its own."""
        name = f"{self.prompt.id}/{self.draw}/{len(self.answers)}"
        return replace(self.prompt, id=name, messages=(*self.prompt.messages, *self.messages))

    def completion(self, *, exact: bool) -> Completion:
        """The conversation as one completion; without exact tokens it has none at all."""
        first, last = self.answers[0], self.answers[-1]
        if len(self.answers) == 1:
            return replace(first, finish="length") if self.is_cut else first
        if last.finish == "error":
            return replace(last, prompt_id=first.prompt_id, sample=first.sample)
        bare: Mapping[str, Any] = {} if exact else {"token_ids": (), "token_logprobs": ()}
        turns = tuple(replace(turn, **bare) for turn in self.turns)
        said = [turn for turn in turns if turn.is_sampled]
        known = all(len(turn.token_logprobs) == len(turn.token_ids) for turn in said)
        return replace(
            first,
            text="\n\n".join(text_of(turn.message) for turn in said),
            turns=turns,
            token_ids=tuple(token for turn in said for token in turn.token_ids),
            token_logprobs=tuple(value for turn in said for value in turn.token_logprobs) if known else (),
            finish="length" if self.is_cut else last.finish,
        )
