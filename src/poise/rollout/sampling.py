"""Draw tokens from logits, fast on large vocabularies and with a random stream of its own per sequence.

`softmax` + `multinomial` over 49,152 entries costs more than the forward pass on a CPU; here a two-level inverse
CDF sums blocks of the unnormalised probabilities, picks a block, and looks inside that block only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from poise import kernels

_BLOCK = 256
_ROWS = 8  # whose logits stay in a processor's cache through all passes over them


def uniform_stream(seed: int, prompt_id: str, sample: int, count: int) -> Tensor:
    """`count` uniforms in [0, 1) that depend on (seed, prompt, sample) alone, not on the batch around them."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def sample_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverse CDF; temperature 0 takes the most likely one.

    logits    [B, V]
    uniforms  [B] in [0, 1), float64 where the vocabulary is large
    returns   ids [B] and their log-probabilities [B] in nats under the distribution drawn from (at temperature 0,
              where there is none, under the softmax of the logits)
    """
    if temperature > 0 and top_p >= 1 and kernels.supports_tensors(logits):
        return kernels.sample_tokens(logits, uniforms.double().contiguous(), temperature)
    if logits.device.type != "cpu" or len(logits) <= _ROWS:
        return _sample(logits, uniforms, temperature, top_p)
    parts = [
        _sample(logits[begin : begin + _ROWS], uniforms[begin : begin + _ROWS], temperature, top_p)
        for begin in range(0, len(logits), _ROWS)
    ]
    ids, logprobs = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(logprobs)


def _sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    if temperature == 0:
        logits = logits.float()
        ids = logits.argmax(-1)
        return ids, (logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1))
    scaled = logits.to(torch.float32, copy=True)
    if temperature != 1:
        scaled.div_(temperature)
    scaled.sub_(scaled.amax(-1, keepdim=True))
    if top_p < 1:
        scaled = keep_nucleus(scaled, top_p)
    ids, total = _inverse_cdf(scaled.exp(), uniforms.to(scaled.device))
    return ids, scaled.gather(-1, ids[:, None])[:, 0] - total.log()


def keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Set scores [B, V] outside the smallest set whose probability reaches top_p to -inf."""
    ordered, index = scores.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(scores).scatter(-1, index, ordered)


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    rows, size = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = padded.view(rows, -1, _BLOCK)
    block_ends = blocks.sum(-1).double().cumsum(-1)
    total = block_ends[:, -1:]
    target = uniforms[:, None] * total
    block = torch.searchsorted(block_ends, target, right=True).clamp(max=block_ends.shape[1] - 1)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].double()
    ends = inside.cumsum(-1)
    # rounding may leave the target at or beyond the block's last positive entry: stay on tokens with weight
    last = (inside > 0).long().mul(torch.arange(1, _BLOCK + 1, device=inside.device)).amax(-1, keepdim=True) - 1
    offset = torch.searchsorted(ends, target - before, right=True).minimum(last.clamp(min=0))
    ids = (block * _BLOCK + offset)[:, 0].clamp(max=size - 1)
    return ids, total[:, 0].float()


def stop_position(text: str, stops: Sequence[str]) -> int:
    """Where the earliest stop text begins, or -1."""
    found = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return min(found, default=-1)
