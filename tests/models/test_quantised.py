"""Four-bit backbones: refused where they cannot work, and adapters that do not read sizes off packed weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poise.errors import ConfigError
from poise.models.adapters import Lora, LoraLinear
from poise.models.load import load_backbone
from poise.models.quantised import four_bits


class PackedLinear(nn.Linear):
    """A linear layer whose weight is kept as one column of bytes, as four-bit layers keep theirs."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        self.full = self.weight.detach().clone()
        self.weight = nn.Parameter(torch.zeros(inputs * outputs // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.full)


def test_an_adapter_around_packed_weights_has_the_sizes_of_the_layer():
    base = PackedLinear(6, 4)
    layer = LoraLinear(base)
    layer.add("policy", Lora(rank=2), torch.Generator().manual_seed(0))
    layer.active = "policy"
    with torch.no_grad():
        layer.lora_b["policy"].fill_(0.5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), base(x) + x @ layer.product("policy").T)


def test_four_bits_need_a_gpu_and_no_shards(monkeypatch):
    with pytest.raises(ConfigError, match="CUDA GPU"):
        four_bits(4, "cpu")
    with pytest.raises(ConfigError, match="16 bits, or 4"):
        four_bits(8, "cuda")
    monkeypatch.setenv("POISE_BASE_BITS", "4")
    assert load_backbone("random:llama").dtype == torch.float32  # tiny models are never packed
    with pytest.raises(ConfigError, match="POISE_BASE_BITS"):
        load_backbone(".", device="cpu")
