"""A decoder for generation: few operations per token, adapters merged, weights laid out for the CPU.

Training needs every projection by itself; a decoding step is many small products, where the number of calls and the
layout of the weights decide. On a CPU the weights are packed once per call of the engine, for its matrix unit, and let
go afterwards; elsewhere the base weights are used as they are and only adapted ones are merged into a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise import kernels
from poise.models.adapters import LoraLinear
from poise.models.decoder import Decoder
from poise.models.elementwise import FEW_ROWS, apply_rope, missing_rows, swiglu
from poise.models.families import rope_types

# attend(layer, queries, keys and values that are not turned yet [N, Hq + 2 Hkv, D]) -> [N, Hq, D]
Attend = Callable[[int, Tensor], Tensor]

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}  # those whose angles do not depend on the length of the row


def fuses(decoder: Decoder, columns: int) -> bool:
    """Whether `FusedDecoder` computes these layers exactly, on rows of up to `columns` tokens."""
    config = decoder.config
    return (
        config.model_type in _FAMILIES
        and config.hidden_act in ("silu", "swish")
        and rope_types(config) <= _ROPE_TYPES
        and all(window is None or columns <= window for window in decoder.windows)
    )


class FusedDecoder:
    """The layers on flat tokens [N, H]; what a token attends to is the caller's business.

    `dtype` is the one that products run in, `adapter` the LoRA adapter that is merged.
    """

    def __init__(self, decoder: Decoder, *, adapter: str | None, dtype: torch.dtype):
        config = decoder.config
        self.decoder, self.dtype = decoder, dtype
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = [_Layer(layer, adapter, dtype) for layer in decoder.layers]
        self.norm = _Norm(decoder.final_norm, dtype)
        self.head = FusedLinear([decoder.head], None, dtype)

    def embed(self, token_ids: Tensor) -> Tensor:
        """States [N, H] of tokens [N] before the first layer."""
        return self.decoder.embed(token_ids).to(self.dtype)

    def rotation(self, columns: int) -> tuple[Tensor, Tensor]:
        """Factors [columns, D] of a head and, signed, of its halves exchanged."""
        device = self.decoder.head.weight.device
        like = torch.zeros(1, 1, dtype=torch.float32, device=device)
        extra = self.decoder.position_inputs(like[..., None], torch.arange(columns, device=device)[None])
        cos, sin = (part[0].float() for part in extra[0]["position_embeddings"])
        half = self.head_dim // 2
        return cos.to(self.dtype), torch.cat([-sin[:, :half], sin[:, half:]], -1).to(self.dtype)

    def turned(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries [N, Hq, D], and keys and values [N, 2 Hkv, D], turned by factors [N, D] where they are to be."""
        border = self.heads + self.key_heads
        cos, sin = (part[:, None] for part in rotation)
        turned = apply_rope(states[:, :border].flatten(1), cos, sin).view(len(states), border, -1)
        return turned[:, : self.heads], torch.cat([turned[:, self.heads :], states[:, border:]], 1)

    def run(self, hidden: Tensor, attend: Attend) -> Tensor:
        """States [N, H] of tokens after all layers."""
        count, spare = len(hidden), missing_rows(len(hidden), hidden.device, FEW_ROWS)
        hidden = _with_zeros(hidden, spare)
        for index, layer in enumerate(self.layers):
            states = layer.project(layer.first_norm(hidden)).view(len(hidden), -1, self.head_dim)
            attended = attend(index, layer.normed_heads(states[:count], self.heads, self.key_heads))
            hidden = layer.out(_with_zeros(attended.reshape(count, -1), spare), add=hidden)
            gate = layer.gate_up(layer.second_norm(hidden))
            hidden = layer.down(swiglu(*gate.chunk(2, -1)), add=hidden)
        return hidden[:count]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of states [N, H] after the last layer."""
        spare = missing_rows(len(hidden), hidden.device, FEW_ROWS)
        return self.head(_with_zeros(self.norm(hidden), spare))[: len(hidden)]


class _Layer:
    """The products of one layer, those that read the same input side by side."""

    def __init__(self, layer: Any, adapter: str | None, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.first_norm = _Norm(layer.input_layernorm, dtype)
        self.second_norm = _Norm(layer.post_attention_layernorm, dtype)
        self.project = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj], adapter, dtype)
        self.out = FusedLinear([attention.o_proj], adapter, dtype)
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj], adapter, dtype)
        self.down = FusedLinear([mlp.down_proj], adapter, dtype)
        self.query_norm = _Norm(attention.q_norm, dtype) if hasattr(attention, "q_norm") else None
        self.key_norm = _Norm(attention.k_norm, dtype) if hasattr(attention, "k_norm") else None

    def normed_heads(self, states: Tensor, heads: int, key_heads: int) -> Tensor:
        """States [N, Hq + 2 Hkv, D] with normalised queries and keys, where the family has it."""
        if self.query_norm is None or self.key_norm is None:
            return states
        queries, keys, values = states.split([heads, key_heads, key_heads], 1)
        return torch.cat([self.query_norm(queries), self.key_norm(keys), values], 1)


class _Norm:
    """Root-mean-square normalisation in one call."""

    def __init__(self, module: Any, dtype: torch.dtype):
        self.weight = module.weight.detach().to(dtype)
        self.epsilon: float = module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        if kernels.supports_tensors(x, self.weight):
            return kernels.rms_norm(x, self.weight, self.epsilon)[0]
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class FusedLinear:
    """Linear layers of the same input as one product, adapters merged; `add` goes on top in the same pass."""

    def __init__(self, modules: Sequence[nn.Module], adapter: str | None, dtype: torch.dtype):
        merged = [merged_weight(module, adapter, dtype) for module in modules]
        biases: list[Tensor | None] = [cast("nn.Linear", getattr(module, "base", module)).bias for module in modules]
        self.bias = (
            None if biases[0] is None else torch.cat([bias.detach().to(dtype) for bias in biases if bias is not None])
        )
        self.packed = packs(merged[0])
        self.weights = [_packed(torch.cat(merged) if len(merged) > 1 else merged[0])] if self.packed else merged
        self._splits = [weight.shape[0] for weight in merged]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """The product [N, outputs] of x [N, inputs]."""
        if self.packed:
            product: Any = torch.ops.mkldnn._linear_pointwise
            if add is None:
                return product(x, self.weights[0], self.bias, "none", [], "")
            return product.binary(x, add, self.weights[0], self.bias, "add")
        biases = [None] * len(self.weights) if self.bias is None else self.bias.split(self._splits)
        parts = [F.linear(x, weight, bias) for weight, bias in zip(self.weights, biases, strict=True)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if add is None else y + add


@torch.no_grad()
def merged_weight(module: nn.Module, adapter: str | None, dtype: torch.dtype) -> Tensor:
    """The weight [outputs, inputs] of a linear layer: its own where no adapter adds to it, else a merged copy."""
    base: Any = module.base if isinstance(module, LoraLinear) else module
    weight: Tensor = base.weight.detach()
    if isinstance(module, LoraLinear) and adapter is not None and adapter in module.scale:
        return module.merged(adapter, dtype)
    return weight.to(dtype)


def packs(weight: Tensor) -> bool:
    """Whether products with this weight gain from a packed layout: bf16 on a CPU that multiplies it natively."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _with_zeros(states: Tensor, spare: int) -> Tensor:
    """States [N, ...] and so many rows of zeros."""
    return F.pad(states, (0, 0, 0, spare)) if spare else states


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)
