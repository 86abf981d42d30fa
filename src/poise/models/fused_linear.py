"""Linear layers of one input as one node of the graph, which keeps what its input is made of and not the input.

What comes between two products, a norm or a gate, costs one pass; kept for the gradient it would be a third of all that
a layer keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise import kernels
from poise.models.adapters import LoraLinear
from poise.models.elementwise import rms_norm, rms_norm_backward, swiglu, swiglu_backward


class Source(Protocol):
    """What the input of linear layers is computed from, in the forward pass and once more for the gradient."""

    def make(self, *given: Tensor) -> tuple[Tensor, Any]:
        """The input [N, inputs], and what `slopes` wants to know."""
        ...

    def slopes(self, slope: Tensor, made: Any, given: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Any]:
        """Gradients of what was given, from that of the input."""
        ...


class Identity:
    """States [N, inputs] as they are."""

    def make(self, *given: Tensor) -> tuple[Tensor, Any]:
        """The states."""
        return given[0], None

    def slopes(self, slope: Tensor, made: Any, given: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Any]:
        """Their gradient."""
        return (slope,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm:
    """States [N, H] of any dtype over their root mean square, times a weight [H], in `dtype`."""

    epsilon: float
    dtype: torch.dtype

    @classmethod
    def by(cls, module: Any, dtype: torch.dtype) -> RMSNorm:
        """As a layer's norm does it, in the dtype of the products."""
        return cls(epsilon=module.variance_epsilon, dtype=dtype)

    def make(self, *given: Tensor) -> tuple[Tensor, Any]:
        """The normalised states, and the inverse roots."""
        states, weight = given
        return rms_norm(states, weight, self.epsilon, self.dtype)

    def slopes(self, slope: Tensor, made: Any, given: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Any]:
        """Gradients of the states and of the weight."""
        states, weight = given
        return rms_norm_backward(slope, states, weight, made, for_weight=needed[1])


class SwiGLU:
    """silu(gate) * up of [N, I] each."""

    def make(self, *given: Tensor) -> tuple[Tensor, Any]:
        """The gated states."""
        gate, up = given
        return swiglu(gate, up), None

    def slopes(self, slope: Tensor, made: Any, given: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Any]:
        """Gradients of gate and up."""
        gate, up = given
        return swiglu_backward(slope, gate, up)


def products(modules: Sequence[nn.Module], *given: Tensor, of: Source | None = None) -> tuple[Tensor, ...]:
    """What linear layers, with the adapters that are on, make of the same input, made of what is given."""
    of, flat = of or Identity(), list[Any]()
    dtype = of.dtype if isinstance(of, RMSNorm) else given[0].dtype
    for module in modules:
        name = module.active if isinstance(module, LoraLinear) else None
        base = cast("nn.Linear", module.base if isinstance(module, LoraLinear) else module)
        bias = None if base.bias is None else base.bias.to(dtype)
        flat += [base.weight.to(dtype), bias]
        if isinstance(module, LoraLinear) and name is not None and name in module.scale:
            flat += [module.lora_a[name].to(dtype), module.lora_b[name].to(dtype), module.scale[name]]
        else:
            flat += [None, None, 1.0]
    found: tuple[Tensor, ...] = Products.apply(of, len(given), *given, *flat)
    return found


class Products(torch.autograd.Function):
    """Linear layers of one input, whose gradient is summed in place.

    After the source, how many tensors it is given, and those; five of each layer, weight [outputs, inputs], bias
    [outputs] or None, and of an adapter A [r, inputs], B [outputs, r] and the scale; None, None and 1 without one.
    """

    @staticmethod
    def forward(ctx: Any, source: Source, count: int, *given: Any) -> tuple[Tensor, ...]:
        """The products [N, outputs] of each."""
        (x, _), rest = source.make(*given[:count]), given[count:]
        found, lows = [], []
        for weight, bias, a, b, scale in _fives(rest):
            y = F.linear(x, weight, bias)
            low = None if a is None else x @ a.t()
            found.append(y if low is None else y.addmm_(low, b.t(), alpha=scale))
            lows.append(low)
        ctx.source, ctx.count, ctx.scales = source, count, rest[4::5]
        kept = [each for five in _fives(rest) for each in (five[0], five[2], five[3])]
        ctx.save_for_backward(*given[:count], *kept, *lows)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Gradients of what the input is made of and of everything that asks for one."""
        saved = ctx.saved_tensors
        given, kept = saved[: ctx.count], saved[ctx.count :]
        count, needed = len(ctx.scales), ctx.needs_input_grad[2:]
        for_given, needed = needed[: ctx.count], needed[ctx.count :]
        weights, lows = kept[: 3 * count], kept[3 * count :]
        x, made = ctx.source.make(*given)
        for_x: Tensor | None = None
        found: list[Any] = []
        for number, (slope, low) in enumerate(zip(gradients, lows, strict=True)):
            weight, a, b = weights[3 * number : 3 * number + 3]
            for_weight, for_bias, for_a, for_b = needed[5 * number : 5 * number + 4]
            down = None if a is None else (slope @ b).mul_(ctx.scales[number])
            if any(for_given):
                for_x = slope @ weight if for_x is None else for_x.addmm_(slope, weight)
                if down is not None:
                    for_x.addmm_(down, a)
            found += [
                _over_tokens(slope, x) if for_weight else None,
                slope.sum(0) if for_bias else None,
                down.t() @ x if for_a and down is not None else None,
                (slope.t() @ low).mul_(ctx.scales[number]) if for_b else None,
                None,
            ]
        slopes = (None,) * ctx.count if for_x is None else ctx.source.slopes(for_x, made, given, for_given)
        return None, None, *slopes, *found


def _over_tokens(slope: Tensor, x: Tensor) -> Tensor:
    """The gradient [outputs, inputs] of a weight: slope^T x."""
    return kernels.sum_over_tokens(slope, x) if kernels.supports_token_sums(slope, x) else slope.t() @ x


def _fives(given: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (given[begin : begin + 5] for begin in range(0, len(given), 5))
