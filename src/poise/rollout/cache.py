"""Keys and values of the rows in progress, in buffers that are allocated once, and attention to them.

A row in progress has a slot; used slots are always the first ones, so every view is a slice. Prompts that several rows
share are in a second buffer, once for all their rows.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RowCache:
    """Keys and values [layers, 2, rows, heads, columns, D], of which the first `count` rows are in use.

    `sizes` [rows] columns of each row are filled. `begin_step` decides where the next token of every row goes.
    """

    def __init__(self, *, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        layers, self.rows, heads, self.columns, width = shape
        self.buffer = _zeros((layers, 2, self.rows, heads, self.columns, width), dtype, device)
        self._flat = self.buffer.view(layers, -1, width)
        self.count = 0
        self.sizes = torch.zeros(self.rows, dtype=torch.long, device=device)
        starts = torch.arange(2 * self.rows * heads, device=device).view(2, self.rows, heads) * self.columns
        self._starts = starts.transpose(0, 1)  # [rows, 2, heads]
        self.span = self.width = 0  # rows and columns of this step
        self.mask: Tensor | None = None  # [span, 1, 1, width], 0 where a row may look and -inf elsewhere
        self._places = torch.zeros(0, dtype=torch.long)

    def begin_step(self) -> None:
        """Give the next token of each row its column, and work out what rows of this width attend to."""
        shortest, longest = (int(bound) for bound in self.sizes[: self.count].aminmax())
        self.look(self.count, longest + 1, masked=shortest < longest)
        self.sizes[: self.count] += 1

    def look(self, span: int, width: int, *, masked: bool = True) -> None:
        """Let the next token of each of the first `span` rows have its column, and attend to `width` columns."""
        sizes = self.sizes[:span]
        self.span, self.width, self.mask = span, width, None
        self._places = (self._starts[:span] + sizes[:, None, None]).flatten()
        if masked:
            seen = torch.arange(width, device=sizes.device) <= sizes[:, None]
            self.mask = _additive(seen, self.buffer.dtype)

    def store(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values [span, 2 heads, D] of a layer in; returns [span, heads, width, D] to attend to."""
        self._flat[layer].index_copy_(0, self._places, new.reshape(-1, new.shape[-1]))
        keys, values = self.buffer[layer, :, : self.span, :, : self.width]
        return keys, values

    def fill(self, layer: int, begin: int, new: Tensor, copies: int = 1) -> None:
        """Put the keys and values [2, prompts, heads, L, D] of whole prompts in, in `copies` adjacent rows each."""
        end = begin + new.shape[1] * copies
        rows = self.buffer[layer, :, begin:end, :, : new.shape[3]]
        rows.unflatten(1, (-1, copies)).copy_(new.unsqueeze(2))

    def leave(self, row: int) -> int:
        """Free a row; the last one takes its slot. Returns the slot that moved."""
        last = self.count - 1
        if row != last:
            filled = int(self.sizes[last])
            self.buffer[:, :, row, :, :filled] = self.buffer[:, :, last, :, :filled]
            self.sizes[row] = self.sizes[last]
        self.sizes[last] = 0
        self.count = last
        return last


