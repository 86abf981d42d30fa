"""Conversations with an environment: what is said in them, by which tokens, and where they end."""

import pytest

from imitations import VLLMServer
from poise.data.rollouts import read_completion
from poise.errors import ConfigError, DataError, EngineError
from poise.files import to_jsonable
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy
from poise.rollout.conversation import ConversationEngine, Environment, ScriptedEnvironment
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.rollout.server import ServerEngine
from poise.rollout.vllm import VLLMEngine
from poise.types import Completion, Prompt, Sampling

PROMPTS = [Prompt.of("Hello"), Prompt.of("2 + 2?")]


class Talkative(NativeEngine):
    """A native engine whose answers end by themselves."""

    def generate_rows(self, prompts, encoded, sampling):
        made = super().generate_rows(prompts, encoded, sampling)
        self.read = [list(ids) for ids in encoded]
        return [_ended(each, self.renderer) for each in made]


def _ended(completion, renderer):
    ids = (*completion.token_ids[:-1], renderer.end_of_turn)
    changed = {"token_ids": ids, "text": renderer.decode(ids), "finish": "stop"}
    return Completion(
        **({name: getattr(completion, name) for name in ("prompt_id", "sample", "token_logprobs")} | changed)
    )


def talkative(**settings):
    return Talkative(Policy(load_backbone("random:llama")), **settings)


def test_replies_are_told_to_the_engine_and_kept_between_the_answers():
    script = ScriptedEngine({"Hello": ["Hi", "Yo"], "And?": ["Bye", "Ciao", "So"], "2 + 2?": "5"})
    engine = ConversationEngine(script, ScriptedEnvironment(["And?"]))
    found = engine.generate(PROMPTS, Sampling(samples=2))
    assert [(c.prompt_id, c.sample) for c in found] == [(p.id, s) for p in PROMPTS for s in (0, 1)]
    assert [turn.message["content"] for turn in found[1].turns] == ["Yo", "And?", "Bye"]
    assert [turn.is_sampled for turn in found[1].turns] == [True, False, True]
    assert found[0].text == "Hi\n\nBye" and found[0].token_ids == ()
    asked = [prompt for prompt in script.requests[1][0]]
    assert [message["content"] for message in asked[1].messages] == ["Hello", "Yo", "And?"]
    assert len({prompt.id for prompt in asked}) == 4


def test_a_conversation_ends_without_a_reply_after_its_turns_and_where_an_answer_failed():
    class Cut(ScriptedEngine):
        def generate(self, prompts, sampling):
            finish = {"Hello": "length", "And?": "error"}
            return [
                Completion(prompt_id=p.id, sample=s, text="Hm", finish=finish.get(p.text, "stop"), error="no server")
                for p in prompts
                for s in range(sampling.samples)
            ]

    cut, failed = ConversationEngine(Cut({}), ScriptedEnvironment(["And?", "And?"])).generate(PROMPTS, Sampling())
    assert (cut.text, cut.turns, cut.finish) == ("Hm", (), "length")
    assert (failed.finish, failed.error, failed.prompt_id) == ("error", "no server", PROMPTS[1].id)
    script = ScriptedEngine({}, default="Hm")
    for turns, replies in ((1, 3), (3, 9), (4, 2)):
        engine = ConversationEngine(script, ScriptedEnvironment(["And?"] * replies), max_turns=turns)
        (found,) = engine.generate(PROMPTS[:1], Sampling())
        assert found.text.count("Hm") == min(turns, replies + 1)
    plain_engine = ConversationEngine(script, ScriptedEnvironment([]))
    assert plain_engine.generate(PROMPTS, Sampling()) == script.generate(PROMPTS, Sampling())


