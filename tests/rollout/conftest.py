"""Tiny policies that say something, and prompts of different lengths."""

import pytest
import torch

from poise.models.adapters import Lora, adapter_parameters
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.types import Prompt


@pytest.fixture(params=["llama", "qwen", "gpt2"])
def policy(request):
    """A policy whose adapter is not the identity and whose distributions are far from uniform."""
    policy = Policy(load_backbone(f"random:{request.param}?hidden=32"), Lora(rank=4, top=0.5))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.model, "policy").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        policy.decoder.final_norm.weight.mul_(6.0)
    return policy


@pytest.fixture
def prompts():
    """Seven prompts, from one letter to a few lines."""
    texts = ("a", "Hello", "Why?", "How do I kill a Python process?", "ünïcode ☃", "x" * 40, "Tell me more. " * 5)
    return [Prompt.of(text) for text in texts]
