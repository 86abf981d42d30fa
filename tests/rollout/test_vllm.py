"""The policy's adapter reaches a vLLM server version by version: against an imitation of its documented endpoints."""

import pytest
import torch

from imitations import VLLMServer
from poise.errors import ConfigError, EngineError
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.engine import weights_digest
from poise.rollout.vllm import VLLMEngine
from poise.types import Prompt, Sampling

BASE = "random:llama?hidden=32"
PROMPTS = [Prompt.of("Hello"), Prompt.of("How do I kill a Python process?")]
SAMPLING = Sampling(max_tokens=6, samples=2)


@pytest.fixture
def policy():
    policy = Policy(load_backbone(BASE), Lora(rank=4, top=0.5))
    move(policy, 1)
    policy.version = 0
    return policy


def move(policy, seed):
    """Other weights, as after an update, and far from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    policy.version += 1


def greedy(policy, prompt, number):
    """What the policy's own weights say, computed here."""
    ids = policy.backbone.renderer().prompt_ids(prompt.messages)[0]
    start = len(ids)
    with torch.no_grad(), policy.policy_mode():
        for _ in range(number):
            ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[start:])


def test_every_version_of_the_weights_reaches_the_server_and_the_old_ones_leave_it(policy, tmp_path):
    with VLLMServer(BASE) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path, processed_logprobs=True)
        for version in range(3):
            completions = engine.generate(PROMPTS, Sampling(max_tokens=5, temperature=0.0))
            assert {c.policy_version for c in completions} == {version}
            for prompt, completion in zip(PROMPTS, completions, strict=True):
                expected = greedy(policy, prompt, 5)
                assert completion.token_ids == expected[: len(completion.token_ids)]
            assert list(server.adapters) == [engine.loaded]
            assert [path.name for path in tmp_path.iterdir()] == [engine.loaded]
            move(policy, 10 + version)
        assert server.most_adapters == 1
        engine.close()
        assert not server.adapters and not list(tmp_path.iterdir())


def test_weights_that_did_not_move_are_not_sent_again(policy, tmp_path):
    with VLLMServer(BASE) as server:
        for _ in range(2):
            engine = VLLMEngine(server.url, policy, folder=tmp_path)  # the second as after a restart
            engine.generate(PROMPTS, SAMPLING)
            engine.generate(PROMPTS, SAMPLING)
    assert server.paths.count("/v1/load_lora_adapter") == 1
    assert server.paths.count("/v1/unload_lora_adapter") == 0


def test_weights_of_the_same_version_that_differ_are_sent(policy, tmp_path):
    with VLLMServer(BASE) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path)
        first = engine.publish()
        move(policy, 5)
        policy.version = 0
        assert engine.publish() != first
        assert list(server.adapters) == [engine.loaded]


def test_adapters_of_other_runs_stay(policy, tmp_path):
    with VLLMServer(BASE) as server:
        other = VLLMEngine(server.url, policy, folder=tmp_path / "other")
        own = VLLMEngine(server.url, policy, folder=tmp_path / "own")
        other.publish(), own.publish()
        move(policy, 5)
        own.publish()
        assert set(server.adapters) == {other.loaded, own.loaded}


def test_the_prompt_is_the_trainers_own_tokens_and_each_request_has_a_seed(policy, tmp_path):
    with VLLMServer(BASE) as server:
        VLLMEngine(server.url, policy, folder=tmp_path).generate(PROMPTS, SAMPLING)
    bodies = [body for body in server.bodies if body and "prompt" in body]
    rendered = [policy.backbone.renderer().prompt_ids(prompt.messages)[0] for prompt in PROMPTS]
    assert sorted(body["prompt"] for body in bodies) == sorted([*rendered, *rendered])
    assert len({body["seed"] for body in bodies}) == 4


def test_logprobs_are_those_of_the_distribution_that_was_drawn_from_or_none(policy, tmp_path):
    warm = Sampling(max_tokens=6, temperature=0.5)
    with VLLMServer(BASE) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path, processed_logprobs=True)
        completion = engine.generate(PROMPTS[:1], warm)[0]
    ids = policy.backbone.renderer().prompt_ids(PROMPTS[0].messages)[0]
    with torch.no_grad(), policy.policy_mode():
        logits = policy.model(torch.tensor([ids + list(completion.token_ids)])).logits[0, len(ids) - 1 : -1] / 0.5
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.token_logprobs), expected, atol=1e-4, rtol=1e-4)
    with VLLMServer(BASE, processed=False) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path)
        assert engine.generate(PROMPTS[:1], warm)[0].token_logprobs == ()
        assert engine.generate(PROMPTS[:1], Sampling(max_tokens=6))[0].token_logprobs


def test_as_the_reference_it_answers_without_an_adapter(policy, tmp_path):
    with VLLMServer(BASE) as server:
        found = VLLMEngine(server.url, policy, folder=tmp_path, reference=True).generate(PROMPTS, SAMPLING)
        assert not server.adapters
    assert {body["model"] for body in server.bodies if body} == {BASE}
    assert all(c.finish != "error" for c in found)


@pytest.mark.parametrize(
    ("settings", "folders", "message"),
    [
        ({"runtime_updating": False}, {}, r"404 Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"),
        ({"max_lora_rank": 2}, {}, r"LoRA rank 4 is greater than max_lora_rank 2.*--max-lora-rank 4"),
        (
            {},
            {"served_folder": "/nowhere"},
            r"No adapter found for /nowhere/poise-.*a folder that the server can access",
        ),
    ],
)
def test_a_server_that_refuses_the_adapter_is_an_error_with_a_way_out(policy, tmp_path, settings, folders, message):
    with VLLMServer(BASE, **settings) as server:
        with pytest.raises(EngineError, match=message):
            VLLMEngine(server.url, policy, folder=tmp_path, **folders).generate(PROMPTS, SAMPLING)


def test_a_load_whose_answer_was_lost_and_a_server_that_was_restarted_are_survived(policy, tmp_path):
    with VLLMServer(BASE) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path, backoff_s=0.01)
        engine.publish()
        server.adapters.clear()  # the server was restarted
        move(policy, 3)
        assert all(c.finish != "error" for c in engine.generate(PROMPTS, SAMPLING))
        move(policy, 4)
        name = f"{engine.family}v{policy.version}-{weights_digest(policy.parameters())}"
        listed = engine.models()
        engine.models = lambda: listed  # it was loaded after the list was read
        policy.save_pretrained(tmp_path / name)
        server.load({"lora_name": name, "lora_path": str(tmp_path / name)})
        assert engine.publish() == name


def test_a_policy_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fully trained policy cannot be sent to a vLLM server"):
        VLLMEngine("http://localhost:1", Policy(load_backbone(BASE), None), folder=tmp_path)
