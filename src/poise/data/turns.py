"""What a chat template does: how it opens an assistant's turn, how it ends one, and which conversations it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

from poise.data.text_tokens import TextTokens, anchors
from poise.errors import ModelError, PoiseError
from poise.types import Message

_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]
_ANSWER = "Good day to you"
ANSWER: Message = {"role": "assistant", "content": _ANSWER}
_TOOL: Message = {"role": "tool", "content": "4"}
_OTHER = "_2"
_LINES = " One line,\n\n and  another .\n"
REMEDY = "give another template (--chat-template FILE, or chat_template= in Python)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The assistant's turn as a template writes it: prompt, opening | lead, answer, tail, end.

    What stands before the bar is the prompt, what stands after it the response.
    """

    end: int  # the token that ends it
    opening: str = ""  # what the template puts before an answer and leaves out where it only opens the turn
    lead: str = ""  # space between the opened turn and the answer
    tail: str = ""  # space between the answer and the end


ONE_ANSWER = f"train on the last answers only (every_turn=False), or {REMEDY}"

Tools = Sequence[Mapping[str, Any]]


def rendered(tokenizer: Any, messages: Sequence[Message], *, open_turn: bool, tools: Tools = ()) -> str:
    """The text of a conversation by the tokenizer's template; ValueError with its reason where it refuses."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=open_turn, tokenize=False
        )
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return str(text)


def left_out(tokenizer: Any, messages: Sequence[Message], tools: Tools) -> str:
    """What the template does not show of system, tools and their calls, in words; "" where it shows all there is.

    A template shows what it renders otherwise when it is another. ValueError where it refuses the conversation.
    """
    others: dict[str, tuple[Sequence[Message], Tools]] = {}
    for role, what in (("system", "what the system turn says"), ("tool", "the turns of tools")):
        if any(message["role"] == role for message in messages):
            said = [{**m, "content": f"{m['content']}{_OTHER}"} if m["role"] == role else m for m in messages]
            others[what] = cast("list[Message]", said), tools
    if any(message.get("tool_calls") for message in messages):
        others["the calls of tools"] = [_calling_others(message) for message in messages], tools
    if tools:
        others["the list of tools"] = messages, ()
    if not others:
        return ""
    own = rendered(tokenizer, messages, open_turn=True, tools=tools)
    found = (
        what for what, (said, known) in others.items() if rendered(tokenizer, said, open_turn=True, tools=known) == own
    )
    return next(found, "")


def _calling_others(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "name": f"{call['function']['name']}{_OTHER}"}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def find_turn(tokenizer: Any, texts: TextTokens, ends: Sequence[int]) -> Turn:
    """How the tokenizer's template opens, fills and ends an assistant's turn; `texts` gets the anchor that it takes.

    Raises ModelError for a template that does not put an answer behind the prompt it opened, or ends it by nothing that
    is called an end.
    """
    name = tokenizer.name_or_path
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"tokenizer {name!r} has no chat template; set tokenizer.chat_template first, or {REMEDY}")
    try:
        head = rendered(tokenizer, _PROBE, open_turn=True)
        whole = rendered(tokenizer, [*_PROBE, ANSWER], open_turn=False)
    except ValueError as error:
        raise ModelError(
            f"the chat template of {name!r} cannot render one question with an answer: {error}. Fix it, or {REMEDY}"
        ) from error
    between, found, rest = whole.removeprefix(head).partition(_ANSWER)
    if not whole.startswith(head) or not found:
        raise _inconsistent(name, head, whole)
    end, tail = _end_of(name, rest, texts.spelt(ends))
    turns = list(_readings(between, tail, end, is_written=bool(rest)))
    expected = texts.parsed(whole)
    for anchor, turn in product(anchors(), turns):
        ids = texts.parsed(head + turn.opening) + texts.anchored(anchor).ids(turn.lead + _ANSWER + turn.tail)
        ids += [end] if rest else []
        if expected[: len(ids)] == ids and _returns(texts, turn, _LINES):
            return turn
    raise _other_tokens(name, texts, head, turns[0], expected)


def role_tokens(tokenizer: Any, texts: TextTokens) -> list[int]:
    """Added tokens that the template writes around turns of any role, and the tokenizer does not call special.

    What it writes into the last answer alone, such as an empty thought, is a model's to say.
    """
    answered = [*_PROBE, ANSWER]
    first: list[list[Message]] = [[], [{"role": "system", "content": "Be kind."}], [*answered, _TOOL], [_TOOL]]
    found: list[int] = []
    for messages in ([*each, *answered, *_PROBE] for each in first):
        try:
            found += texts.parsed(rendered(tokenizer, messages, open_turn=False))
        except ValueError:  # this order of roles is not for this template
            continue
    added = tokenizer.added_tokens_decoder
    return [i for i in dict.fromkeys(found) if i in added and _marks(str(added[i]))]


def _marks(token: str) -> bool:
    """Whether an added token looks like one that marks something: neither a word nor space."""
    return len(token.strip()) > 1 and not token.strip().isalnum()


def _readings(between: str, tail: str, end: int, *, is_written: bool) -> Iterator[Turn]:
    """Where the space around an answer may belong; some end tokens swallow it."""
    blank = between[len(between.rstrip()) :]
    tails = dict.fromkeys([tail, ""]) if is_written else [""]
    for kept in tails:
        if between.strip():
            yield Turn(end=end, opening=between, tail=kept)
            yield Turn(end=end, opening=between.rstrip(), lead=blank, tail=kept)
        else:
            yield Turn(end=end, lead=between, tail=kept)


def _end_of(name: str, rest: str, ends: dict[int, str]) -> tuple[int, str]:
    """The token that ends a turn and the space before it, from what the template renders after an answer."""
    if not ends:
        raise ModelError(
            f"nothing ends a turn of {name!r}: there is no eos token; set tokenizer.eos_token, or eos_token_id in "
            "generation_config.json"
        )
    if not rest:
        return next(iter(ends)), ""
    inner = rest.lstrip()
    fitting = [i for i in ends if inner.startswith(ends[i])]
    if not fitting:
        called = ", ".join(repr(text) for text in ends.values())
        raise ModelError(
            f"the chat template of {name!r} renders {rest!r} after an answer, which does not begin with an end of "
            f"turn: tokenizer and generation_config call {called} an end. Set tokenizer.eos_token, or eos_token_id in "
            f"generation_config.json, to what ends a turn, or {REMEDY}"
        )
    best = max(fitting, key=lambda i: len(ends[i]))
    return best, rest[: len(rest) - len(inner)]


def _returns(texts: TextTokens, turn: Turn, text: str) -> bool:
    return texts.text(texts.ids(turn.lead + text + turn.tail)) == turn.lead + text + turn.tail


def _inconsistent(name: str, head: str, whole: str) -> PoiseError:
    shared = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    begin = max(0, shared - 40)
    if whole.startswith(head):
        what = f"the answer {_ANSWER!r} is rendered as {whole[len(head) :]!r}"
    else:
        what = (
            f"the opened turn continues with {head[shared : shared + 40]!r} but the answered one has "
            f"{whole[shared : shared + 40]!r}, both after {head[begin:shared]!r}"
        )
    return ModelError(
        f"the chat template of {name!r} is not prefix-consistent: a prompt does not begin the same prompt with an "
        f"answer; {what}. Put the answer right after the opened turn, or {REMEDY}"
    )


def _other_tokens(name: str, texts: TextTokens, head: str, turn: Turn, expected: Sequence[int]) -> PoiseError:
    """The error for a template whose text fits and whose tokens do not."""
    apart = texts.anchored("").ids(turn.lead + _ANSWER + turn.tail)
    ids = texts.parsed(head + turn.opening) + apart
    at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
    if at is None:
        return ModelError(
            f"the tokenizer of {name!r} does not decode its own tokens to the same text: {_LINES!r} is decoded as "
            f"{texts.text(texts.ids(_LINES))!r}, so encoding would change the answers"
        )
    begin = max(0, at - 1)
    own, other = (_spelling(texts, each[begin : at + 3]) for each in (ids, expected))
    return ModelError(
        f"the chat template of {name!r} is not prefix-consistent in tokens: prompt and answer apart are {own}, "
        f"together {other}. A prompt that ends with a space before the answer causes this: end it before the "
        f"space, or {REMEDY}"
    )


def _spelling(texts: TextTokens, ids: Iterable[int]) -> str:
    decode = texts.tokenizer.decode
    return " + ".join(
        repr(str(decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False))) for i in ids
    )
