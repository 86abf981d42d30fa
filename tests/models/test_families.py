"""Every family, with every optional feature of its configuration, is computed as transformers computes it."""

import pytest
import torch

from families import FEATURES, FEATURES_WITHOUT_WINDOWS, WINDOW, backbone_of, model_with
from poise.errors import ModelError
from poise.models.adapters import Lora
from poise.models.decoder import Decoder
from poise.models.families import FAMILIES, context_of
from poise.models.fused import fuses
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling

CASES = [*FEATURES.items(), *FEATURES_WITHOUT_WINDOWS.items()]
ROWS = [[*range(10, 30)], [*range(10, 18), 90, 91, 92], [*range(60, 84)], [50, 51, 52]]
STARTS = [8, 8, 15, 2]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{len(case[1])}")
def policy(request):
    """A policy of the family whose adapter is not the identity, on some of its layers."""
    family, features = request.param
    policy = Policy(backbone_of(model_with(family, features)), Lora(rank=2, top=0.75))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return policy


def alone(policy, row, start, temperature=1.0):
    """Log-probabilities of a row's response by transformers' own pass over this row without padding."""
    model, ids = policy.model, torch.tensor([row])
    model.set_attn_implementation("eager")
    found = (model(ids, use_cache=False).logits.float() / temperature).log_softmax(-1)
    model.set_attn_implementation("poise")
    return found[0, start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]


def test_every_family_is_tested_and_every_test_is_of_a_family():
    assert FEATURES.keys() == FAMILIES.keys()


def test_logprobs_and_gradients_of_padded_rows_are_those_of_transformers_on_each_alone(policy):
    rows, slopes = SharedRows.of_lists(ROWS, STARTS), []
    values, _ = policy.logprobs(rows, temperature=0.8)
    with policy.policy_mode():
        expected = [alone(policy, row, start, 0.8) for row, start in zip(ROWS, STARTS, strict=True)]
    for found, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(found[: len(wanted)], wanted, atol=1e-4, rtol=1e-4)
    for loss in (values[rows.response_mask].square().mean(), torch.cat(expected).square().mean()):
        slopes.append(torch.autograd.grad(loss, list(policy.parameters().values())))
    assert all(slope.abs().max() > 0 for slope in slopes[1])
    found, wanted = (torch.cat([each.flatten() for each in slope]) for slope in slopes)
    assert (found - wanted).norm() < 2e-3 * wanted.norm()


@torch.no_grad()
def test_rows_that_share_a_prompt_are_sampled_with_the_logprobs_of_transformers(policy):
    engine = NativeEngine(policy)
    engine.renderer.stop_ids = frozenset({10, 11, 12})
    prompts = [Prompt.of("a"), Prompt.of("What now?")]
    for completion in engine.generate(prompts, Sampling(max_tokens=12, samples=2, seed=4)):
        prompt = next(each for each in prompts if each.id == completion.prompt_id)
        head = engine.renderer.prompt_ids(prompt.messages)[0]
        with policy.policy_mode():
            expected = alone(policy, head + list(completion.token_ids), len(head))
        torch.testing.assert_close(torch.tensor(completion.token_logprobs), expected, atol=1e-4, rtol=1e-4)


def test_windows_that_no_row_reaches_leave_the_faster_layers_to_run():
    for family in ("mistral", "qwen2", "qwen3"):
        decoder = Decoder(model_with(family, FEATURES[family]))
        assert fuses(decoder, WINDOW)
        assert not fuses(decoder, WINDOW + 1)


def test_rows_longer_than_the_angles_of_short_ones_hold_are_beyond_the_context():
    config = model_with("phi3", FEATURES["phi3"]).config
    assert context_of(config) == 48 < config.max_position_embeddings


def test_a_kind_of_layer_that_is_neither_full_nor_windowed_is_refused():
    config = model_with("qwen2", FEATURES["qwen2"])
    config.config.layer_types[1] = "chunked_attention"
    with pytest.raises(ModelError, match="layers of kind chunked_attention are not supported"):
        Decoder(config)
