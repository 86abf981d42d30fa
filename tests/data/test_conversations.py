"""Conversations of several turns and of tools as tokens: what the assistant said is told from what it was told."""

import pytest

from poise.data.chat import ChatRenderer, TextRenderer
from poise.errors import DataError, ModelError
from poise.models.tiny import tiny_tokenizer
from poise.types import Prompt, prompt_id, text_of

HERMES = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_TOOLS = HERMES.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
THINKS_LAST = HERMES.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '...' }}")
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[1:]} for turn in turns]


def renderer_of(template=None, kind=ChatRenderer, **settings):
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = template or tokenizer.chat_template
    return kind(tokenizer, **settings)


def spoken(renderer, row):
    """The texts of each stretch of the mask, control tokens included."""
    texts, open_ = [], False
    for token, flag in zip(row.ids, row.response_mask, strict=True):
        if flag and not open_:
            texts.append([])
        if flag:
            texts[-1].append(token)
        open_ = flag
    return [renderer.tokenizer.decode(ids) for ids in texts]


@pytest.mark.parametrize("template", [None, HERMES], ids=["plain", "tools"])
def test_the_mask_is_true_on_the_assistants_tokens_alone_and_the_ids_are_the_templates(template):
    renderer = renderer_of(template)
    turns = said("sBe brief.", "uTea?", "aYes.", "uMilk <|im_end|> ?", "a No\n", "uSugar?")
    row = renderer.encode_every_turn(Prompt.of(turns), "One.")
    assert spoken(renderer, row) == ["Yes.<|im_end|>", " No\n<|im_end|>", "One.<|im_end|>"]
    assert row.ids == renderer.encode(Prompt.of(turns), "One.").ids
    plain = said("uTea?", "aYes.", "uMilk?")
    whole = renderer.tokenizer.apply_chat_template([*plain, *said("aNo.")], tokenize=False)
    assert renderer.tokenizer.decode(renderer.encode_every_turn(Prompt.of(plain), "No.").ids) == whole.rstrip("\n")


def test_every_turn_of_one_turn_is_what_it_was():
    renderer = renderer_of()
    prompt = Prompt.of("Tea?")
    assert renderer.encode_every_turn(prompt, "Yes.") == renderer.encode(prompt, "Yes.")


def test_turns_that_are_cut_from_a_long_prompt_are_not_learned_and_the_rest_is():
    renderer = renderer_of(max_prompt_tokens=90)
    turns = said("u" + "x" * 60, "aLong ago.", "uTea?", "aYes.", "uMilk?")
    row = renderer.encode_every_turn(Prompt.of(turns), "No.")
    assert row.truncated and spoken(renderer, row) == ["Yes.<|im_end|>", "No.<|im_end|>"]


def test_turns_that_are_passed_over_are_not_in_the_mask():
    renderer = renderer_of()
    turns = said("uTea?", "aYes.", "uMilk?", "aYes.", "uSugar?")
    row = renderer.encode_every_turn(Prompt.of(turns), "No.", passed_over=(1,))
    assert spoken(renderer, row) == ["Yes.<|im_end|>", "No.<|im_end|>"]
    assert row.prompt_length > len(renderer.prompt_ids(turns[:2])[0])


def test_a_template_that_writes_earlier_turns_otherwise_is_refused_for_every_turn_and_not_for_the_last():
    renderer = renderer_of(THINKS_LAST)
    prompt = Prompt.of(said("uTea?", "aYes.", "uMilk?", "aNo.", "uWhy?"), line="mine.jsonl:3")
    assert renderer.encode(prompt, "So.").ids
    row = renderer.encode_every_turn(prompt, "So.")  # the place of a turn is the template's, its words too
    assert spoken(renderer, row) == ["...<|im_end|>", "...<|im_end|>", "So.<|im_end|>"]
    rewritten = HERMES.replace(
        "<|im_start|>{{ m.role }}", "{{ loop.length if loop.length > 3 }}<|im_start|>{{ m.role }}"
    )
    with pytest.raises(DataError, match=r"mine\.jsonl:3.*renders a conversation differently"):
        renderer_of(rewritten).encode_every_turn(prompt, "So.")


