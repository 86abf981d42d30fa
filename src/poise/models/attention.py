"""Attention of short rows on a CPU, as products of whole batches.

torch's fused kernel needs less memory, but on a CPU its backward pass costs some ten times these products (rows of a
hundred tokens, bf16). Longer rows and other devices use torch's. Registered with transformers under `NAME`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NAME = "poise"
LONGEST = 1024  # keys; beyond it the scores of a batch take too much memory
_BLOCK = 1 << 19  # weights that are computed at once
_NOT_OURS = ("position_bias", "cache", "output_attentions")  # of what transformers may ask for
_FAMILYS_OWN = ("softcap", "s_aux")  # scores that are bounded, sinks: only the family's own functions compute them


class BatchedAttention(torch.autograd.Function):
    """`attend` with its gradient; the weights are computed again for it: no [.., L, S] is kept between the passes."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attended values [B Hkv, G L, D]."""
        ctx.save_for_backward(queries, keys, values, bias)
        return attend(queries, keys, values, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        return *attend_backward(gradients[0], *ctx.saved_tensors), None


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """softmax(Q K^T + bias) V with the query heads of a key head as rows of one product.

    Q is [B Hkv, G L, D] and scaled, K and V [B Hkv, S, D], the bias [B or 1, 1, L, S].
    """
    found = torch.empty_like(queries)
    for rows, part in _blocks(queries, keys, bias):
        torch.bmm(_weights(queries[rows], keys[rows], part), values[rows], out=found[rows])
    return found


def attend_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `attend`."""
    found = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
    for rows, part in _blocks(queries, keys, bias):
        weights = _weights(queries[rows], keys[rows], part)
        to_weights = torch.bmm(gradient[rows], values[rows].transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        torch.bmm(to_scores, keys[rows], out=found[0][rows])
        torch.bmm(to_scores.transpose(1, 2), queries[rows], out=found[1][rows])
        torch.bmm(weights.transpose(1, 2), gradient[rows], out=found[2][rows])
    return found


def _blocks(queries: Tensor, keys: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Batches whose weights stay in the processor's cache, with their bias [b or 1, 1, L, S]."""
    batches, heads = len(queries), max(1, queries.shape[1] // bias.shape[2])
    per_row = batches if len(bias) == 1 else batches // len(bias)  # key heads, where each row has its own bias
    at_once = max(1, _BLOCK // max(1, heads * bias.shape[2] * bias.shape[3]))
    if len(bias) == 1:
        yield from ((slice(begin, begin + at_once), bias) for begin in range(0, batches, at_once))
        return
    at_once = max(1, at_once // per_row)
    for begin in range(0, len(bias), at_once):
        yield slice(begin * per_row, (begin + at_once) * per_row), bias[begin : begin + at_once]


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
    if any(rest.get(name) is not None for name in _FAMILYS_OWN):
        return _by_family(module, query, key, value, attention_mask, dropout, scaling, **rest)
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
            bias_of(_causal(length, query) if attention_mask is None else attention_mask, like=value),
        )
    return attended.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def _by_family(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attended values by the plain function that the module's family defines, which knows all that it asks for."""
    compute = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    seen = _causal(query.shape[2], query) if mask is None and query.shape[2] > 1 else mask
    bias = None if seen is None else bias_of(seen, like=value)
    kind = value.dtype
    with torch.autocast(query.device.type, enabled=False):
        found = compute(module, query.to(kind), key.to(kind), value, bias, scaling=scaling, dropout=dropout, **rest)
    return found[0], None


def _fits(mask: Tensor | None, batch: int) -> bool:
    return mask is not None and mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[0] in (1, batch)


def _causal(length: int, like: Tensor) -> Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).tril()


def bias_of(mask: Tensor, *, like: Tensor) -> Tensor:
    """What is added to the scores [B or 1, 1, L, S]: 0, or a number so low that nothing is left after the softmax."""
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
