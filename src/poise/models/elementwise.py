"""What layers do between matrix products, in blocks that stay in a CPU's cache: norms, gates and rotations.

A pass over all tokens goes through memory; the same passes over a few rows at a time do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from poise import kernels

ROWS, FEW_ROWS = 32, 16  # what the rows of a product on a CPU are a multiple of: in training, in generation
_BLOCK = 1 << 17  # entries that are taken at once
_GPU_BLOCK = 1 << 40  # where a call costs more than a pass through memory


def missing_rows(count: int, device: torch.device, multiple: int = ROWS) -> int:
    """How many rows round `count` up to a multiple; 0 on a GPU, where there is nothing to gain.

    The library behind torch compiles a product anew for every number of rows, which takes 1 to 20 ms and keeps 0.6 MiB:
    with rows of ragged lengths, some twenty products for every micro-batch, never used again.
    """
    return -count % multiple if device.type == "cpu" else 0


def blocks(like: Tensor) -> Iterator[slice]:
    """Slices of the rows of [N, ...] that are taken at once."""
    entries = _BLOCK if like.device.type == "cpu" else _GPU_BLOCK
    step = max(1, entries * len(like) // max(1, like.numel()))
    return (slice(begin, begin + step) for begin in range(0, len(like), step))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """X / sqrt(mean(x^2) + epsilon) * weight of states [N, H] in `dtype`, and the inverse roots [N, 1].

    Computed in float32, or in float64 where the states are.
    """
    if dtype == x.dtype and kernels.supports_tensors(x, weight):
        return kernels.rms_norm(x, weight, epsilon)
    wide = torch.promote_types(x.dtype, torch.float32)
    factors, size = weight.to(wide), x.shape[-1]
    found = torch.empty(x.shape, dtype=dtype, device=x.device)
    inverse = torch.empty(len(x), 1, dtype=wide, device=x.device)
    for rows in blocks(x):
        part = x[rows].to(wide, copy=True)
        norm = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
        inverse[rows] = norm.square_().div_(size).add_(epsilon).rsqrt_()
        found[rows] = part.mul_(inverse[rows]).mul_(factors)
    return found, inverse


def rms_norm_backward(
    slope: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, *, for_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `rms_norm`: of the states [N, H] and, where it is asked for, of the weight [H]."""
    if kernels.supports_tensors(slope, x, weight):
        for_x, for_factors = kernels.rms_norm_backward(slope, x, weight, inverse, for_weight=for_weight)
        return for_x, None if for_factors is None else for_factors.to(weight.dtype)
    wide, size = inverse.dtype, x.shape[-1]
    summed = torch.zeros(weight.shape, dtype=wide, device=x.device) if for_weight else None
    found, factors = torch.empty_like(x), weight.to(wide)
    for rows in blocks(x):
        unit, part = x[rows].to(wide, copy=True).mul_(inverse[rows]), slope[rows].to(wide, copy=True)
        if summed is not None:
            summed += torch.einsum("nh,nh->h", part, unit)
        part.mul_(factors)
        along = torch.linalg.vecdot(part, unit)[:, None].div_(-size)
        found[rows] = part.addcmul_(unit, along).mul_(inverse[rows])
    return found, None if summed is None else summed.to(weight.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of [N, I] each."""
    if gate.stride() == up.stride() and kernels.supports_tensors(gate, up, apart=True):
        return kernels.swiglu(gate, up)
    found = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    for rows in blocks(gate):
        torch.mul(F.silu(gate[rows]), up[rows], out=found[rows])
    return found


def swiglu_backward(slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `swiglu`: of gate and up."""
    if kernels.supports_tensors(slope, gate, up):
        return kernels.swiglu_backward(slope, gate, up)
    for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
    for rows in blocks(gate):
        torch.mul(slope[rows], F.silu(gate[rows]), out=for_up[rows])
        product = slope[rows] * up[rows]
        torch.ops.aten.silu_backward.grad_input(product, gate[rows], grad_input=for_gate[rows])
    return for_gate, for_up


def apply_rope(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [N, heads D] turned by the angles of their tokens [N, 1, D]; by minus `sin`, turned back.

    `sin` is signed: that of the first half of a head is negated.
    """
    if kernels.supports_tensors(states, cos, sin):
        return kernels.apply_rope(states, cos, sin)
    found = torch.empty_like(states)
    half = cos.shape[-1] // 2
    for rows in blocks(states):
        part = states[rows].unflatten(-1, (-1, 2 * half))
        turned = torch.mul(part, cos[rows], out=found[rows].view(part.shape))
        turned.addcmul_(part.roll(half, -1), sin[rows])
    return found
