"""Engines as Ray actors: the completions are those of one process, whatever happens to the workers."""

import importlib.util
from collections import Counter

import pytest
import torch

from poise.errors import ConfigError, EngineError
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.named import check_engine_name, engine_named
from poise.rollout.native import NativeEngine
from poise.types import Engine, Prompt, Sampling

BASE = "random:llama?hidden=32"
PROMPTS = [Prompt.of(f"Question {number}") for number in range(12)]
SAMPLING = Sampling(max_tokens=5, samples=2, seed=1)
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def policy():
    policy = Policy(load_backbone(BASE), Lora(rank=4, top=0.5))
    move(policy, 1)
    return policy


@pytest.fixture(scope="module")
def engine(policy):
    """Two workers on a local cluster, for all tests: to start them takes seconds."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install -e '.[ray]'")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    engine = RayEngine()(policy, workers=2, prompts_per_task=2)
    yield engine
    engine.close()
    ray.shutdown()


def RayEngine():
    from poise.rollout.ray import RayEngine

    return RayEngine


def move(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    policy.version += 1


def same(found, expected):
    assert [(c.prompt_id, c.sample, c.token_ids, c.policy_version) for c in found] == [
        (c.prompt_id, c.sample, c.token_ids, c.policy_version) for c in expected
    ]


def test_a_worker_that_is_killed_mid_batch_loses_and_repeats_nothing(engine, policy):
    assert isinstance(engine, Engine)
    finished, most = [], []

    def kill_one(done, number):
        finished.append(done)
        if len(finished) == 1:
            engine.ray.kill(engine.workers[0])

    hand_out = engine._hand_out

    def watched(waiting, under_way, parts, sampling):
        hand_out(waiting, under_way, parts, sampling)
        most.append(max(Counter(worker for _, worker in under_way.values()).values()))

    engine.progress, engine._hand_out, before = kill_one, watched, list(engine.workers)
    found = engine.generate(PROMPTS, SAMPLING)
    engine.progress, engine._hand_out = None, hand_out
    same(found, NativeEngine(policy).generate(PROMPTS, SAMPLING))
    assert finished == [2, 4, 6, 8, 10, 12]  # each task once
    assert max(most) == 2  # tasks of one worker at a time, however many wait
    assert len(set(engine.workers) - set(before)) == 1 and engine.losses == 2


def test_every_version_of_the_weights_reaches_all_workers(engine, policy):
    for seed in (7, 8):
        move(policy, seed)
        found = engine.generate(PROMPTS, SAMPLING)
        assert {c.policy_version for c in found} == {policy.version}
        same(found, NativeEngine(policy).generate(PROMPTS, SAMPLING))


def test_an_error_in_a_worker_is_the_error_it_would_be_here(engine):
    with pytest.raises(ConfigError, match="exceed the model's context"):
        engine.generate(PROMPTS[:1], Sampling(max_tokens=5000))
    assert len(engine.generate(PROMPTS[:1], SAMPLING)) == 2  # the workers live on


def test_workers_that_the_cluster_has_no_room_for_are_refused(engine, policy):
    with pytest.raises(ConfigError, match="3 workers with 1 CPU each need 3 CPU, and the Ray cluster has 2"):
        RayEngine()(policy, workers=3)


def test_workers_with_another_base_model_die_with_the_reason(engine, policy):
    other = Policy(load_backbone(BASE), Lora(rank=4, top=0.5))
    move(other, 1)
    other.merge()  # its base model is no longer what its name says
    engine.close()  # there is room for two
    strange = RayEngine()(other, workers=1, losses=0)
    with pytest.raises(EngineError, match=r"differs between this machine and the trainer"):
        strange.generate(PROMPTS[:1], SAMPLING)


@pytest.mark.parametrize("name", ["ray:0", "ray:x", "rays", "vllm", "", "native:2"])
def test_a_name_that_no_engine_has_is_refused(name):
    with pytest.raises(ConfigError, match="choose native, ray, ray:WORKERS or the http"):
        check_engine_name(name)


@pytest.mark.parametrize(("name", "kind"), [("native", "NativeEngine"), ("http://localhost:1", "VLLMEngine")])
def test_engines_are_chosen_by_name(policy, tmp_path, name, kind):
    assert type(engine_named(name, policy, folder=tmp_path)).__name__ == kind