def test_every_answer_is_drawn_behind_the_tokens_that_were_drawn_before():
    engine = talkative()
    talk = ConversationEngine(engine, ScriptedEnvironment(["Sure?", "Why?"], role="tool"), max_turns=3)
    found = talk.generate(PROMPTS, Sampling(max_tokens=6, samples=2))
    renderer = engine.renderer
    for completion, row in zip(found, engine.read, strict=True):
        assert [turn.message["role"] for turn in completion.turns] == ["assistant", "tool"] * 2 + ["assistant"]
        prompt = next(prompt for prompt in PROMPTS if prompt.id == completion.prompt_id)
        before = [token for turn in completion.turns[:-1] for token in turn.token_ids]
        assert renderer.prompt_ids(prompt.messages)[0] + before == row
        told = renderer.tokenizer.decode(completion.turns[1].token_ids)
        assert told == "\n<|im_start|>tool\nSure?<|im_end|>\n<|im_start|>assistant\n"
        assert len(completion.token_ids) == len(completion.token_logprobs) == 18
        assert read_completion(to_jsonable(completion)) == completion


def test_conversations_do_not_depend_on_what_else_is_asked():
    engine = ConversationEngine(talkative(batch_size=3), ScriptedEnvironment(["Sure?"]))
    sampling = Sampling(max_tokens=5, samples=2, seed=3)
    together = engine.generate(PROMPTS, sampling)
    apart = [completion for prompt in PROMPTS for completion in engine.generate([prompt], sampling)]
    assert together == apart
    assert together[0].turns[2] != together[1].turns[2]


def test_a_conversation_that_the_context_cannot_hold_ends_before_and_says_so():
    engine = talkative()
    longest = ScriptedEnvironment(["x" * (engine.context - 120)] * 5)
    (found,) = ConversationEngine(engine, longest, max_turns=6).generate(PROMPTS[:1], Sampling(max_tokens=8))
    assert found.finish == "length" and [turn.is_sampled for turn in found.turns] == [True, False, True]


def test_what_cannot_be_a_conversation_is_an_error():
    script = ScriptedEngine({}, default="Hm")
    with pytest.raises(EngineError, match="replied as the assistant"):
        ConversationEngine(script, ScriptedEnvironment(["I"], role="assistant")).generate(PROMPTS, Sampling())
    with pytest.raises(ConfigError, match="max_turns=0"):
        ConversationEngine(script, ScriptedEnvironment([]), max_turns=0)
    with pytest.raises(ConfigError, match="a single answer"):
        ConversationEngine(script, ScriptedEnvironment([])).generate(PROMPTS, Sampling(choices=("A", "B")))
    engine = talkative()
    engine.renderer.tokenizer.chat_template = engine.renderer.tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}"
    )
    with pytest.raises(DataError, match="leaves out the turns of tools"):
        ConversationEngine(engine, ScriptedEnvironment(["4"], role="tool")).generate(PROMPTS, Sampling(max_tokens=4))
    assert isinstance(ScriptedEnvironment([]), Environment)


def test_a_server_is_sent_parts_as_they_are_and_tools_in_the_words_of_the_protocol():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    body = ServerEngine("http://localhost:1", "m")._request(Prompt.of(turns).with_tools([tool]), 0, Sampling()).body
    assert body["messages"][0]["content"] == parts and body["tools"] == [tool]
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2}'}
    assert body["messages"][2] == turns[2] and call["function"]["arguments"] == {"a": 2}


def test_vllm_goes_on_from_the_tokens_that_were_drawn(tmp_path):
    policy = load_policy("random:llama?hidden=32")
    with VLLMServer(policy.backbone.name) as imitation:
        inner = VLLMEngine(imitation.url, policy, folder=tmp_path, processed_logprobs=True)
        engine = ConversationEngine(inner, ScriptedEnvironment(["Sure?"]))
        found = engine.generate(PROMPTS, Sampling(max_tokens=300))
        inner.close()
    talks = [completion for completion in found if completion.turns]
    assert talks
    for completion in talks:
        assert completion.token_ids and len(completion.token_ids) == len(completion.token_logprobs)
    assert not inner._known
