"""The layers of a backbone on the tokens of shared rows laid end to end, for training and scoring on a CPU.

There a pass over memory costs as much as a good part of a matrix product. So nothing is computed for padding; prompts
and responses go through each product together, and with them the gradient of its weight; what is done between the
products is done in blocks that stay in the processor's cache, and computed again for the gradient where keeping it
would cost more. The results are those of the family's own layers, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise import kernels
from poise.models.attention import LONGEST, attend, attend_backward, bias_of
from poise.models.decoder import Decoder
from poise.models.elementwise import apply_rope, rms_norm, rms_norm_backward
from poise.models.fused import fuses
from poise.models.fused_linear import RMSNorm, SwiGLU, products
from poise.models.layout import Layout, Places
from poise.models.shared_rows import SharedRows
from poise.ranks import current


def runs_flat(decoder: Decoder, rows: SharedRows) -> bool:
    """Whether `FlatLayers` computes these rows: a known family, whole on a CPU, and rows of moderate length."""
    columns = rows.prompt_ids.shape[1] + rows.width
    is_here = decoder.head.weight.device.type == "cpu" and not current().is_sharded
    return is_here and columns <= LONGEST and fuses(decoder, columns)


class FlatLayers:
    """The layers of a backbone on flat tokens [N, H]: those of all prompts, those of all responses, then zeros to N."""

    def __init__(self, decoder: Decoder, rows: SharedRows):
        self.decoder, self.layout = decoder, Layout.of(rows)
        config = decoder.config
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def flat(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """States [N, H] of the tokens of prompts [G, P, H] and responses [B, R, H]."""
        layout = self.layout
        parts = [prompts.flatten(0, 1)[layout.prompts.padded], responses.flatten(0, 1)[layout.responses.padded]]
        return torch.cat([*parts, prompts.new_zeros(len(layout.positions) - layout.count, prompts.shape[-1])])

    def padded(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States [G, P, H] of prompts and [B, R, H] of responses from those [N, H] of their tokens, 0 elsewhere."""
        layout = self.layout
        border = len(layout.prompts.padded)
        return layout.prompts.put(hidden[:border]), layout.responses.put(hidden[border : layout.count])

    def rotation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [N, 1, D] of a head and of its halves exchanged, at every token's position."""
        extra = self.decoder.position_inputs(like[None], self.layout.positions[None])
        cos, sin = (part[0] for part in extra[0]["position_embeddings"])
        half = self.head_dim // 2
        return cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], -1)[:, None]

    def layer(self, index: int, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """States [N, H] after one more layer."""
        layer = self.decoder.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        dtype = _computed_in(hidden)
        with torch.autocast("cpu", enabled=False):
            first, second = layer.input_layernorm, layer.post_attention_layernorm
            projections, normed = [attention.q_proj, attention.k_proj, attention.v_proj], RMSNorm.by(first, dtype)
            queries, keys, values = products(projections, hidden, first.weight, of=normed)
            if hasattr(attention, "q_norm"):
                queries = self._normed_heads(queries, attention.q_norm)
                keys = self._normed_heads(keys, attention.k_norm)
            factors = tuple(each.to(dtype) for each in rotation)
            attended = SharedAttention.apply(queries, keys, values, *factors, self.layout, attention.scaling)
            hidden = hidden + products([attention.o_proj], attended)[0]
            gate, up = products([mlp.gate_proj, mlp.up_proj], hidden, second.weight, of=RMSNorm.by(second, dtype))
            return hidden + products([mlp.down_proj], gate, up, of=SwiGLU())[0]

    def _normed_heads(self, states: Tensor, module: Any) -> Tensor:
        normed: Tensor = RootMeanSquareNorm.apply(
            states.view(-1, self.head_dim), module.weight, module.variance_epsilon, states.dtype
        )
        return normed.view(states.shape)


def _computed_in(hidden: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's, where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype


class RootMeanSquareNorm(torch.autograd.Function):
    """`rms_norm` of states [N, H], in a dtype of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        """Normalised states [N, H]."""
        found, inverse = rms_norm(x, weight, epsilon, dtype)
        ctx.save_for_backward(x, weight, inverse)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the states and of the weight."""
        found = rms_norm_backward(gradients[0], *ctx.saved_tensors, for_weight=ctx.needs_input_grad[1])
        return *found, None, None


class SharedAttention(torch.autograd.Function):
    """Causal attention of flat tokens with rotated heads: prompts to themselves, responses to theirs and themselves.

    0 for what belongs to no row.

    Queries [N, Hq D], keys and values [N, Hkv D], the factors of the rotation [N, 1, D].
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        """Attended values [N, Hq D]."""
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        ctx.layout, ctx.scale = layout, scale
        if kernels.supports_attention(queries, keys, values, width=cos.shape[-1]):
            attended, logs = kernels.attend(queries, keys, values, layout.rows, width=cos.shape[-1], scale=scale)
            ctx.save_for_backward(queries, keys, values, cos, sin, logs)
            return attended
        ctx.save_for_backward(queries, keys, values, cos, sin)
        heads = queries.shape[1] // cos.shape[-1], keys.shape[1] // cos.shape[-1]
        found = torch.zeros_like(queries)
        for part in _parts(layout, queries, keys, values, heads, scale):
            found[part.tokens] = part.flat(attend(part.queries, part.keys, part.values, part.bias))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        queries, keys, values, cos, sin, *logs = ctx.saved_tensors
        if logs:
            for_queries, for_keys, for_values = kernels.attend_backward(
                gradients[0].contiguous(),
                queries,
                keys,
                values,
                logs[0],
                ctx.layout.rows,
                width=cos.shape[-1],
                scale=ctx.scale,
            )
            turned = (apply_rope(for_queries, cos, -sin), apply_rope(for_keys, cos, -sin))
            return *turned, for_values, None, None, None, None
        heads = queries.shape[1] // cos.shape[-1], keys.shape[1] // cos.shape[-1]
        for_queries, for_keys, for_values = (torch.zeros_like(each) for each in (queries, keys, values))
        parts = _parts(ctx.layout, queries, keys, values, heads, ctx.scale)
        slopes = [
            attend_backward(part.padded(gradients[0][part.tokens]), part.queries, part.keys, part.values, part.bias)
            for part in parts
        ]
        for part, (for_query, for_key, for_value) in zip(parts, slopes, strict=True):
            for_queries[part.tokens] = part.flat(for_query)
            for whole, each in ((for_keys, for_key), (for_values, for_value)):
                of_prompts, own = part.split_keys(each)
                whole[part.tokens] = own
                if of_prompts is not None:
                    whole[: len(of_prompts)] += of_prompts
        for_queries.mul_(ctx.scale)
        return apply_rope(for_queries, cos, -sin), apply_rope(for_keys, cos, -sin), for_values, None, None, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The prompts, or the responses, as rows for attention: batches [rows Hkv, ...] of products."""

    tokens: slice  # among the flat ones
    places: Places
    queries: Tensor  # [rows Hkv, G L, D], scaled
    keys: Tensor  # [rows Hkv, S, D]
    values: Tensor
    bias: Tensor  # [rows or 1, 1, L, S]
    prompts: Places | None = None  # of the responses' part: what comes first among the keys
    owner: Tensor | None = None

    def flat(self, states: Tensor) -> Tensor:
        """States [n, Hq D] of the part's tokens from batches [rows Hkv, G L, D]."""
        return _to_tokens(states.view(self.places.shape[0], -1, self.places.shape[1], states.shape[-1]), self.places)

    def padded(self, states: Tensor) -> Tensor:
        """Batches [rows Hkv, G L, D] from states [n, Hq D] of the part's tokens, 0 where there is none."""
        rows, columns = self.places.shape
        if len(states) < rows * columns:
            states = self.places.put(states)
        heads = states.view(rows, columns, -1, self.queries.shape[-1]).transpose(1, 2)
        return heads.reshape(self.queries.shape)

    def split_keys(self, slopes: Tensor) -> tuple[Tensor | None, Tensor]:
        """Slopes of the keys or values [rows Hkv, S, D] as those of the prompts' tokens and of the part's own."""
        by_head = slopes.view(self.places.shape[0], -1, *slopes.shape[1:])
        own = _to_tokens(by_head[:, :, -self.places.shape[1] :], self.places)
        if self.prompts is None or self.owner is None:
            return None, own
        shared, (count, length) = by_head[:, :, : self.prompts.shape[1]], self.prompts.shape
        wide = torch.promote_types(slopes.dtype, torch.float32)
        summed = torch.zeros(count, shared.shape[1], length, shared.shape[-1], dtype=wide)
        summed.index_add_(0, self.owner, shared.to(wide))
        return _to_tokens(summed, self.prompts), own


def _parts(
    layout: Layout, queries: Tensor, keys: Tensor, values: Tensor, heads: tuple[int, int], scale: float
) -> list[_Part]:
    """The prompts, and the responses if there are any."""
    border = len(layout.prompts.padded)
    first, rest = slice(0, border), slice(border, layout.count)
    prompt_keys, prompt_values = (_by_head(each[first], layout.prompts, heads[1]) for each in (keys, values))

    def batches(each: Tensor) -> Tensor:
        return each.reshape(-1, *each.shape[-2:])

    def grouped(tokens: slice, places: Places) -> Tensor:
        rows = _by_head(queries[tokens] * scale, places, heads[0])
        return rows.reshape(len(rows) * heads[1], -1, rows.shape[-1])

    parts = [
        _Part(
            tokens=first,
            places=layout.prompts,
            queries=grouped(first, layout.prompts),
            keys=batches(prompt_keys),
            values=batches(prompt_values),
            bias=bias_of(layout.causal, like=values),
        )
    ]
    if layout.count > border:
        own_keys, own_values = (_by_head(each[rest], layout.responses, heads[1]) for each in (keys, values))
        parts.append(
            _Part(
                tokens=rest,
                places=layout.responses,
                queries=grouped(rest, layout.responses),
                keys=batches(torch.cat([prompt_keys[layout.owner], own_keys], 2)),
                values=batches(torch.cat([prompt_values[layout.owner], own_values], 2)),
                bias=bias_of(layout.seen, like=values),
                prompts=layout.prompts,
                owner=layout.owner,
            )
        )
    return parts


def _by_head(states: Tensor, places: Places, heads: int) -> Tensor:
    """States [rows, heads, columns, D] from those [n, heads D] of tokens; any where there is no token."""
    rows = states if len(states) == places.shape[0] * places.shape[1] else states.index_select(0, places.flat)
    return rows.view(*places.shape, heads, -1).transpose(1, 2)


def _to_tokens(states: Tensor, places: Places) -> Tensor:
    """States [n, heads D] of tokens from rows [rows, heads, columns, D]."""
    rows = states.transpose(1, 2).flatten(2).flatten(0, 1)
    return rows if len(places.padded) == len(rows) else rows.index_select(0, places.padded)
