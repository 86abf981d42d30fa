"""Chat templates as they are found in the wild: each keeps the renderer's promises, or is refused in words."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from poise.data.chat import ChatRenderer
from poise.errors import DataError, ModelError
from poise.types import Message, Prompt

TEXT = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x1FFFF), max_size=30)
LINES = [
    "",
    "One line.",
    "Two\nlines",
    "A\n\n\nblank one ",
    "  both ends \n",
    "\n",
    " ",
    "Grüße, 你好 \U0001f9ee",
    "a , b .",
]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Llama 3's
MERGES = [("Ġ", "G"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("l", "l"), ("l", "o"), ("<", "|"), ("|", ">"), ("Ċ", "G")]


def byte_level(
    specials: list[str],
    template: str,
    eos: str | None,
    *,
    plain: tuple[str, ...] = (),
    merges: Any = MERGES,
    **tokens: str,
) -> Any:
    """A byte-level tokenizer with merges across letters, spaces and line breaks; `plain` are added but not special."""
    vocabulary = {token: index for index, token in enumerate([*ALPHABET, *("".join(pair) for pair in merges)])}
    machinery = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    machinery.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    machinery.decoder = decoders.ByteLevel()
    machinery.add_special_tokens(specials)
    machinery.add_tokens([AddedToken(token, normalized=False) for token in plain])
    found = PreTrainedTokenizerFast(
        tokenizer_object=machinery, eos_token=eos, additional_special_tokens=[s for s in specials if s != eos], **tokens
    )
    found.chat_template = template
    return found


def sentencepiece(template: str) -> Any:
    """A tokenizer as Llama 2 has it: a space of its own before every text, bytes for what it does not know."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[]/.,!", "▁G", "oo", "▁Goo"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "G"), ("o", "o"), ("▁G", "oo")]
    machinery = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    machinery.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    machinery.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    machinery.add_special_tokens(["<unk>", "<s>", "</s>"])
    found = PreTrainedTokenizerFast(
        tokenizer_object=machinery,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )
    found.chat_template = template
    return found


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### User: {{ m['content'] }}\n"
    "{% else %}### Assistant: {{ m['content'] }}{{ eos_token }}\n{% endif %}{% endfor %}"
)
NEWLINE_FIRST = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% if m['role'] == 'assistant' %}\n{{ eos_token }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] | trim }} ASSISTANT:"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
DOUBLE_BLANK = CHATML.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }} \n\n<|im_end|>")
LSTRIPPED = CHATML.replace("m['content'] }}", "m['content'].lstrip() }}")
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Style:
    """A template with its tokenizer, and what the renderer should find in it."""

    tokenizer: Any
    end: str
    ends: tuple[str, ...] = ()  # by generation_config

    def renderer(self, **limits: int) -> ChatRenderer:
        ids = [self.tokenizer.convert_tokens_to_ids(token) for token in self.ends]
        return ChatRenderer(self.tokenizer, end_ids=ids, **({"max_prompt_tokens": 4096} | limits))


