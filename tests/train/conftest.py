"""A tiny world for the trainers: models of two layers, prompts of unequal length and a scorer that counts letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.train.algorithms import PPO
from poise.train.objectives import Lagrangian, Limit
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.types import Completion, Prompt, Sampling, Scores

_GOLDENS = Path(__file__).parent / "goldens" / "safe_rlhf_training.json"
PROMPTS = tuple(Prompt.of(text) for text in ("Hello", "How do I bake a loaf of bread?", "Why?", "Name two big rivers"))


class LetterScorer:
    """Reward counts letters with an even code, cost those divisible by three, minus two."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        codes = [[ord(letter) for letter in completion.text] for completion in completions]
        return [
            Scores(
                values={
                    "reward": float(sum(code % 2 == 0 for code in row)),
                    "cost": sum(code % 3 == 0 for code in row) - 2.0,
                },
                source="letters",
            )
            for row in codes
        ]


def tiny_policy(
    name: str = "random:llama",
    lora: Lora | None = Lora(rank=2, top=0.5),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """A tiny policy whose adapter has left its start, so that policy and reference differ."""
    policy = Policy(load_backbone(name, dtype=dtype), lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in policy.parameters().items():
            if path.endswith("lora_B.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def plain_descent(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    """Gradient descent, whose steps are proportional to the gradient: Adam would hide its scale."""
    return torch.optim.SGD(list(parameters), lr=lr)


@pytest.fixture(scope="session")
def goldens() -> dict[str, dict[str, Any]]:
    """Numbers of the Safe RLHF reference implementation by name: inputs and expected."""
    return {case["name"]: case for case in json.loads(_GOLDENS.read_text())}


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    return tiny_policy


@pytest.fixture
def prompts() -> tuple[Prompt, ...]:
    return PROMPTS


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., OnPolicyTrainer]:
    """A trainer on the tiny world; `sgd=True` moves weights by a tenth of the gradient, to compare it."""

    def make(*, model: str = "random:llama", sgd: bool = False, optimisation: Any = None, **changes: Any) -> Any:
        policy = changes.pop("policy", None) or tiny_policy(model)
        arguments: dict[str, Any] = {
            "engine": NativeEngine(policy),
            "scorers": [LetterScorer()],
            "algorithm": PPO,
            "objective": Lagrangian(Limit(at_most=0.0)),
            "prompts": PROMPTS,
            "sampling": Sampling(max_tokens=8),
            "optimisation": OptimizerSettings(**({"max_norm": None} | (optimisation or {}))),
            "dump_folder": tmp_path / "dump",
        }
        trainer = OnPolicyTrainer(policy=policy, **(arguments | changes))
        if sgd:
            trainer.optimizer = plain_descent(trainer.parameters.values())
            trainer.critic_optimizer = plain_descent(trainer.critics.parameters(), lr=0.01)
        return trainer

    return make


@pytest.fixture
def weights_of() -> Callable[..., dict[str, torch.Tensor]]:
    """A copy of the weights of an on-policy trainer: policy and critics."""

    def copy(trainer: OnPolicyTrainer) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in (trainer.parameters | trainer.critics.state_dict()).items()}

    return copy
