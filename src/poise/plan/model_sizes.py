"""The size of a language model: all that its cost follows from. No weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poise.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of a causal language model.

    >>> round(MODEL_SIZES["7b"].parameters / 1e9, 1)
    7.6
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    is_tied: bool  # the embedding is the head
    is_gated: bool = True  # three matrices in the feed-forward part; GPT-2 has two
    head_width: int = 0  # 0: hidden / heads

    @property
    def kv_width(self) -> int:
        """Entries of a key, and of a value, of one token in one layer."""
        return self.kv_heads * (self.head_width or self.hidden // self.heads)

    @property
    def query_width(self) -> int:
        """Entries of a query of one token in one layer."""
        return self.heads * (self.head_width or self.hidden // self.heads)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All weights but the norms and biases."""
        return self.layers * self.layer_parameters + (1 if self.is_tied else 2) * self.vocabulary * self.hidden

    def adapter_parameters(self, *, rank: int = 16, layers: int | None = None) -> int:
        """Weights of a LoRA adapter on all projections of so many layers."""
        inner, kv = self.query_width, self.kv_width
        attention = (
            (4 if self.is_gated else 2) * self.hidden + 2 * inner + 2 * kv
        )  # GPT-2 has one matrix for q, k and v
        feed_forward = (3 if self.is_gated else 2) * (self.hidden + self.intermediate)
        return rank * (attention + feed_forward) * (self.layers if layers is None else layers)


MODEL_SIZES = {
    "1.5b": ModelSize(
        name="1.5b", layers=28, hidden=1536, intermediate=8960, heads=12, kv_heads=2, vocabulary=151_936, is_tied=True
    ),  # Qwen2.5-1.5B
    "7b": ModelSize(
        name="7b", layers=28, hidden=3584, intermediate=18_944, heads=28, kv_heads=4, vocabulary=152_064, is_tied=False
    ),  # Qwen2.5-7B
    "70b": ModelSize(
        name="70b", layers=80, hidden=8192, intermediate=28_672, heads=64, kv_heads=8, vocabulary=128_256, is_tied=False
    ),  # Llama-3-70B
}


def model_size(name: str) -> ModelSize:
    """The size that a name stands for: 1.5b, 7b, 70b, or any model that can be loaded, read from its configuration.

    Raises ModelError if there is no such model, ConfigError if its configuration does not say its sizes.
    """
    if name.lower() in MODEL_SIZES:
        return MODEL_SIZES[name.lower()]
    from poise.models.load import load_config

    return _of_config(name, load_config(name))


def _of_config(name: str, config: Any) -> ModelSize:
    stored = config.to_dict() | {key: getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers")}
    hidden, heads = stored.get("hidden_size"), getattr(config, "num_attention_heads", None)
    if not hidden or not heads:
        raise ConfigError(f"model {name!r}: its configuration has no hidden size and heads; give 1.5b, 7b or 70b")
    is_gpt2 = stored.get("model_type") == "gpt2"
    return ModelSize(
        name=name,
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=stored.get("intermediate_size") or stored.get("n_inner") or 4 * hidden,
        heads=heads,
        kv_heads=stored.get("num_key_value_heads") or heads,
        vocabulary=config.vocab_size,
        is_tied=bool(stored.get("tie_word_embeddings", True)),
        is_gated=not is_gpt2,
        head_width=stored.get("head_dim") or 0,
    )