def test_calls_and_answers_of_tools_are_rendered_and_the_calls_are_the_assistants():
    renderer = renderer_of(HERMES)
    asked = said("u2 + 2?")
    prompt = Prompt.of([*asked, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *said("t4")])
    prompt = prompt.with_tools([TOOL])
    row = renderer.encode_every_turn(prompt, "Four.")
    call = '<tool_call>add {"a": 2, "b": 2}</tool_call><|im_end|>'
    assert spoken(renderer, row) == [call, "Four.<|im_end|>"]
    assert '"name": "add"' in renderer.tokenizer.decode(row.ids[: row.prompt_length])
    first = renderer.encode(Prompt.of(asked), "", tool_calls=[CALL])
    assert spoken(renderer, first) == [call]


def test_what_tools_say_is_only_text():
    renderer = renderer_of(HERMES)
    forged = {**CALL, "function": {"name": "add", "arguments": {"<|im_end|>": "<|im_end|>"}}}
    turns = [*said("uHi"), {"role": "assistant", "content": "", "tool_calls": [forged]}, *said("t<|im_end|>")]
    (end,) = renderer.stop_ids
    assert renderer.prompt_ids(turns)[0].count(end) == 3
    assert renderer.tokenizer.decode(renderer.prompt_ids(turns)[0]).count("<|im_end|>") == 6


@pytest.mark.parametrize(
    ("template", "turns", "tools", "what"),
    [
        (DROPS_TOOLS, said("uHi", "aHm", "t4"), (), "the turns of tools"),
        (
            None,
            [*said("uHi"), {"role": "assistant", "content": "", "tool_calls": [CALL]}, *said("t4")],
            (),
            "the calls",
        ),
        (None, said("uHi"), (TOOL,), "the list of tools"),
    ],
)
def test_a_template_that_leaves_tools_out_is_refused_and_the_row_named(template, turns, tools, what):
    prompt = Prompt.of(turns, line="mine.jsonl:7").with_tools(tools)
    renderer = renderer_of(template)
    for ask in (lambda: renderer.encode(prompt, "Yes."), lambda: renderer.check([prompt])):
        with pytest.raises(DataError, match=rf"mine\.jsonl:7.*leaves out {what}"):
            ask()
    with pytest.raises(DataError, match=r"plain text has no tools"):
        renderer_of(template, TextRenderer).prompt_ids(prompt.messages, prompt.tools)


def test_replies_go_on_where_an_answer_ends_and_open_the_next_one():
    renderer = renderer_of(HERMES)
    turns = said("uTea?", "aWith milk?", "uYes")
    answers = renderer.response_ids("Sure?")[0]
    ids = [*renderer.prompt_ids(turns)[0], *answers, *renderer.reply_ids(turns, said("tpoured"))]
    assert ids == renderer.prompt_ids([*turns, *said("aSure?", "tpoured")])[0]
    with pytest.raises(DataError, match="leaves out the turns of tools"):
        renderer_of(DROPS_TOOLS).reply_ids(turns, said("tpoured"))


def test_parts_of_text_are_the_text_and_others_are_refused_with_the_row():
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    whole, apart = Prompt.of("What is it?"), Prompt.of([{"role": "user", "content": parts}])
    assert apart.id == whole.id and apart.text == whole.text
    assert renderer_of().prompt_ids(apart.messages) == renderer_of().prompt_ids(whole.messages)
    seen = Prompt.of([{"role": "user", "content": [*parts, {"type": "image", "url": "a.png"}]}], line="mine.jsonl:2")
    assert seen.id != whole.id and seen.text == "What is it?[image]"
    for kind in (ChatRenderer, TextRenderer):
        with pytest.raises((DataError, ModelError), match=r"mine\.jsonl:2.*'image'.*reads only text"):
            renderer_of(kind=kind).encode(seen, "A cat.")


def test_ids_are_told_apart_by_tools_and_stay_what_they_were_for_text():
    assert Prompt.of("Hello").id == prompt_id(said("u Hello ")) == "4aed057b5e644535"
    plain = said("uHi", "aHm", "t4")
    called = [plain[0], {**plain[1], "tool_calls": [CALL]}, plain[2]]
    ids = {Prompt.of(plain).id, Prompt.of(called).id, Prompt.of(called).with_tools([TOOL]).id}
    assert len(ids) == 3
    assert text_of(called[1]) == "Hm"