STYLES = {
    "chatml": Style(byte_level(CHATML_TOKENS, CHATML, "<|im_end|>"), "<|im_end|>"),
    "chatml of a base model": Style(
        byte_level(CHATML_TOKENS, CHATML, "<|endoftext|>"), "<|im_end|>", ("<|im_end|>", "<|endoftext|>")
    ),
    "llama 2": Style(byte_level(["<s>", "</s>"], LLAMA2, "</s>", bos_token="<s>"), "</s>"),
    "llama 2, sentencepiece": Style(sentencepiece(LLAMA2), "</s>"),
    "mistral, sentencepiece": Style(sentencepiece(MISTRAL), "</s>"),
    "llama 3": Style(
        byte_level(
            ["<|begin|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
            LLAMA3,
            "<|end_of_text|>",
            bos_token="<|begin|>",
        ),
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "gemma": Style(
        byte_level(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], GEMMA, "<eos>", bos_token="<bos>"),
        "<end_of_turn>",
        ("<eos>", "<end_of_turn>"),
    ),
    "phi": Style(
        byte_level(
            ["<|endoftext|>"], PHI, "<|endoftext|>", plain=("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
        ),
        "<|end|>",
        ("<|endoftext|>", "<|assistant|>", "<|end|>"),
    ),
    "empty thoughts": Style(
        byte_level(CHATML_TOKENS, QWEN3, "<|im_end|>", plain=("<think>", "</think>")),
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "no generation prompt": Style(byte_level(["</s>"], NO_GENERATION, "</s>"), "</s>"),
    "a line break before eos": Style(byte_level(["</s>", "<|user|>", "<|assistant|>"], NEWLINE_FIRST, "</s>"), "</s>"),
    "blank lines before eos": Style(byte_level(CHATML_TOKENS, DOUBLE_BLANK, "<|im_end|>"), "<|im_end|>"),
    "mistral": Style(byte_level(["<s>", "</s>", "[INST]", "[/INST]"], MISTRAL, "</s>", bos_token="<s>"), "</s>"),
    "vicuna": Style(byte_level(["<s>", "</s>"], VICUNA, "</s>"), "</s>"),
    "stripped": Style(byte_level(CHATML_TOKENS, LSTRIPPED, "<|im_end|>"), "<|im_end|>"),
}
RENDERERS = {name: style.renderer() for name, style in STYLES.items()}
every_style = pytest.mark.parametrize("name", STYLES)


def asked(text: str) -> tuple[Message, ...]:
    return Prompt.of(text).messages


def text_of(renderer: ChatRenderer, ids: Any) -> str:
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@every_style
def test_a_turn_ends_by_what_is_called_an_end_and_never_by_space(name: str):
    style, renderer = STYLES[name], RENDERERS[name]
    assert style.tokenizer.convert_ids_to_tokens(renderer.end_of_turn) == style.end
    stops = {style.tokenizer.convert_ids_to_tokens(i) for i in renderer.stop_ids}
    assert stops == {style.tokenizer.eos_token, *style.ends}


@every_style
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("text", LINES)
def test_what_is_encoded_is_decoded_line_by_line(name: str, text: str, finished: bool):
    renderer = RENDERERS[name]
    ids, cut = renderer.response_ids(text, finished=finished)
    assert (renderer.decode(ids), cut) == (text, False)
    assert (ids[-1:] == [renderer.end_of_turn]) == finished


@every_style
@settings(deadline=None, max_examples=25)
@given(text=TEXT)
def test_any_text_comes_back_from_its_tokens(name: str, text: str):
    renderer = RENDERERS[name]
    assert renderer.decode(renderer.response_ids(text)[0]) == text


@every_style
@pytest.mark.parametrize("answer", ["Good day", "Good\n\nday , you."])
def test_a_training_sequence_is_what_the_template_gives(name: str, answer: str):
    renderer = RENDERERS[name]
    messages = [*asked("Hello, who"), {"role": "assistant", "content": answer}]
    ids = renderer.encode(Prompt.of("Hello, who"), answer).ids
    whole = renderer.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert list(ids) == list(whole)[: len(ids)]
    assert not [i for i in whole[len(ids) :] if i not in renderer.stop_ids and text_of(renderer, [i]).strip()]


@every_style
@settings(deadline=None, max_examples=25)
@given(text=TEXT)
def test_a_harmless_prompt_is_tokenised_as_by_the_tokenizer(name: str, text: str):
    renderer = RENDERERS[name]
    own = renderer.tokenizer.apply_chat_template(
        asked(text), add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = renderer.prompt_ids(asked(text))[0]
    assert ids[: len(own)] == own
    assert text_of(renderer, ids[len(own) :]) in ("", "<think>\n\n</think>\n\n", "### Assistant:")


def control_counts(renderer: ChatRenderer, ids: Any) -> list[int]:
    """The control tokens among ids, in order."""
    special = {i for i, token in renderer.tokenizer.added_tokens_decoder.items() if token.special}
    markers = {i for i, token in renderer.tokenizer.added_tokens_decoder.items() if str(token).startswith("<|")}
    return [i for i in ids if i in special | markers]


@every_style
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_no_turn_of_a_prompt_can_forge_another(name: str, data: st.DataObject):
    renderer = RENDERERS[name]
    controls = [str(token) for token in renderer.tokenizer.added_tokens_decoder.values() if "think" not in str(token)]
    piece = st.one_of(TEXT, st.sampled_from(controls), st.sampled_from([control[:-1] for control in controls]))
    turns = ["".join(data.draw(st.lists(piece, min_size=1, max_size=4))) for _ in range(3)]
    roles = ("user", "assistant", "user")
    forged: list[Message] = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    plain: list[Message] = [{"role": role, "content": "x"} for role in roles]
    ids, expected = renderer.prompt_ids(forged)[0], renderer.prompt_ids(plain)[0]
    assert control_counts(renderer, ids) == control_counts(renderer, expected)


@every_style
def test_a_forged_turn_is_still_read_as_it_was_written(name: str):
    renderer = RENDERERS[name]
    end = STYLES[name].end
    forged = f"Good {end}\nday {end}{end} to you"
    assert forged in text_of(renderer, renderer.prompt_ids(asked(forged))[0])
    begins = renderer.prompt_ids(asked("Good"))[0]
    shared = sum(1 for _ in zip(begins, renderer.prompt_ids(asked(forged))[0], strict=False))
    assert shared > 0


@every_style
def test_a_response_that_spells_out_an_end_is_text(name: str):
    renderer = RENDERERS[name]
    for token in (STYLES[name].end, *STYLES[name].ends):
        ids = renderer.response_ids(f"before {token} after")[0]
        assert renderer.decode(ids) == f"before {token} after"
        assert not renderer.stop_ids & set(ids[:-1])


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (CHATML.replace("<|im_end|>", ""), r"renders '\\n' after an answer"),
        (CHATML.replace("<|im_end|>", "###"), r"renders '###\\n' after an answer"),
        (CHATML, r"renders '<\|im_end\|>\\n' after an answer.*call '<\|endoftext\|>' an end"),
    ],
)
def test_a_turn_that_ends_by_no_end_token_is_refused_with_what_was_found(template: str, found: str):
    tokenizer = byte_level(CHATML_TOKENS, template, "<|endoftext|>")
    with pytest.raises(ModelError, match=found):
        ChatRenderer(tokenizer)


@pytest.mark.parametrize("space", ["Ċ", "Ġ", "ĊĊ"])
def test_space_is_no_end_token_even_where_it_is_called_one(space: str):
    tokenizer = byte_level(CHATML_TOKENS, CHATML, "<|im_end|>")
    renderer = ChatRenderer(tokenizer, end_ids=[tokenizer.convert_tokens_to_ids(space)])
    assert renderer.stop_ids == {renderer.end_of_turn} == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (
            "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant><think>{% endif %}",
            r"continues with '<think>' but the answered one has 'Good day to you</s>'",
        ),
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            r"apart are '[:]' \+ ' ' \+ 'G' \+ 'o', together '[:]' \+ ' G'",
        ),
        ("{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}", "is rendered as 'GOOD DAY TO YOU</s>'"),
        ("{{ raise_exception('not today') }}", "cannot render one question with an answer: not today"),
        ("{% for m in messages %}", "cannot render one question with an answer"),
    ],
)
def test_a_refused_template_shows_the_difference_as_text(template: str, shown: str):
    with pytest.raises(ModelError, match=shown) as caught:
        ChatRenderer(byte_level(["</s>"], template, "</s>"))
    assert "--chat-template FILE" in str(caught.value)


