"""Continuous batching: prompts wait, enter free rows, advance one token at a time with the others, and leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from poise import kernels
from poise.models.decoder import Decoder, pad_rows
from poise.models.fused import FusedDecoder
from poise.rollout.cache import KeyShape, LayerCache, PromptCache, RowCache, attend_step
from poise.rollout.sampling import sample_tokens
from poise.types import Finish, Sampling

_PREFILL_TOKENS = 2048  # padded prompt tokens that are computed at once
_STATIC_COLUMNS = 64  # what the columns of a captured step are a multiple of
_ADMIT_SHARE = 8  # prompts enter when an eighth of the rows is free: one at a time they would be slow


@dataclass(slots=True, kw_only=True)
class Row:
    """A completion that is being generated."""

    number: int  # among all rows of the call
    prompt_length: int
    uniforms: Tensor  # [max_tokens]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None


class Forward(Protocol):
    """What generation needs of a model: prefill of prompts, and one decoding step for all rows."""

    shares_prompts: bool  # whether rows of one prompt attend to one copy of it
    cache_shape: tuple[int, int, int]  # layers, heads of keys and entries of a key

    def prefill(self, ids: Tensor, lengths: Tensor, caches: Caches, begin: int, slots: list[int]) -> Tensor:
        """Run prompts [G, P], store their keys and values; logits [G, V] of what follows each."""
        ...

    def step(self, tokens: Tensor, positions: Tensor, caches: Caches) -> Tensor:
        """Run one token [B] at its position [B] per row in progress; logits [B, V]."""
        ...


@dataclass(slots=True, kw_only=True)
class Caches:
    """The keys and values that the rows in progress attend to."""

    rows: RowCache
    prompts: PromptCache | None
    copies: int  # rows per prompt

    def begin_step(self) -> None:
        """Reserve a column for one more token of every row in progress."""
        self.rows.begin_step()
        if self.prompts is not None:
            self.prompts.begin_step(self.rows.count)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """What a layer's kernel of attention reads: the rows' cache and sizes, and their prompts'."""
        rows, prompts = self.rows, self.prompts
        shared = None if prompts is None else (prompts.buffer[layer], prompts.owner[: rows.count], prompts.sizes)
        return rows.buffer[layer], rows.sizes[: rows.count], shared


