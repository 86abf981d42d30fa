"""Log-probabilities of given tokens, without a second copy of the logits.

A vocabulary of 50,000 makes logits the largest tensor of a training step. The functions here work through it in
blocks, in float32 whatever the dtype of the model, and keep one number per token for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from poise import kernels
from poise.errors import ConfigError

_BLOCK_ELEMENTS = 1 << 19  # 2 MiB of float32 at a time: what stays in a core's cache
_GPU_BLOCK_ELEMENTS = 1 << 22  # where a call costs more than a pass through memory
_KEPT_ROWS = 512  # rows of kept logits that the backward pass turns into slopes at once


class TokenLogprobs(NamedTuple):
    """Log-probabilities of tokens and the entropy of the distributions they come from."""

    logprobs: Tensor  # [N] nats
    entropy: Tensor  # [N] nats, without gradient


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Read the log-probability of each token from the logits at its position.

        log softmax(logits)[id] = logits[id] - logsumexp(logits)

    Computed in float32 (float64 stays float64). The gradient has the dtype of the logits; no float32 copy of them
    is kept in between. The logits at position t predict token t + 1: shift before you call.

    logits   [..., V]
    ids      [...] int64
    returns  [...] nats

    Raises ConfigError if the shapes do not match.

    >>> token_logprobs(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor([-1.3863, -1.3863])
    """
    if ids.shape != logits.shape[:-1]:
        raise ConfigError(
            f"ids have shape {tuple(ids.shape)} but logits {tuple(logits.shape)}: "
            "give one id for each position of the logits (all dimensions but the last)"
        )
    if logits.dim() == 1:
        return _TokenLogprobs.apply(logits.unsqueeze(0), ids.unsqueeze(0)).squeeze(0)
    return _TokenLogprobs.apply(logits, ids)


def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    chunk: int = 256,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    cap: float | None = None,
) -> TokenLogprobs:
    """Take token log-probabilities from hidden states through the LM head, `chunk` rows of logits at a time.

        log softmax((hidden W^T + bias) / temperature)[id]; with a cap c, of c tanh((hidden W^T + bias) / c)

    The N x V logits never exist at once unless N <= chunk: then they are kept for the backward pass, which otherwise
    computes each chunk again. The matrix product runs in
    the dtype of `weight` (hidden states are cast to it), the softmax in float32 (float64 stays float64). Gradients
    flow from `logprobs` to `hidden`, and to `weight` and `bias` where these ask for one; none flows from `entropy`.

    hidden       [N, H]
    weight       [V, H] of the LM head
    ids          [N] int64
    chunk        rows of logits held at once
    bias         [V] or None
    temperature  > 0; the one that was sampled with, so that the log-probabilities belong to the sampler
    cap          > 0, the bound of the logits (Gemma 2), or None
    returns      (logprobs [N] nats, entropy [N] nats)

    Raises ConfigError for a temperature not above 0, a chunk below 1, or shapes that do not match.

    >>> result = chunked_token_logprobs(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2]), chunk=2)
    >>> result.entropy
    tensor([1.3863, 1.3863, 1.3863])
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: log-probabilities need one above 0 (1.0 leaves the logits)")
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}: at least 1 row of logits must be computed at a time")
    if hidden.dim() != 2 or ids.shape != hidden.shape[:1]:
        raise ConfigError(
            f"hidden has shape {tuple(hidden.shape)} and ids {tuple(ids.shape)}: "
            "flatten them to [N, H] and [N] first, for example with hidden[mask] and ids[mask]"
        )
    return TokenLogprobs(*_ChunkedTokenLogprobs.apply(hidden, weight, bias, ids, chunk, temperature, cap))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the softmax is computed in."""
    return torch.promote_types(dtype, torch.float32)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Cut 0..count into slices of at most `size`."""
    return (slice(start, start + size) for start in range(0, count, size))


def _rows_per_block(logits: Tensor) -> int:
    most = _BLOCK_ELEMENTS if logits.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    return max(1, most * len(logits) // max(1, logits.numel()))


class _TokenLogprobs(torch.autograd.Function):
    """Blocks run along the first dimension, so that logits[:, :-1] is never copied to make it contiguous."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        wide, index = _wide(logits.dtype), ids.unsqueeze(-1)
        # apart from each other: in float32 their sum would round away the digits that logits of 500 leave to it
        top, total = torch.empty((2, *ids.shape, 1), dtype=wide, device=logits.device).unbind()
        for rows in _blocks(len(logits), _rows_per_block(logits)):
            block = logits[rows].to(wide)
            top[rows] = block.amax(-1, keepdim=True)
            total[rows] = (block - top[rows]).exp_().sum(-1, keepdim=True).log_()
        ctx.save_for_backward(logits, index, top, total)
        return (logits.gather(-1, index).to(wide) - top - total).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, index, top, total = ctx.saved_tensors
        slope = grads[0].unsqueeze(-1)
        gradient = torch.empty_like(logits)
        for rows in _blocks(len(logits), _rows_per_block(logits)):
            block = (logits[rows].to(top.dtype) - top[rows]).sub_(total[rows]).exp_().mul_(-slope[rows])
            gradient[rows] = block.scatter_add_(-1, index[rows], slope[rows])
        return gradient, None


