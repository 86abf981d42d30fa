"""Where reinforcement starts: the base model, fine-tuned on demonstrations and merged into a model of its own.

It is the reference too: a KL penalty to the base would pull a policy back to a model that does not refuse.
"""

from __future__ import annotations

from typing import Any

from poise.errors import ConfigError
from poise.feedback.demonstrations import general_demonstrations, preferred_demonstrations, safe_demonstrations
from poise.models.adapters import Lora
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.pipeline.supervised import fine_tune, merged
from poise.rollout.named import computes_elsewhere
from poise.run import Run
from poise.train.supervised import DemonstrationBatches
from poise.types import Dataset

ADAPTER = Lora(top=0.5)
_LR, _ROWS = 5e-4, 48  # of the refusals, which a few updates must teach


def sft_model(
    run: Run,
    backbone: Backbone,
    data: Dataset,
    *,
    longest_answer: int,
    supervised_steps: int = 0,
    warmstart_steps: int = 0,
    seed: int = 0,
) -> Backbone:
    """The model that policies start from and are held to: the base, fine-tuned on demonstrations and merged.

    Reinforcement finds out where a refusal belongs only once there are some. Without any steps it is the base itself.
    """
    if not supervised_steps and not warmstart_steps:
        return backbone
    policy = Policy(backbone, ADAPTER, adapter="supervised", seed=seed)
    if supervised_steps:
        fine_tune(run, policy, preferred_demonstrations(data), steps=supervised_steps, seed=seed)
    if warmstart_steps:
        options = _read_whole(longest_answer, seed) | {"steps": warmstart_steps, "lr": _LR, "per_step": _ROWS}
        fine_tune(run, policy, safe_demonstrations(data), name="imitated", **options)
    return merged(run, policy)


def require_served(engine: str, *, fine_tuned: bool) -> None:
    """Raise ConfigError for a server that holds the base model, where policies are adapters of the SFT model.

    >>> require_served("http://localhost:8000", fine_tuned=False)
    """
    if fine_tuned and computes_elsewhere(engine):
        raise ConfigError(
            f"engine {engine}: the server has the base model, and policies start from the SFT model of this run. "
            "Make it first (--arms sft), serve the folder seed-0/start-model/model, and give that as --model, with "
            "--supervised-steps 0 --warmstart-steps 0"
        )


def mixed_in(policy: Policy, data: Dataset, *, longest_answer: int, seed: int) -> DemonstrationBatches:
    """General instructions, to be imitated a little in every update: preferred answers to harmless prompts."""
    return DemonstrationBatches(general_demonstrations(data), policy, **_read_whole(longest_answer, seed))


def _read_whole(longest_answer: int, seed: int) -> dict[str, Any]:
    """How demonstrations are batched where answers are that long."""
    return {"seed": seed, "max_tokens": max(128, 4 * longest_answer), "tokens_per_micro_batch": 2048}