class FusedForward:
    """The known families, by `FusedDecoder`."""

    shares_prompts = True

    def __init__(self, decoder: Decoder, *, adapter: str | None, dtype: torch.dtype, columns: int):
        self.decoder = FusedDecoder(decoder, adapter=adapter, dtype=dtype)
        self.cache_shape = decoder.depth, self.decoder.key_heads, self.decoder.head_dim
        self.cos, self.sin = self.decoder.rotation(columns)

    def prefill(self, ids: Tensor, lengths: Tensor, caches: Caches, begin: int, slots: list[int]) -> Tensor:
        """Run prompts [G, P], store their keys and values; logits [G, V] of what follows each."""
        count, length = ids.shape

        rotation = self.cos[:length].repeat(count, 1), self.sin[:length].repeat(count, 1)
        rows = kernels.Rows(torch.arange(count) * length, lengths, lengths[:0])

        def attend(layer: int, states: Tensor) -> Tensor:
            queries, new = self.decoder.turned(states, rotation)
            pairs = new.unflatten(0, (count, length)).unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4)
            if caches.prompts is not None:
                caches.prompts.fill(layer, slots, pairs)
            else:
                caches.rows.fill(layer, begin, pairs, caches.copies)
            flat, width = queries.flatten(1), queries.shape[-1]
            keys, values = new.flatten(1).chunk(2, -1)
            if kernels.supports_attention(flat, keys, values, width=width):
                return kernels.attend(flat, keys, values, rows, width=width, scale=width**-0.5)[0]
            queries = queries.unflatten(0, (count, length)).transpose(1, 2)
            repeats = queries.shape[1] // pairs.shape[2]
            keys, values = (part.repeat_interleave(repeats, 1) for part in pairs)
            found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return found.transpose(1, 2).flatten(0, 1)

        hidden = self.decoder.run(self.decoder.embed(ids.flatten()), attend).unflatten(0, (count, length))
        return self.decoder.logits(hidden[torch.arange(count, device=ids.device), lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor, caches: Caches) -> Tensor:
        """Run one token [B] at its position [B] per row in progress; logits [B, V]."""
        caches.begin_step()
        rotation = self.cos[positions], self.sin[positions]

        def attend(layer: int, states: Tensor) -> Tensor:
            if kernels.supports_decoding(states, self.decoder.heads, self.decoder.key_heads):
                return kernels.attend_step(states, rotation, *caches.of_layer(layer))
            return attend_step(caches.rows, caches.prompts, layer, *self.decoder.turned(states, rotation))

        return self.decoder.logits(self.decoder.run(self.decoder.embed(tokens), attend))


class StaticForward(FusedForward):
    """The same with decoding steps of few shapes, each captured once as a CUDA graph and replayed.

    A step of a small model is hundreds of kernels that take less time than their launches. Rows are rounded up to a
    power of two and columns to a multiple of 64; what lies beyond is masked or thrown away. Every row has a copy of its
    prompt. On a CPU the same steps run without a graph, which is how they are tested.
    """

    shares_prompts = False

    def __init__(self, decoder: Decoder, *, adapter: str | None, dtype: torch.dtype, columns: int):
        super().__init__(decoder, adapter=adapter, dtype=dtype, columns=columns)
        self._graphs: dict[tuple[int, int], tuple[Any, Tensor]] = {}
        self._fed = torch.zeros(2, 0, dtype=torch.long)  # tokens and positions, where graphs read them

    def step(self, tokens: Tensor, positions: Tensor, caches: Caches) -> Tensor:
        """Run one token [B] at its position [B] per row in progress; logits [B, V], until the next step."""
        rows, count = caches.rows, len(tokens)
        if not self._fed.shape[1]:
            self._fed = tokens.new_zeros(2, rows.rows)
        self._fed[:, :count] = torch.stack([tokens, positions])
        span = min(rows.rows, 1 << (count - 1).bit_length())
        width = min(rows.columns, -(-(int(rows.sizes[:count].max()) + 1) // _STATIC_COLUMNS) * _STATIC_COLUMNS)
        if tokens.device.type != "cuda":
            logits = self._of_shape(span, width, rows)
        else:
            if (span, width) not in self._graphs:
                self._graphs[span, width] = self._captured(span, width, rows)
            graph, logits = self._graphs[span, width]
            graph.replay()
        rows.sizes[:count] += 1
        return logits[:count]

    def _of_shape(self, span: int, width: int, rows: RowCache) -> Tensor:
        """Logits [span, V]; rows that are not in progress write to the first column of their own, and are not read."""
        tokens, positions = self._fed[:, :span]
        rows.look(span, width)
        rotation = self.cos[positions], self.sin[positions]

        def attend(layer: int, states: Tensor) -> Tensor:
            return attend_step(rows, None, layer, *self.decoder.turned(states, rotation))

        return self.decoder.logits(self.decoder.run(self.decoder.embed(tokens), attend))

    def _captured(self, span: int, width: int, rows: RowCache) -> tuple[Any, Tensor]:
        """A graph and where it leaves its logits; run once before, on a stream of its own, as torch asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._of_shape(span, width, rows)  # writes what the graph will write again
        torch.cuda.current_stream().wait_stream(stream)
        graph, pool = torch.cuda.CUDAGraph(), next((graph.pool() for graph, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            logits = self._of_shape(span, width, rows)
        return graph, logits


class LayerForward:
    """Any family that `Decoder` runs, by transformers' own layers; every row has a copy of its prompt."""

    shares_prompts = False

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        device = decoder.head.weight.device
        measured = KeyShape()  # a configuration may name heads that its family does not read
        decoder.run(decoder.embed(torch.zeros(1, 1, dtype=torch.long, device=device)), stop=1, cache=measured)
        self.cache_shape = decoder.depth, *measured.shape

    def prefill(self, ids: Tensor, lengths: Tensor, caches: Caches, begin: int, slots: list[int]) -> Tensor:
        """Run prompts [G, P], store their keys and values; logits [G, V] of what follows each."""
        cache = LayerCache(caches.rows, copies=caches.copies, begin=begin, prefill=True)
        hidden = self.decoder.run(self.decoder.embed(ids), cache=cache)
        return self.decoder.logits(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor, caches: Caches) -> Tensor:
        """Run one token [B] at its position [B] per row in progress; logits [B, V]."""
        caches.begin_step()
        at, cache = positions[:, None], LayerCache(caches.rows)
        columns = torch.arange(caches.rows.width, device=tokens.device)[None]  # which are positions in the rows
        hidden = self.decoder.embed(tokens[:, None], at)
        hidden = self.decoder.run(hidden, positions=at, mask=caches.rows.mask, key_positions=columns, cache=cache)
        return self.decoder.logits(hidden[:, 0])


class Generation:
    """One call of the engine: all rows of all prompts, `batch_rows` of them in progress at a time.

    `prompts` are token ids; `rows` are prompt-major, `sampling.samples` for each; `ends` says of a row whether the
    token it has just got was its last.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[list[int]],
        rows: Sequence[Row],
        *,
        sampling: Sampling,
        ends: Callable[[Row], bool],
        batch_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.forward, self.prompts, self.rows, self.sampling, self.ends = forward, prompts, rows, sampling, ends
        self.device, self.samples = device, sampling.samples
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
        self.active: list[Row] = []  # by slot
        capacity = min(max(batch_rows, self.samples), len(rows))
        self.caches = self._caches(capacity, dtype)

    def _caches(self, capacity: int, dtype: torch.dtype) -> Caches:
        layers, key_heads, width = self.forward.cache_shape
        longest, own = max(map(len, self.prompts)), max(1, self.sampling.max_tokens - 1)
        prompts = None
        if self.forward.shares_prompts and self.samples > 1:
            slots = min(len(self.prompts), 2 * -(-capacity // self.samples))
            prompts = PromptCache(
                shape=(layers, slots, key_heads, longest, width),
                group=self.samples,
                rows=capacity,
                dtype=dtype,
                device=self.device,
            )
        columns = own if prompts else longest + own
        rows = RowCache(shape=(layers, capacity, key_heads, columns, width), dtype=dtype, device=self.device)
        return Caches(rows=rows, prompts=prompts, copies=self.samples)

    def run(self) -> None:
        """Complete every row."""
        while self.waiting or self.active:
            self._admit()
            if self.active:
                self._advance()

    def _admit(self) -> None:
        """Let waiting prompts in, each with all its samples, once enough rows are free for an efficient pass."""
        rows, prompts = self.caches.rows, self.caches.prompts
        enough = max(1, rows.rows // (_ADMIT_SHARE * self.samples))
        while self.waiting:
            free = (rows.rows - rows.count) // self.samples
            if prompts is not None:
                free = min(free, len(prompts.free_slots()))
            if free < 1 or (self.active and free < min(enough, len(self.waiting))):
                return
            chosen: list[int] = []
            while self.waiting and len(chosen) < free:
                if chosen and (len(chosen) + 1) * len(self.prompts[self.waiting[0]]) > _PREFILL_TOKENS:
                    break
                chosen.append(self.waiting.popleft())
            self._enter(chosen)

    def _enter(self, chosen: list[int]) -> None:
        """Prefill the chosen prompts, give their samples rows and draw each one's first token."""
        ids, lengths = pad_rows([self.prompts[i] for i in chosen], device=self.device)
        rows, prompts, begin = self.caches.rows, self.caches.prompts, self.caches.rows.count
        slots = [] if prompts is None else prompts.free_slots()[: len(chosen)]
        if prompts is not None:
            prompts.admit(slots, lengths, begin)
        logits = self.forward.prefill(ids, lengths, self.caches, begin, slots)
        repeated = lengths.repeat_interleave(self.samples)
        end = begin + len(repeated)
        rows.sizes[begin:end] = repeated if prompts is None else 0
        rows.count = end
        self.active += [self.rows[i * self.samples + s] for i in chosen for s in range(self.samples)]
        self._sample(logits.repeat_interleave(self.samples, 0), begin)

    def _advance(self) -> None:
        """Feed every row its last token and draw the next."""
        tokens = torch.tensor([row.tokens[-1] for row in self.active], device=self.device)
        positions = torch.tensor([row.prompt_length + len(row.tokens) - 1 for row in self.active], device=self.device)
        self._sample(self.forward.step(tokens, positions, self.caches), 0)

    def _sample(self, logits: Tensor, begin: int) -> None:
        """One more token for the rows from slot `begin` on; those that end leave, the last first: that moves least."""
        rows = self.active[begin:]
        uniforms = torch.stack([row.uniforms[len(row.tokens)] for row in rows])
        drawn, values = sample_tokens(
            logits, uniforms, temperature=self.sampling.temperature, top_p=self.sampling.top_p
        )
        for row, token, value in zip(rows, drawn.tolist(), values.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(value)
            if self.ends(row):
                row.finish = "stop"
            elif len(row.tokens) == self.sampling.max_tokens:
                row.finish = "length"
        for slot in reversed(range(begin, len(self.active))):
            if self.active[slot].finish is not None:
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        last = self.caches.rows.leave(slot)
        if self.caches.prompts is not None:
            self.caches.prompts.leave(slot, last)
        moved = self.active.pop()
        if slot != last:
            self.active[slot] = moved
