"""What a server says is not trusted: one answer that is none costs one completion, and every other one is kept."""

import json
import resource
from base64 import b64encode

import pytest

from imitations import ANSWERS, ChatServer, Leaving, VLLMServer, reply
from poise.errors import ConfigError, EngineError
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.server import ServerEngine
from poise.rollout.vllm import VLLMEngine
from poise.types import Prompt, Sampling

PROMPTS = [Prompt.of(text) for text in ("Hello", "Why?", "How do I kill a Python process?")]
SAMPLING = Sampling(max_tokens=4, seed=3)
PATIENT = {"backoff_s": 0.01, "attempts": 2, "seconds": 5.0}


@pytest.mark.parametrize("fault", sorted(ANSWERS))
def test_an_answer_that_is_none_costs_its_row_alone(fault):
    with ChatServer(faults=[f"{fault}+Why?"]) as server:
        found = ServerEngine(server.url, "imitation", **PATIENT).generate(PROMPTS, SAMPLING)
    assert [c.finish == "error" for c in found] == [False, True, False]
    assert found[1].error
    assert found[1].error.isprintable()


def test_the_size_that_counts_is_that_of_the_unpacked_answer():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ChatServer(faults=["bomb"]) as server:
        engine = ServerEngine(server.url, "imitation", **PATIENT)
        assert "more than 32 MiB" in engine.generate(PROMPTS[:1], SAMPLING)[0].error
        assert len(server.bodies) == 1  # it would be as large again
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 * 2**10  # KiB, of 96 MiB unpacked


class Liar(ChatServer):
    """Answers as it should, but for one prompt, whose choice it changes."""

    def __init__(self, lie, **settings):
        super().__init__(**settings)
        self.lie = lie

    def chat(self, body):
        answer = super().chat(body)
        if body["messages"][0]["content"] == "Why?":
            answer["choices"] = self.lie(answer["choices"][0])
        return answer


def with_logprob(value):
    return lambda choice: [choice | {"logprobs": {"content": [{"token": "a", "logprob": value}] * 3}}]


