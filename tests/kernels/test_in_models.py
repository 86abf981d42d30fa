"""A model computes the same with the kernels as without them, up to the rounding of bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from poise import kernels
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling

pytestmark = pytest.mark.skipif(kernels.compiled().library is None, reason="no kernels on this machine")
MODEL = "random:llama?layers=3&hidden=256&heads=4"  # heads of 64: what the kernels of attention take
PROMPTS = [Prompt.of(text) for text in ("hello there", "why?", "what is a longer question than the others")]


def policy(lora: Lora | None) -> Policy:
    made = Policy(load_backbone(MODEL, dtype=torch.bfloat16), lora, weights=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in made.parameters().items():
            if "norm" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return made


@pytest.fixture
def rows():
    drawn = torch.Generator().manual_seed(1)
    starts, sizes = [12, 12, 7, 30], [25, 3, 40, 1]
    prompts = {start: torch.randint(5, 250, (start,), generator=drawn).tolist() for start in starts}
    tokens = [
        prompts[start] + torch.randint(5, 250, (size,), generator=drawn).tolist()
        for start, size in zip(starts, sizes, strict=True)
    ]
    return SharedRows.of_lists(tokens, starts)


@pytest.mark.parametrize("lora", [None, Lora(rank=16)])
def test_log_probabilities_and_their_gradients_agree(lora, rows, monkeypatch):
    torch.manual_seed(0)
    actor = policy(lora)

    def computed():
        values, entropy = actor.logprobs(rows)
        values.square().sum().backward()
        slopes = {name: parameter.grad.double() for name, parameter in actor.parameters().items()}
        for parameter in actor.parameters().values():
            parameter.grad = None
        return values.detach(), entropy, slopes

    values, entropy, slopes = computed()
    monkeypatch.setattr(kernels, "supports_tensors", lambda *tensors, apart=False: False)
    plain_values, plain_entropy, plain_slopes = computed()
    torch.testing.assert_close(values, plain_values, atol=0.05, rtol=0.02)
    torch.testing.assert_close(entropy, plain_entropy, atol=0.05, rtol=0.02)
    assert not torch.equal(values, plain_values), "the kernels were not in use"
    for name, slope in slopes.items():
        error = (slope - plain_slopes[name]).norm() / plain_slopes[name].norm().clamp(min=1e-6)
        assert error < 0.05, f"{name}: relative error {error:.3f}"


@pytest.mark.parametrize("samples", [1, 4])
def test_what_an_engine_draws_has_the_probability_that_training_computes(samples):
    """Whether prompts are shared or not; the gap is that of bfloat16."""
    torch.manual_seed(0)
    actor = policy(Lora(rank=4))
    sampling = Sampling(max_tokens=20, samples=samples, seed=3, temperature=0.9)
    engine = NativeEngine(actor, batch_size=8)
    made = engine.generate(PROMPTS, sampling)
    encoded = [engine.renderer.prompt_ids(prompt.messages)[0] for prompt in PROMPTS for _ in range(samples)]
    tokens = [[*ids, *each.token_ids] for ids, each in zip(encoded, made, strict=True)]
    rows = SharedRows.of_lists(tokens, [len(ids) for ids in encoded])
    with torch.no_grad():
        values, _ = actor.logprobs(rows, temperature=sampling.temperature)
    sampled = torch.zeros_like(values)
    for row, each in enumerate(made):
        sampled[row, : len(each.token_logprobs)] = torch.tensor(each.token_logprobs)
    gap = (values - sampled)[rows.response_mask].abs()
    assert gap.mean() < 0.03 and gap.max() < 0.3


def test_the_same_seed_gives_the_same_tokens_and_another_batch_too():
    """Each row is computed by itself, in whatever company."""
    torch.manual_seed(0)
    actor = policy(Lora(rank=4))
    sampling = Sampling(max_tokens=12, samples=2, seed=5)
    together = NativeEngine(actor, batch_size=6).generate(PROMPTS, sampling)
    again = NativeEngine(actor, batch_size=6).generate(PROMPTS, replace(sampling))
    assert [each.token_ids for each in together] == [each.token_ids for each in again]
