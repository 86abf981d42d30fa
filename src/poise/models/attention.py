"""Attention of short rows on a CPU, as products of whole batches.

torch's fused kernel needs less memory, but on a CPU its backward pass costs some ten times these products (rows of a
hundred tokens, bf16). Longer rows and other devices use torch's. Registered with transformers under `NAME`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "poise"
LONGEST = 1024  # keys; beyond it the scores of a batch take too much memory
_NOT_OURS = ("softcap", "position_bias", "cache", "output_attentions")  # of what transformers may ask for


class BatchedAttention(torch.autograd.Function):
    """softmax(Q K^T + bias) V with the query heads of a key head as rows of one product.

    Q is [B Hkv, G L, D] and scaled, K and V [B Hkv, S, D], the bias [B or 1, 1, L, S]. The weights are computed again
    for the gradient, so that no [.., L, S] is kept between the passes.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attended values [B Hkv, G L, D]."""
        ctx.save_for_backward(queries, keys, values, bias)
        return torch.bmm(_weights(queries, keys, bias), values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        queries, keys, values, bias = ctx.saved_tensors
        (gradient,) = gradients
        weights = _weights(queries, keys, bias)
        to_weights = torch.bmm(gradient, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        return (
            torch.bmm(to_scores, keys),
            torch.bmm(to_scores.transpose(1, 2), queries),
            torch.bmm(weights.transpose(1, 2), gradient),
            None,
        )


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Attention weights [B Hkv, G L, S]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    length, size = bias.shape[-2:]
    grouped = scores.view(bias.shape[0], -1, scores.shape[1] // length, length, size)  # a bias of one row fits all
    grouped.add_(bias[:, :, None])
    return scores.softmax(-1)


def attention(
    module: Any,
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,
    attention_mask: Tensor | None,  # [B, 1, L, S], bool or added to the scores; None is causal
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attended values [B, L, Hq, D], with the signature that transformers expects."""
    batch, heads, length, width = query.shape
    key_heads, size = key.shape[1:3]
    is_square = attention_mask is None and length == size and is_causal is not False
    is_plain = dropout == 0 and all(rest.get(name) is None for name in _NOT_OURS)
    is_short = query.device.type == "cpu" and size <= LONGEST
    if not (is_short and is_plain and (is_square or _fits(attention_mask, batch))):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **rest
        )
    kind = value.dtype
    with torch.autocast("cpu", enabled=False):
        scaled = query.to(kind) * (width**-0.5 if scaling is None else scaling)
        attended = BatchedAttention.apply(
            scaled.reshape(batch * key_heads, -1, width),
            key.to(kind).reshape(batch * key_heads, size, width),
            value.reshape(batch * key_heads, size, width),
            _bias(attention_mask, length, like=value),
        )
    return attended.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def _fits(mask: Tensor | None, batch: int) -> bool:
    return mask is not None and mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[0] in (1, batch)


def _bias(mask: Tensor | None, length: int, *, like: Tensor) -> Tensor:
    """What is added to the scores [B or 1, 1, L, S]: 0, or a number so low that nothing is left after the softmax."""
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).tril()
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~mask, torch.finfo(like.dtype).min
    )


def register() -> str:
    """Make transformers know it; returns its name, for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
