"""What can be trained on samples of its own: language models (`Policy`), tables of logits, or a policy of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from poise.data.chat import ChatRenderer
from poise.models.shared_rows import SharedRows


@runtime_checkable
class TrainablePolicy(Protocol):
    """What trainers ask of a policy; `version` counts its updates."""

    version: int

    @property
    def device(self) -> torch.device:
        """Where its rows lie."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a hidden state; critics see two of them side by side."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens of the longest row it reads; None: no bound."""
        ...

    def renderer(
        self, *, max_prompt_tokens: int | None = None, max_response_tokens: int | None = None
    ) -> ChatRenderer | None:
        """How it reads conversations; None where its rows are no text."""
        ...

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trained weights by name."""
        ...

    def frozen_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows with what training never changes computed once; the rows themselves where there is nothing."""
        ...

    def critic_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows with the states that critics read."""
        ...

    def logprobs(self, rows: SharedRows, *, reference: bool = False, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, T] in nats of the response tokens; 0 where the mask is false."""
        ...
