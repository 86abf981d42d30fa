"""The decoder of a causal language model (embedding, layers, final norm, head), run in parts.

A `Backbone` is a loaded model with its tokenizer; its `decoder` is what computes. Every role shares it.

A policy, its reference, the critics and the score models differ in their adapters and heads only, so the
lower layers need to run once. `Decoder.run` runs layers [start, stop) on hidden states; rows are right-padded,
so a causal attention needs no mask: real tokens never see the padding behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from poise.models.families import LogitRule, context_of, embedding_scale, family_of, windows_of

Result = TypeVar("Result")


class KeyValueCache(Protocol):
    """What an attention layer needs of a cache: store new keys and values, return those to attend to."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, L, D] of a layer; return those [B, heads, S, D] to attend to."""
        ...


# what the layers of each window may attend to
Masks = Mapping[int | None, Tensor | None]


class Decoder:
    """Embedding, layers, final norm and head of a causal language model of a known family.

    >>> from poise.models.policy import load_policy
    >>> policy = load_policy("random:llama")
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> half = policy.decoder.run(policy.decoder.embed(ids), stop=1)
    >>> whole = policy.decoder.run(half, start=1)
    >>> whole.shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, model: Any):  # transformers PreTrainedModel
        self.config = model.config
        family, decoder = family_of(model.config), model.get_decoder()
        self.layers, self.final_norm = getattr(decoder, family.layers), getattr(decoder, family.norm)
        self._tokens = getattr(decoder, family.tokens)
        self._positions = None if family.positions is None else getattr(decoder, family.positions)
        self._rotary = getattr(decoder, "rotary_emb", None)
        self._embedding_scale = embedding_scale(model.config)
        self._cache_name = family.cache
        self.head: nn.Linear = model.get_output_embeddings()
        self.logit_rule = LogitRule.of(model.config)
        self.windows = windows_of(model.config)
        self.context = context_of(model.config)
        self.vocabulary: int = self._tokens.num_embeddings
        self._model = model
        self.merged = ""  # what tells adapters that were merged into the weights since they were loaded
        self.width: int = model.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def in_one_pass(self, compute: Callable[[], Result]) -> Result:
        """Run a computation on this decoder; sharded weights are gathered for it, layer by layer."""
        run: Callable[[Callable[[], Result]], Result] | None = getattr(self._model, "in_one_pass", None)
        return compute() if run is None else run(compute)

    def embed(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states [B, L, H] before the first layer; positions default to 0, 1, 2, ..."""
        hidden: Tensor = self._tokens(token_ids)
        if self._positions is not None:
            hidden = hidden + self._positions(self._default(positions, token_ids))
        return hidden if self._embedding_scale == 1.0 else hidden * self._embedding_scale

    def run(
        self,
        hidden: Tensor,  # [B, L, H]
        *,
        start: int = 0,
        stop: int | None = None,
        positions: Tensor | None = None,  # [B, L] or [1, L]
        mask: Tensor | None = None,  # [B, 1, L, S] bool, or added to the scores; None is causal
        key_positions: Tensor | None = None,  # [B, S] or [1, S], where a cache has more keys than there are queries
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] after layers [start, stop), without the final norm."""
        extra = self.position_inputs(hidden, positions)
        masks = self.masks(mask, self._default(positions, hidden[..., 0]), key_positions)
        for index in range(self.depth)[start:stop]:
            hidden = self.layer(index, hidden, extra, masks=masks, cache=cache)
        return hidden

    def position_inputs(self, hidden: Tensor, positions: Tensor | None = None) -> tuple[dict[str, Any], ...]:
        """What each layer needs to know of the positions [B, L] of states [B, L, H]; default 0, 1, 2, ..."""
        if self._rotary is None:
            return ({},) * self.depth
        positions = self._default(positions, hidden[..., 0])
        kinds = getattr(self._rotary, "layer_types", None)  # families whose windowed layers turn by other angles
        if kinds is None:
            turned = self._rotary(hidden, position_ids=positions)
            return ({"position_embeddings": turned, "position_ids": positions},) * self.depth
        by_kind = {kind: self._rotary(hidden, positions, kind) for kind in kinds}
        return tuple(
            {"position_embeddings": by_kind[kind], "position_ids": positions} for kind in self.config.layer_types
        )

    def masks(self, mask: Tensor | None, positions: Tensor, key_positions: Tensor | None = None) -> Masks:
        """The mask of each window among the layers: tokens at positions [B, L] see keys at those [B, S], default all.

        A window that reaches over all keys leaves the mask as it is.
        """
        keys = positions if key_positions is None else key_positions
        return {window: _within(window, mask, positions, keys) for window in set(self.windows)}

    def layer(
        self,
        index: int,
        hidden: Tensor,
        position_inputs: Sequence[dict[str, Any]],
        *,
        masks: Masks | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] after one more layer."""
        mask = None if masks is None else masks[self.windows[index]]
        extra = position_inputs[index] | {self._cache_name: cache}
        output = self.layers[index](hidden, attention_mask=mask, use_cache=cache is not None, **extra)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and language-model head on hidden states [..., H]: logits [..., V]."""
        return self.logit_rule(self.head(self.final_norm(hidden)))

    @staticmethod
    def _default(positions: Tensor | None, like: Tensor) -> Tensor:
        if positions is not None:
            return positions
        return torch.arange(like.shape[1], device=like.device)[None]


def _within(window: int | None, mask: Tensor | None, positions: Tensor, keys: Tensor) -> Tensor | None:
    """A mask that lets a token see no further back than its window."""
    if window is None or keys.shape[1] <= window:
        return mask
    distance = positions[:, None, :, None] - keys[:, None, None, :]
    if mask is None:
        return (distance >= 0) & (distance < window)
    return mask & (distance < window) if mask.dtype == torch.bool else mask.masked_fill(distance >= window, -torch.inf)


def pad_rows(rows: Sequence[Sequence[int]], fill: int = 0, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pad token rows: ids [B, L] and lengths [B].

    The fill value is never looked at, but embedded: the tokenizer's padding token may lie beyond the embedding, 0 not.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    ids = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), fill, dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return ids.to(device), lengths.to(device)