LIES = {
    "above 0": (with_logprob(0.25), "should be finite and at most 0"),
    "barely above 0": (with_logprob(1e-3), "should be finite and at most 0"),
    "nan": (with_logprob(float("nan")), "should be finite and at most 0"),
    "infinite": (with_logprob(float("-inf")), "should be finite and at most 0"),
    "text for a number": (with_logprob("-0.5"), "is not a number but '-0.5'"),
    "true": (with_logprob(True), "is not a number but True"),
    "huge": (with_logprob(-(10**400)), "should be finite and at most 0"),
    "not a number": (with_logprob(None), "is not a number but None"),
    "negative id": (lambda c: [c | {"token_ids": [-1, 2, 3]}], "a token id is -1"),
    "huge id": (lambda c: [c | {"token_ids": [1, 2, 2**40]}], "below 2147483648"),
    "fraction": (lambda c: [c | {"token_ids": [1, 2, 3.5]}], "is not an integer but 3.5"),
    "id as text": (lambda c: [c | {"token_ids": ["1", "2", "3"]}], "is not an integer but '1'"),
    "too few": (lambda c: [c | {"token_ids": [1]}], "3 log-probabilities for 1 token ids"),
    "too many": (lambda c: [c | {"token_ids": list(range(9))}], "9 token ids, but at most 3"),
    "no text": (lambda c: [c | {"message": {"content": None}}], "no text but None"),
    "a number for text": (lambda c: [c | {"message": {"content": 7}}], "no text but 7"),
    "no choice": (lambda c: [], "0 choices"),
    "two choices": (lambda c: [c, c], "2 choices with the indexes [0, 0]"),
    "another index": (lambda c: [c | {"index": 1}], "with the indexes [1]"),
    "odd reason": (lambda c: [c | {"finish_reason": ["stop"]}], "cannot be read"),
    "choice of text": (lambda c: ["a"], "cannot be read"),
    "choices by name": (lambda c: {"0": c}, "cannot be read"),
    "odd logprobs": (lambda c: [c | {"logprobs": 3}], "cannot be read"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_completion_that_no_model_can_give_is_an_error_and_the_others_are_kept(lie):
    change, reason = LIES[lie]
    sampling = Sampling(max_tokens=3)
    with Liar(change) as server:
        engine = ServerEngine(
            server.url, "imitation", logprobs=True, fields={"return_token_ids": True}, **PATIENT | {"attempts": 1}
        )
        found = engine.generate(PROMPTS, sampling)
    assert [c.finish == "error" for c in found] == [False, True, False]
    assert reason in found[1].error
    assert found[1].token_logprobs == found[1].token_ids == ()
    assert len(found[0].token_logprobs) == len(found[0].token_ids) == 3


def test_what_an_engine_rounds_is_no_lie():
    with Liar(with_logprob(1e-7)) as server:
        engine = ServerEngine(server.url, "imitation", logprobs=True, fields={"return_token_ids": True})
        assert engine.generate(PROMPTS[1:2], Sampling(max_tokens=3))[0].token_logprobs == (0.0, 0.0, 0.0)


class OddVLLM(VLLMServer):
    def complete(self, body):
        answer = super().complete(body)
        if len(self.bodies) % 2:
            answer["choices"][0]["token_ids"][0] = 300  # the base has 260
        return answer


def test_a_token_that_the_policy_does_not_have_is_an_error_of_its_row(tmp_path):
    policy = Policy(load_backbone("random:llama?hidden=32"), Lora(rank=4, top=0.5))
    with OddVLLM("random:llama?hidden=32") as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path, concurrency=1, **PATIENT | {"attempts": 1})
        found = engine.generate(PROMPTS[:2], Sampling(max_tokens=3, samples=2))
    errors = [c.error for c in found if c.finish == "error"]
    assert len(errors) == 2
    assert all("a token id is 300: it should be at least 0 and below 260" in error for error in errors)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_row_that_is_forbidden_costs_no_other(concurrency):
    with ChatServer(faults=["403+Why?"], delay=0.05) as server:
        engine = ServerEngine(server.url, "imitation", concurrency=concurrency, **PATIENT)
        found = engine.generate(PROMPTS, SAMPLING)
    assert [c.error for c in found] == ["", "403 this text is filtered", ""]


class LeavingChat(Leaving, ChatServer):
    pass


def test_a_server_that_leaves_takes_nothing_with_it(tmp_path):
    prompts = [Prompt.of(f"Question {number}") for number in range(50)]
    settings = PATIENT | {"concurrency": 1, "backoff_s": 0.05}
    with LeavingChat() as server:
        found = ServerEngine(server.url, "imitation", **settings).generate(prompts, SAMPLING)
    assert [c.finish == "error" for c in found] == [False] * 2 + [True] * 48
    assert all("nobody answers" in c.error for c in found[2:])
    with LeavingChat() as server, pytest.raises(EngineError, match=r"2 finished completions are kept in"):
        ServerEngine(server.url, "imitation", answers=tmp_path / "kept.jsonl", **settings).generate(prompts, SAMPLING)
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("token", ["päss", "s3cret ", "line\n", "\x1b[2J", "\u200bzero"])
def test_a_token_that_no_header_carries_is_an_error_that_does_not_show_it(token):
    with pytest.raises(ConfigError, match=r"character \d of the token is U\+") as error:
        ServerEngine("http://localhost:1", "imitation", token=token)
    assert token not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@localhost:1", "http://secret@localhost:1/v1", "http://me:secret@[::1", "http://a:secret@h:port"],
)
def test_a_password_in_an_address_is_sent_and_never_shown(url):
    try:
        engine = ServerEngine(url, "imitation", attempts=1)
        shown = repr(engine.endpoint)
        engine.generate(PROMPTS[:1], SAMPLING)
    except (ConfigError, EngineError) as error:
        shown = f"{error!r}{error.__cause__!r}"
    assert "secret" not in shown


class Guarded(ChatServer):
    """Wants a name and a password."""

    def serve(self, handler, body):
        if handler.headers.get("authorization") != "Basic " + b64encode(b"me:p@ss").decode():
            return reply(handler, 401, b"who are you?")
        super().serve(handler, body)


def test_a_password_in_an_address_opens_it():
    with Guarded() as server:
        engine = ServerEngine(server.url.replace("://", "://me:p%40ss@"), "")
        assert engine.models() == ["imitation"]
        with pytest.raises(EngineError, match="401 who are you"):
            ServerEngine(server.url, "").models()


def test_a_file_of_answers_that_holds_others_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"key": "x", "texts": 3}) + "\n")
    with pytest.raises(EngineError, match=r"answers\.jsonl has lines that are not completions"):
        ServerEngine("http://localhost:1", "imitation", answers=tmp_path / "answers.jsonl")
