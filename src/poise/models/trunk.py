"""The stack of layers that every role shares, run in parts.

A policy, its reference, the critics and the score models differ in their adapters and heads only, so the
lower layers need to run once. `Trunk.run` runs layers [start, stop) on hidden states; rows are right-padded,
so a causal attention needs no mask: real tokens never see the padding behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from poise.errors import ModelError

ROTARY_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3")
LEARNED_POSITION_FAMILIES = ("gpt2",)
Result = TypeVar("Result")


class KeyValueCache(Protocol):
    """What an attention layer needs of a cache: store new keys and values, return those to attend to."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, L, D] of a layer; return those [B, heads, S, D] to attend to."""
        ...


class Trunk:
    """Embedding, layers and final norm of a causal language model of a known family.

    >>> from poise.models.policy import load_policy
    >>> policy = load_policy("random:llama")
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> half = policy.trunk.run(policy.trunk.embed(ids), stop=1)
    >>> whole = policy.trunk.run(half, start=1)
    >>> whole.shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, model: Any):  # transformers PreTrainedModel
        self.config = model.config
        family = model.config.model_type
        if family not in ROTARY_FAMILIES + LEARNED_POSITION_FAMILIES:
            known = ", ".join(ROTARY_FAMILIES + LEARNED_POSITION_FAMILIES)
            raise ModelError(f"model family {family!r} is not supported; supported families: {known}")
        decoder = model.get_decoder()
        if family in ROTARY_FAMILIES:
            self.layers, self.final_norm, self._rotary = decoder.layers, decoder.norm, decoder.rotary_emb
            self._tokens, self._positions = decoder.embed_tokens, None
        else:
            self.layers, self.final_norm, self._rotary = decoder.h, decoder.ln_f, None
            self._tokens, self._positions = decoder.wte, decoder.wpe
        self.head: nn.Linear = model.get_output_embeddings()
        self._model = model
        self.width: int = model.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def in_one_pass(self, compute: Callable[[], Result]) -> Result:
        """Run a computation on this trunk; the weights of one that is sharded are gathered for it, layer by layer."""
        run: Callable[[Callable[[], Result]], Result] | None = getattr(self._model, "in_one_pass", None)
        return compute() if run is None else run(compute)

    def embed(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states [B, L, H] before the first layer; positions default to 0, 1, 2, ..."""
        hidden = self._tokens(token_ids)
        if self._positions is not None:
            hidden = hidden + self._positions(self._default(positions, token_ids))
        return hidden

    def run(
        self,
        hidden: Tensor,  # [B, L, H]
        *,
        start: int = 0,
        stop: int | None = None,
        positions: Tensor | None = None,  # [B, L] or [1, L]
        mask: Tensor | None = None,  # [B, 1, L, S] bool, None is causal
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] after layers [start, stop), without the final norm."""
        extra = self.position_inputs(hidden, positions)
        for index in range(self.depth)[start:stop]:
            hidden = self.layer(index, hidden, extra, mask=mask, cache=cache)
        return hidden

    def position_inputs(self, hidden: Tensor, positions: Tensor | None = None) -> dict[str, Any]:
        """What every layer needs to know of the positions [B, L] of states [B, L, H]; default 0, 1, 2, ..."""
        if self._rotary is None:
            return {}
        positions = self._default(positions, hidden[..., 0])
        return {"position_embeddings": self._rotary(hidden, position_ids=positions), "position_ids": positions}

    def layer(
        self,
        index: int,
        hidden: Tensor,
        position_inputs: dict[str, Any],
        *,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] after one more layer."""
        layer = self.layers[index]
        output = layer(
            hidden, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **position_inputs
        )
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and language-model head on hidden states [..., H]: logits [..., V]."""
        return self.head(self.final_norm(hidden))

    @staticmethod
    def _default(positions: Tensor | None, like: Tensor) -> Tensor:
        if positions is not None:
            return positions
        return torch.arange(like.shape[1], device=like.device)[None]


def pad_rows(rows: Sequence[Sequence[int]], fill: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pad token rows: ids [B, L] and lengths [B]; the fill value is never looked at."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    ids = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), fill, dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return ids.to(device), lengths.to(device)