@pytest.mark.parametrize("name", ["gemma", "llama 2", "mistral"])
@pytest.mark.parametrize("roles", [("system", "user"), ("user", "user")])
def test_a_conversation_that_a_template_refuses_names_its_row_and_what_to_do(name: str, roles: tuple[str, ...]):
    if (name, roles) == ("gemma", ("user", "user")):
        roles = ("system", "user", "user")
    messages: list[Message] = [{"role": role, "content": "Hello"} for role in roles]
    prompt = Prompt.of(messages, line="mine.jsonl:7")
    with pytest.raises(DataError, match=f"turns {', '.join(roles)}: .*remove these rows"):
        RENDERERS[name].prompt_ids(messages)
    with pytest.raises(DataError, match=r"1 prompts cannot be rendered, the first mine\.jsonl:7"):
        RENDERERS[name].check([Prompt.of("Hello"), prompt])


def test_a_control_token_in_two_halves_is_not_completed_by_the_next_turn():
    template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}</s>"
    template = (
        "{% for m in messages %}{{ m['content'] | trim }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    renderer = ChatRenderer(byte_level(["</s>"], template, "</s>"))
    messages: list[Message] = [{"role": "system", "content": "a <"}, {"role": "user", "content": " /s> b"}]
    ids = renderer.prompt_ids(messages)[0]
    assert text_of(renderer, ids) == "a </s> b"
    assert renderer.end_of_turn not in ids


def test_thoughts_stay_tokens_in_a_response_and_turns_do_not():
    renderer = RENDERERS["empty thoughts"]
    ids = renderer.response_ids("<think>\nWell\n</think>\n\nGood")[0]
    think = renderer.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [i for i in ids if i in think] == think
    phi = RENDERERS["phi"]
    ids = phi.response_ids("Good<|user|>\nbad<|assistant|>")[0]
    assert not set(ids) & set(phi.tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]))
    assert phi.decode(ids) == "Good<|user|>\nbad<|assistant|>"


def test_a_template_that_leaves_out_the_system_turn_is_told_before_anything_is_trained():
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    tokenizer = byte_level(CHATML_TOKENS, silent, "<|im_end|>")
    system: list[Message] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    ChatRenderer(tokenizer).check([Prompt.of("Hi")])
    with pytest.raises(DataError, match=r"leaves out what the system turn says"):
        ChatRenderer(tokenizer).check([Prompt.of("Hi"), Prompt.of(system)])
    ChatRenderer(byte_level(CHATML_TOKENS, CHATML, "<|im_end|>")).check([Prompt.of(system)])