class _ChunkedTokenLogprobs(torch.autograd.Function):
    """Logits that fit into one chunk are kept for the backward pass; more of them are computed again there.

    They stay in the dtype of the weight: blocks of a few rows are widened, read and forgotten.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        chunk: int,
        temperature: float,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        normaliser, logprobs, entropy = torch.empty(
            (3, len(ids)), dtype=_wide(weight.dtype), device=hidden.device
        ).unbind()
        logits = None
        for rows in _blocks(len(ids), chunk):
            logits = _chunk_of_logits(hidden[rows], weight, bias, cap)
            logprobs[rows], entropy[rows], normaliser[rows] = _read_chunk(
                logits, ids[rows], temperature, masked=bias is not None
            )
        kept = logits if len(ids) <= chunk and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, weight, bias, ids, normaliser, kept)
        ctx.chunk, ctx.temperature, ctx.cap = chunk, temperature, cap
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, ids, normaliser, kept = ctx.saved_tensors
        wide, (for_hidden, for_weight, for_bias) = normaliser.dtype, ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if for_hidden else None
        # Sums over chunks are kept in float32: in bfloat16 the later chunks would be rounded away.
        weight_grad = torch.zeros_like(weight, dtype=wide) if for_weight else None
        bias_grad = torch.zeros_like(bias, dtype=wide) if for_bias else None
        for rows in _blocks(len(ids), ctx.chunk if kept is None else min(ctx.chunk, _KEPT_ROWS)):
            # kept logits may be asked for again: they are read, never written
            logits = _chunk_of_logits(hidden[rows], weight, bias, ctx.cap) if kept is None else kept[rows]
            slopes = torch.empty_like(logits) if kept is not None else logits
            facts = grads[0][rows], logits, ids[rows], normaliser[rows], ctx.temperature, ctx.cap
            _read_chunk_backward(*facts, slopes=slopes, bias_grad=bias_grad)
            with _no_autocast(hidden):
                if hidden_grad is not None:
                    hidden_grad[rows] = (slopes @ weight).to(hidden.dtype)
                if weight_grad is not None:
                    _add_over_tokens(slopes, hidden[rows].to(weight.dtype), weight_grad)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _read_chunk(logits: Tensor, ids: Tensor, temperature: float, *, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and log-normalisers of a chunk, in blocks that stay in the cache."""
    if not masked and kernels.supports_tensors(logits):
        return kernels.read_logits(logits, ids.contiguous(), temperature)
    results = []
    for rows in _blocks(len(ids), _rows_per_block(logits)):
        shifted = _widened(logits[rows], temperature)
        top = shifted.amax(-1)
        shifted.sub_(top.unsqueeze(-1))
        chosen = shifted.gather(-1, ids[rows, None]).squeeze(-1)
        weights = shifted.exp()
        total = weights.sum(-1)
        if masked:
            shifted.clamp_(min=-1e4)  # a bias of -inf switches a token off: 0 * -inf must add 0 to the entropy
        entropy = total.log() - weights.mul_(shifted).sum(-1) / total
        results.append((chosen - total.log(), entropy, top + total.log()))
    logprobs, entropies, normalisers = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(entropies), torch.cat(normalisers)


def _read_chunk_backward(
    grad: Tensor,
    logits: Tensor,
    ids: Tensor,
    normaliser: Tensor,
    temperature: float,
    cap: float | None,
    *,
    slopes: Tensor,
    bias_grad: Tensor | None,
) -> None:
    """Write the gradient of a chunk of logits before their cap, which `slopes` may be itself, and add that of the bias.

    The slope of c tanh(x / c) is 1 - tanh^2(x / c).
    """
    if bias_grad is None and cap is None and kernels.supports_tensors(logits):
        kernels.read_logits_backward(grad.contiguous(), logits, ids.contiguous(), normaliser, temperature, out=slopes)
        return
    per_token = grad[:, None] / temperature
    for block in _blocks(len(logits), _rows_per_block(logits)):
        part = _widened(logits[block], temperature).sub_(normaliser[block, None])
        part.exp_().mul_(-per_token[block]).scatter_add_(-1, ids[block, None], per_token[block])
        if cap is not None:
            part.mul_(1 - (logits[block].to(part.dtype) / cap).square_())
        slopes[block] = part
        if bias_grad is not None:
            bias_grad += part.sum(0)


def _add_over_tokens(slopes: Tensor, hidden: Tensor, weight_grad: Tensor) -> None:
    """Add slopes^T hidden to the gradient of the weight."""
    if kernels.supports_token_sums(slopes, hidden):
        kernels.sum_over_tokens(slopes, hidden, add_to=weight_grad)
    else:
        weight_grad += slopes.t() @ hidden


def _chunk_of_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """Logits of some rows in the dtype of the weight, in a tensor that may be overwritten."""
    with _no_autocast(hidden):
        logits = F.linear(hidden.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _widened(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature in the dtype of the softmax, in new memory."""
    wide = logits.to(_wide(logits.dtype), copy=True)
    return wide if temperature == 1.0 else wide.mul_(1 / temperature)


def _no_autocast(tensor: Tensor) -> Any:
    """The dtype of the weight decides on the matrix product, in forward and backward alike."""
    return torch.autocast(tensor.device.type, enabled=False)