class PromptCache:
    """Keys and values [layers, 2, slots, heads, columns, D] of prompts, each shared by up to `group` rows.

    `owner` and `place` [rows] say which prompt a row belongs to and its number among that prompt's rows.
    """

    def __init__(
        self, *, shape: tuple[int, int, int, int, int], group: int, rows: int, dtype: torch.dtype, device: torch.device
    ):
        layers, slots, heads, columns, width = shape
        self.buffer = _zeros((layers, 2, slots, heads, columns, width), dtype, device)
        self.group = group
        self.sizes = torch.zeros(slots, dtype=torch.long, device=device)
        self.owner = torch.zeros(rows, dtype=torch.long, device=device)
        self.place = torch.zeros(rows, dtype=torch.long, device=device)
        self.left = [0] * slots  # rows of each prompt that are still in progress
        self._used = self._width = 0
        self._index = torch.zeros(0, dtype=torch.long)
        self._mask: Tensor | None = None

    def free_slots(self) -> list[int]:
        """Slots without rows."""
        return [slot for slot, left in enumerate(self.left) if left == 0]

    def admit(self, slots: list[int], lengths: Tensor, begin: int) -> None:
        """Rows from `begin` on belong to the prompts in these slots, `group` adjacent ones to each."""
        chosen = torch.tensor(slots, device=self.sizes.device)
        self.sizes[chosen] = lengths
        rows = slice(begin, begin + len(slots) * self.group)
        self.owner[rows] = chosen.repeat_interleave(self.group)
        self.place[rows] = torch.arange(self.group, device=self.sizes.device).repeat(len(slots))
        for slot in slots:
            self.left[slot] = self.group

    def fill(self, layer: int, slots: list[int], new: Tensor) -> None:
        """Put the keys and values [2, prompts, heads, L, D] of prompts into their slots."""
        self.buffer[layer, :, slots, :, : new.shape[3]] = new

    def leave(self, row: int, last: int) -> None:
        """A row is done, and the row `last` has taken its slot."""
        self.left[int(self.owner[row])] -= 1
        self.owner[row], self.place[row] = self.owner[last].clone(), self.place[last].clone()

    def begin_step(self, count: int) -> None:
        """Work out where the queries of `count` rows go among those of their prompts."""
        self._used = 1 + max(slot for slot, left in enumerate(self.left) if left)
        sizes = self.sizes[: self._used]
        self._index = self.owner[:count] * self.group + self.place[:count]
        self._width = int(sizes.max())
        self._mask = None
        if int(sizes.min()) < self._width:  # a slot never used has size 0; nothing reads what comes out of it
            seen = torch.arange(self._width, device=sizes.device) < sizes[:, None].clamp(min=1)
            self._mask = _additive(seen, self.buffer.dtype)

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of queries [count, heads, G, D] to their prompts, and its log-normalisers [count, heads, G]."""
        count, heads, size, width = queries.shape
        grouped = queries.new_zeros(self._used * self.group, heads * size * width)
        grouped.index_copy_(0, self._index, queries.reshape(count, -1))
        shape = (self._used, self.group, heads, size, width)
        grouped = grouped.view(shape).transpose(1, 2).reshape(self._used, heads, self.group * size, width)
        keys, values = self.buffer[layer, :, : self._used, :, : self._width]
        found, normalisers = attention_with_normalisers(grouped, keys, values, self._mask)
        found = found.reshape(self._used, heads, self.group, size, width).transpose(1, 2).flatten(0, 1)
        normalisers = normalisers.reshape(self._used, heads, self.group, size).transpose(1, 2).flatten(0, 1)
        return found[self._index], normalisers[self._index]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: what a mask hides must still be finite, as nothing times a NaN is a NaN.

    On a CPU with Linux they are pages of their own, which the system clears and takes back as a whole. In the heap,
    where weights are packed and let go call by call, a block of that size seldom finds the hole it left: it grows.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages: small ones do as well
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [B, 1, 1, S] to add to scores, from which columns [B, S] are seen; made once for all layers."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return mask[:, None, None]


def attention_with_normalisers(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, M, D] and the logarithms [B, H, M] of the sums that it divides by."""
    if queries.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=mask)
    scores = (queries @ keys.transpose(-1, -2)).float() / queries.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    normalisers = scores.logsumexp(-1)
    return (scores - normalisers[..., None]).exp().to(values.dtype) @ values, normalisers


def attend_step(rows: RowCache, prompts: PromptCache | None, layer: int, queries: Tensor, new: Tensor) -> Tensor:
    """Attention [count, Hq, D] of one new token per row to its prompt and its own tokens.

    Query heads that share a key head are rows of one product: keys are never repeated.
    """
    keys, values = rows.store(layer, new)
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    if prompts is None:
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=rows.mask).flatten(1, 2)
    shared, shared_normalisers = prompts.attend(layer, grouped)
    own, own_normalisers = attention_with_normalisers(grouped, keys, values, rows.mask)
    weight = torch.sigmoid(shared_normalisers - own_normalisers)[..., None]
    return torch.lerp(own.float(), shared.float(), weight).to(own.dtype).flatten(1, 2)


class LayerCache:
    """A `RowCache` as the attention layers of transformers use one: for families that `FusedDecoder` does not know."""

    def __init__(self, rows: RowCache, *, copies: int = 1, begin: int = 0, prefill: bool = False):
        self.rows, self.copies, self.begin, self.prefill = rows, copies, begin, prefill

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, L, D] of a layer; return what this step attends to."""
        if self.prefill:
            self.rows.fill(layer, self.begin, torch.stack([keys, values]), self.copies)
            return keys, values
        return self.rows.store(layer, torch.cat([keys, values], 1)[:, :, 0])


class KeyShape:
    """What stands where a cache would, to see how many heads of keys a layer has and how wide they are."""

    shape: tuple[int, int]

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Note the shape of keys [B, heads, L, D] and return both as they are."""
        self.shape = keys.shape[1], keys.shape[3]
        return keys, values
