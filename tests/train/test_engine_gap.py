"""The gap between an engine's log-probabilities and the trainer's, weighed away."""

from dataclasses import replace

import pytest
import torch

from imitations import VLLMServer
from poise.errors import EngineError
from poise.functional.importance import truncated_importance_weights
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.rollout.vllm import VLLMEngine
from poise.train.algorithms import GRPO, PPO, RLOO
from poise.types import Sampling

CAPPED = replace(PPO, importance_cap=2.0)


class SkewedEngine(NativeEngine):
    """An engine that says other log-probabilities than the trainer computes, as one with other kernels would."""

    skew = 0.0

    def generate(self, prompts, sampling):
        found = super().generate(prompts, sampling)
        return [
            replace(c, token_logprobs=tuple(v - self.skew * (i % 2) for i, v in enumerate(c.token_logprobs)))
            for c in found
        ]


@pytest.fixture
def skewed(make_policy):
    policy = make_policy()
    return policy, SkewedEngine(policy)


@pytest.mark.parametrize("algorithm", [PPO, RLOO, GRPO], ids=["ppo", "rloo", "grpo"])
def test_without_a_gap_the_step_is_the_same(make_trainer, make_policy, weights_of, algorithm):
    found = []
    for cap in (None, 2.0):
        policy = make_policy()
        trainer = make_trainer(policy=policy, algorithm=replace(algorithm, importance_cap=cap), sgd=True)
        metrics = trainer.step_at(0)
        found.append(weights_of(trainer))
    assert metrics["engine_gap"] < 1e-4
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=2e-5, rtol=2e-4)


def test_old_logprobs_are_the_trainers_own_and_the_gap_is_measured(make_trainer, skewed, prompts):
    policy, engine = skewed
    engine.skew = 0.5
    trainer = make_trainer(policy=policy, engine=engine, algorithm=CAPPED)
    batch = trainer.collect(prompts)
    exact = trainer._all_logprobs(trainer._own_rows(batch), reference=False)[0]
    torch.testing.assert_close(batch.old_logprobs, exact)
    odd = torch.arange(batch.response_mask.shape[1]) % 2 == 1
    gap = (batch.old_logprobs - batch.sampled_logprobs)[batch.response_mask & odd]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5), atol=1e-4, rtol=0)
    assert 0.1 < trainer.step_at(1)["engine_gap"] < 0.4


@pytest.mark.parametrize("cap", [1.2, 100.0])
def test_losses_are_weighed_by_the_truncated_ratio(make_trainer, skewed, prompts, cap):
    policy, engine = skewed
    engine.skew = 0.5
    trainer = make_trainer(policy=policy, engine=engine, algorithm=replace(PPO, importance_cap=cap))
    batch, rows = trainer.collect(prompts), torch.tensor([1, 3])
    advantages = torch.randn(batch.old_logprobs.shape)[rows]
    logprobs = batch.old_logprobs[rows] + 0.1
    plain = PPO.policy_loss(logprobs, batch.old_logprobs[rows], advantages, batch.response_mask[rows])
    weights = truncated_importance_weights(batch.old_logprobs, batch.sampled_logprobs, batch.response_mask, cap=cap)[
        rows
    ]
    found = trainer._policy_losses(batch, rows, logprobs, advantages)
    torch.testing.assert_close(found, plain * weights)
    assert float(weights.max()) == pytest.approx(min(cap, 2.71828**0.5), rel=1e-3)


def test_an_engine_without_logprobs_cannot_be_corrected(make_trainer, make_policy):
    policy, script = make_policy(), ScriptedEngine(lambda prompt, sample: "abc")
    with pytest.raises(EngineError, match=r"importance_cap=2.0 needs .* ScriptedEngine returns none"):
        make_trainer(policy=policy, engine=script, algorithm=CAPPED).step_at(0)
    make_trainer(policy=policy, engine=script).step_at(0)


def test_a_policy_is_trained_on_what_a_server_samples_from_its_newest_weights(make_trainer, make_policy, tmp_path):
    policy = make_policy("random:llama?hidden=32")
    with VLLMServer(policy.backbone.name, skew=0.3) as server:
        engine = VLLMEngine(server.url, policy, folder=tmp_path, processed_logprobs=True)
        sampling = Sampling(max_tokens=6, temperature=0.7)
        trainer = make_trainer(policy=policy, engine=engine, algorithm=CAPPED, sampling=sampling)
        for step in range(3):
            metrics = trainer.step_at(step)
            assert metrics["engine_gap"] == pytest.approx(0.3, abs=1e-3)  # the weights were the trainer's own
            assert {rollout.completion.policy_version for rollout in trainer.rollouts} == {step}
            assert metrics["dropped"] == 0
        assert server.most_adapters == 1
        assert server.paths.count("/v1/load_lora_adapter") == 3
