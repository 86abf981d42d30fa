"""Rows with tools and with parts of content, as OpenAI's files and their relatives have them."""

import json

import pytest

from poise.data import load
from poise.data.lint import lint
from poise.data.rollouts import read_rollouts, write_rollouts
from poise.data.splits import without_splits
from poise.types import Completion, Rollout, RolloutTurn, Scores

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "Four."}


def call(arguments='{"a": 2}', name="add", **more):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}} | more


def calling(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def tool(content="4", name="c1"):
    return {"role": "tool", "tool_call_id": name, "content": content}


FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.fixture
def read(write_rows):
    return lambda *rows: load(write_rows("mine.jsonl", list(rows)))


def test_calls_answers_and_the_list_of_tools_are_kept_as_templates_know_them(read):
    tools = [{"type": "function", "function": FUNCTION}]
    (shown,) = read({"messages": [USER, calling(call()), tool(), ANSWER], "tools": tools}).demonstrations
    known = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    assert shown.prompt.messages == (
        USER,
        {"role": "assistant", "content": "", "tool_calls": [known]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    )
    assert (shown.response, shown.prompt.tools, shown.prompt.text) == ("Four.", tuple(tools), "2 + 2?")


def test_an_answer_that_is_a_call_is_a_demonstration_of_it(read):
    (shown,) = read({"messages": [USER, calling(call())], "tools": json.dumps([FUNCTION])}).demonstrations
    assert shown.response == "" and shown.tool_calls[0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert shown.prompt.tools == ({"type": "function", "function": FUNCTION},)


def test_older_files_and_sharegpts_names_are_read_alike(read):
    older = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}
    answered = {"role": "function", "name": "add", "content": "4"}
    (shown,) = read({"messages": [USER, older, answered, ANSWER], "functions": [FUNCTION]}).demonstrations
    assert shown.prompt.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {}}}
    ]
    assert shown.prompt.messages[2] == {"role": "tool", "content": "4", "name": "add"}


def test_turns_of_weight_0_are_passed_over(read):
    silent = {**ANSWER, "weight": 0}
    (shown,) = read({"system": "Count.", "messages": [USER, silent, USER, ANSWER, USER, ANSWER]}).demonstrations
    assert shown.passed_over == (2,) and shown.prompt.messages[2]["content"] == "Four."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, calling(call()), ANSWER]}, "turn 3 is the assistant's where the tool's is due"),
        ({"messages": [USER, calling(call()), tool(name="c9"), ANSWER]}, "answers the call 'c9'"),
        ({"messages": [USER, calling(call("{a: 2}")), tool(), ANSWER]}, "as JSON text"),
        ({"messages": [USER, calling(call("[2]")), tool(), ANSWER]}, "function.arguments should be a valid dict"),
        ({"messages": [USER, calling(call(name=" ")), tool(), ANSWER]}, "name is empty"),
        ({"messages": [USER, calling({"id": "c1"}), tool(), ANSWER]}, "function"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}, USER, ANSWER]}, "content"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "should be a list of tools"),
        ({"messages": [USER, ANSWER], "tools": "add"}, "as JSON text"),
        ({"messages": [USER, calling(call())], "label": True}, "only a demonstration can contain"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "image reference"),
        ({"messages": [{"role": "user", "content": []}, ANSWER]}, "should be text, or parts"),
        ({"messages": [{"role": "user", "content": [{"text": "Hi"}]}, ANSWER]}, "should be text, or parts"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image", "url": "a"}]}]}, "reads only text"),
        ({"prompt": [USER], "chosen": [calling(call())], "rejected": [ANSWER]}, "only a demonstration can contain"),
    ],
)
def test_rows_that_cannot_be_kept_are_bad_rows_with_their_reason(write_rows, row, reason):
    good = {name: [USER] if name == "prompt" else [USER, ANSWER] for name in row} | {"messages": [USER, ANSWER]}
    if "chosen" in row:
        good = {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Five."}]}
    else:
        good = {"messages": [USER, ANSWER]}
    found = load(write_rows("mine.jsonl", [good, good | {"n": 2}, row]))
    (bad,) = found.bad_rows
    assert bad.line == 3 and reason in bad.reason


def test_parts_are_joined_where_all_are_text_and_kept_where_one_is_an_image(read):
    text, image = {"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "a.png"}}
    rows = [{"messages": [{"role": "user", "content": parts}, ANSWER]} for parts in ([text], [text, image])]
    plain, seen = (each.prompt for each in read(*rows).demonstrations)
    assert plain.messages[0]["content"] == "What is it?"
    assert seen.messages[0]["content"] == [text, image] and seen.text == "What is it?[image_url]"
    assert lint(read(*rows)).lines()


def test_rollouts_of_several_turns_are_read_back_as_they_were(tmp_path, read):
    (prompt,) = read({"messages": [USER, calling(call()), tool()], "tools": [FUNCTION]}).prompts
    turns = (
        RolloutTurn(message={"role": "assistant", "content": "Hm"}, token_ids=(1, 2), token_logprobs=(-1.0, -2.0)),
        RolloutTurn(message={"role": "user", "content": "So?"}, token_ids=(3,)),
        RolloutTurn(message={"role": "assistant", "content": "4"}, token_ids=(4,), token_logprobs=(-0.5,)),
    )
    said = Completion(
        prompt_id=prompt.id, text="Hm\n\n4", turns=turns, token_ids=(1, 2, 4), token_logprobs=(-1, -2, -0.5)
    )
    rollout = Rollout(prompt=prompt, completion=said, scores=Scores(values={"reward": 1.0}))
    write_rollouts(tmp_path / "rollouts.jsonl", [rollout])
    assert read_rollouts(tmp_path / "rollouts.jsonl") == (rollout,)


def test_tools_and_calls_stay_when_a_set_is_split_anew_and_a_call_is_no_empty_answer(read):
    dataset = read({"messages": [USER, calling(call())], "tools": [FUNCTION], "split": "train"})
    (shown,) = without_splits(dataset).demonstrations
    assert shown.prompt.tools == dataset.demonstrations[0].prompt.tools != ()
    assert shown.tool_calls == dataset.demonstrations[0].tool_calls != ()
    assert lint(dataset)["empty_responses"].count == 0
