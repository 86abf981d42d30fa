"""A trained policy in the folder of its stage: weights, and the version that its answers will name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poise.models.policy import Policy
from poise.run import Stage

_MODEL, _VERSION = "model", "policy_version"


def keep(policy: Policy, stage: Stage, result: Mapping[str, Any]) -> None:
    """Save the policy and finish the stage."""
    policy.save_pretrained(stage.path / _MODEL)
    stage.finish({**result, _VERSION: policy.version})


def taken_back(policy: Policy, stage: Stage) -> Policy:
    """The policy as the stage left it, whether it was trained a moment ago or in an earlier session."""
    policy.copy_from(stage.path / _MODEL)
    policy.version = stage.result[_VERSION]
    return policy
