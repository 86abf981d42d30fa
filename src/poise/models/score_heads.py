"""The heads of score models: from features to one number per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLASSIFIER = "classifier"  # the pooling of a score model that a sequence classifier of transformers can compute


def make_head(
    width: int, hidden: int, outputs: int, seed: int, *, dropout: float = 0.3, bias: bool = True
) -> nn.Sequential:
    """A linear head that starts at zero, or one with a hidden layer and dropout while it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hidden == 0:
            layer = nn.Linear(width, outputs, bias=bias)
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
            return nn.Sequential(layer)
        layers = (
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        )
        return nn.Sequential(*layers)


class OwnHeads(nn.ModuleList):
    """A head for each channel, side by side."""

    def forward(self, features: Tensor) -> Tensor:
        """Raw scores [B, C] of features [B, H]."""
        return torch.cat([head(features) for head in self], -1)


def make_own_heads(width: int, sizes: Sequence[int], seed: int) -> OwnHeads:
    """A head for each channel, with a hidden layer of its size; 0 is none."""
    return OwnHeads(make_head(width, size, 1, seed) for size in sizes)
