"""What a family of transformers does between its embedding, its layers and its head, where that differs.

A family's own layers are always the ones that run; what its decoder does around them is read from its configuration
here: which tokens a layer may see, which angles it gets, what scales or bounds the logits. A configuration that asks
for something else is found out by comparing passes (`verified.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poise.errors import ModelError

_FULL, _SLIDING = "full_attention", "sliding_attention"
_LENGTH_DEPENDENT = "longrope"  # other angles for every position once a row is longer than a bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the parts of a decoder are, and which of its layers see a window only.

    windows "none"     the family reads no window
    windows "all"      `sliding_window` holds in every layer
    windows "by layer" it holds in the layers that `layer_types` names
    """

    tokens: str = "embed_tokens"
    positions: str | None = None  # a learned embedding of them, instead of rotations
    layers: str = "layers"
    norm: str = "norm"
    cache: str = "past_key_values"  # how its layers call the cache
    windows: Literal["none", "all", "by layer"] = "none"


_PLAIN, _ALL, _BY_LAYER = Family(), Family(windows="all"), Family(windows="by layer")
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "olmo", "olmo2", "gemma", "granite", "cohere", "stablelm"), _PLAIN),
    **dict.fromkeys(("mistral", "mixtral", "phi3", "starcoder2"), _ALL),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "cohere2", "olmo3", "gpt_oss"), _BY_LAYER),
    "phi": Family(norm="final_layernorm"),
    "gpt_neox": Family(tokens="embed_in", norm="final_layer_norm", cache="layer_past"),
    "gpt2": Family(tokens="wte", positions="wpe", layers="h", norm="ln_f"),
}


def family_of(config: Any) -> Family:
    """The family of a configuration; ModelError names those that are supported."""
    name = config.model_type
    if name not in FAMILIES:
        raise ModelError(f"model family {name!r} is not supported; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def windows_of(config: Any) -> tuple[int | None, ...]:
    """How many tokens, itself included, a token sees in each layer; None where it sees all before it.

    Raises ModelError for a kind of layer that is neither.

    >>> from transformers import MistralConfig
    >>> windows_of(MistralConfig(num_hidden_layers=2, sliding_window=128))
    (128, 128)
    """
    windows, layers = family_of(config).windows, config.num_hidden_layers
    if windows == "none":
        return (None,) * layers
    window: int | None = getattr(config, "sliding_window", None)
    kinds = config.layer_types if windows == "by layer" else [_SLIDING] * layers
    if strange := set(kinds) - {_FULL, _SLIDING}:
        raise ModelError(f"layers of kind {', '.join(sorted(strange))} are not supported; only {_FULL} and {_SLIDING}")
    if windows == "by layer" and window is None and _SLIDING in kinds:
        raise ModelError(f"layer_types contains {_SLIDING}, but sliding_window is not set: set it in config.json")
    if window is not None and window < 1 and _SLIDING in kinds:
        raise ModelError(f"sliding_window={window} is too small: give at least 1, or null for no window")
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def context_of(config: Any) -> int:
    """The most tokens a row may have: the context, or less where longer rows would turn every position otherwise."""
    bounds = [config.max_position_embeddings]
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == _LENGTH_DEPENDENT and rope.get("original_max_position_embeddings"):
            bounds.append(int(rope["original_max_position_embeddings"]))
    return min(bounds)


def rope_types(config: Any) -> set[str]:
    """The kinds of rotation that its layers use."""
    return {rope.get("rope_type", "default") for rope in _rope_parameters(config)} or {"default"}


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The parameters of every kind of rotation: of one, or of one for each kind of layer."""
    stored = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in stored.values() if isinstance(value, dict)]
    return by_kind or [stored]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRule:
    """What becomes of the head's products: times `scale`, then, with a `cap` c, c tanh(that / c)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits under the rule."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """The rule of a configuration."""
        name = config.model_type
        if name == "granite":
            return cls(scale=1.0 / config.logits_scaling)
        if name in ("cohere", "cohere2"):
            return cls(scale=config.logit_scale)
        return cls(cap=config.final_logit_softcapping) if name in ("gemma2", "gemma3_text") else cls()


def embedding_scale(config: Any) -> float:
    """What the decoder multiplies embeddings by; those that scale inside the embedding itself have 1."""
    return float(config.embedding_multiplier) if config.model_type == "granite" else 1.0
