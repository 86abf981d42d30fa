"""The backbone as generation runs it is the backbone: merged, packed and side by side, it computes the same."""

import pytest
import torch
import torch.nn.functional as F

from poise.models.adapters import Lora, adapter_parameters, lora_modules
from poise.models.fused import FusedDecoder, FusedLinear, fuses, merged_weight, packs
from poise.models.load import load_backbone
from poise.models.policy import Policy


@pytest.fixture(params=["llama", "qwen"])
def policy(request):
    """A policy whose adapter is not the identity."""
    return adapted(request.param, torch.float32)


def adapted(family, dtype):
    policy = Policy(load_backbone(f"random:{family}", dtype=dtype), Lora(rank=4, top=0.5))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.model, "policy").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("adapter", [None, "policy"])
def test_it_gives_the_logits_of_the_backbone_with_the_adapter_on_or_off(family, adapter):
    policy = adapted(family, torch.float64)
    ids = torch.randint(4, 250, (3, 17), generator=torch.Generator().manual_seed(0))
    with policy.policy_mode() if adapter else policy.reference() as decoder:
        expected = decoder.logits(decoder.run(decoder.embed(ids)))
    fused = FusedDecoder(policy.decoder, adapter=adapter, dtype=torch.float64)

    rotation = tuple(part[:17].repeat(3, 1) for part in fused.rotation(20))

    def attend(layer, states):
        queries, new = fused.turned(states, rotation)
        keys, values = new.view(3, 17, 2, -1, fused.head_dim).permute(2, 0, 3, 1, 4)
        rows = queries.view(3, 17, -1, fused.head_dim).transpose(1, 2)
        found = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True)
        return found.transpose(1, 2).flatten(0, 1)

    found = fused.logits(fused.run(fused.embed(ids.flatten()), attend)).view(expected.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_merging_leaves_the_base_alone_and_copies_only_what_is_adapted(policy):
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    layers = [module for _, module in lora_modules(policy.model)]
    for module in layers:
        merged = merged_weight(module, "policy", torch.float32)
        torch.testing.assert_close(merged, module.base.weight + module.product("policy"))
    assert merged_weight(layers[0], None, torch.float32).data_ptr() == layers[0].base.weight.data_ptr()
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())


@torch.no_grad()
def test_packed_products_are_the_plain_ones_up_to_the_rounding_of_bf16():
    generator = torch.Generator().manual_seed(0)
    modules = [torch.nn.Linear(64, n, bias=True, dtype=torch.bfloat16) for n in (96, 32)]
    x = torch.randn(5, 64, generator=generator).bfloat16()
    add = torch.randn(5, 128, generator=generator).bfloat16()
    expected = torch.cat([module.float()(x.float()) for module in modules], -1)
    modules = [module.bfloat16() for module in modules]
    fused = FusedLinear(modules, None, torch.bfloat16)
    assert fused.packed == packs(modules[0].weight)
    torch.testing.assert_close(fused(x).float(), expected, atol=0.03, rtol=0.02)
    torch.testing.assert_close(fused(x, add=add).float(), expected + add.float(), atol=0.06, rtol=0.02)


def test_families_and_settings_that_it_does_not_compute_are_left_to_transformers(policy):
    assert fuses(policy.decoder, 512)
    assert not fuses(load_backbone("random:gpt2").decoder, 512)
    policy.decoder.config.hidden_act = "gelu"
    assert not fuses(policy.decoder, 512)
