"""How long the matrix products of a step need on this machine, measured: what no arrangement of the same work beats."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch
from _models import backbone
from harness import Size

_COPIES = 6  # of a layer's weights, so that they do not stay in the caches between products


@cache
def product_seconds(rows: int, outputs: int, inputs: int) -> float:
    """Median seconds of a bf16 product [rows, inputs] x [inputs, outputs]."""
    weights = [torch.randn(outputs, inputs, dtype=torch.bfloat16) for _ in range(_COPIES)]
    x, seconds = torch.randn(rows, inputs, dtype=torch.bfloat16), []
    for _ in range(7):
        began = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(x, weight)
        seconds.append((time.perf_counter() - began) / _COPIES)
    return statistics.median(seconds)


class Products:
    """The products of a model's layers and of its head, by number of rows."""

    def __init__(self, size: Size):
        config = backbone(size.model).model.config
        product_seconds.cache_clear()
        self.depth, self.vocabulary, self.width = config.num_hidden_layers, config.vocab_size, config.hidden_size
        keys = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
        inner = config.intermediate_size
        self.shapes = [
            (self.width + 2 * keys, self.width),
            (self.width, self.width),
            (2 * inner, self.width),
            (self.width, inner),
        ]

    def layers(self, tokens: int, share: float = 1.0) -> float:
        """A share of the layers once over so many tokens, at most 1,024 at a time."""
        rows = min(tokens, 1024)
        return tokens / rows * share * self.depth * sum(product_seconds(rows, *shape) for shape in self.shapes)

    def head(self, tokens: int) -> float:
        """The head once over so many positions."""
        rows = min(tokens, 512)
        return tokens / rows * product_seconds(rows, self.vocabulary, self.width)

    def generation(self, size: Size) -> float:
        """Prefill and one step a token."""
        rows = size.rows * size.samples
        step = self.layers(rows) + self.head(rows)
        return self.layers(size.rows * size.prompt) + self.head(rows) + (size.response - 1) * step


def generation(size: Size) -> float:
    """Generation of `rows` x `samples` responses."""
    return Products(size).generation(size)


def ppo_lag(size: Size) -> float:
    """Our default: generate; score at 0.6 of the depth; lower half once, upper half for reference, policy and back."""
    products, tokens, answers = Products(size), size.rows * (size.prompt + size.response), size.rows * size.response
    passes = 0.6 + 0.5 + 3 * 0.5
    return products.generation(size) + products.layers(tokens) * passes + 3 * products.head(answers)


def update(size: Size) -> float:
    """Generation, and one forward and backward pass of all weights with the head on the response."""
    products, tokens, answers = Products(size), size.rows * (size.prompt + size.response), size.rows * size.response
    return products.generation(size) + 3 * products.layers(tokens) + 3 * products.head(answers)
