"""A tiny random model of every family, with every optional feature of its configuration switched on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from poise.models.attention import register
from poise.models.decoder import Decoder
from poise.models.load import Backbone
from poise.models.tiny import tiny_tokenizer

CONTEXT, WINDOW = 64, 6
_SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_WINDOW = {"sliding_window": WINDOW}
_MIXED = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2}
_BIASED = {"attention_bias": True}
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 5, "head_dim": 12}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.5] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 48,
    "rope_theta": 100.0,
}
_BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
FEATURES: dict[str, dict[str, Any]] = {
    "llama": _BIASED | {"mlp_bias": True, "head_dim": 12, "rope_parameters": _LLAMA3, "tie_word_embeddings": True},
    "mistral": _WINDOW | {"head_dim": 12},
    "mixtral": _WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": _WINDOW | {"use_sliding_window": True, "max_window_layers": 2, "rope_parameters": _YARN},
    "qwen3": _WINDOW | _BIASED | {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 12},
    "gemma": _BIASED | {"head_dim": 12},
    "gemma2": _WINDOW | _BIASED | _CAPPED,
    "gemma3_text": _MIXED | _BIASED | _CAPPED | {"rope_parameters": _BY_KIND},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "phi3": _WINDOW | {"rope_parameters": _LONG, "original_max_position_embeddings": 48},
    "olmo": _BIASED | {"clip_qkv": 0.7},
    "olmo2": _BIASED,
    "olmo3": _MIXED | _BIASED,
    "smollm3": _MIXED | _BIASED | {"use_sliding_window": True, "no_rope_layers": [1, 0, 1, 0], "mlp_bias": True},
    "granite": _BIASED
    | {"mlp_bias": True, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}
    | {"logits_scaling": 0.6, "attention_multiplier": 0.7},
    "cohere": _BIASED | {"use_qk_norm": True, "logit_scale": 0.7},
    "cohere2": _MIXED | _BIASED | {"logit_scale": 0.7},
    "starcoder2": _WINDOW | {"use_bias": True},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "gpt_oss": _MIXED | {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _YARN},
    "gpt_neox": {"use_parallel_residual": False, "attention_bias": True, "rotary_pct": 0.5},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
}
# the same without windows, where the faster layers run
FEATURES_WITHOUT_WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 12, "sliding_window": None},
    "qwen2": {"rope_parameters": _YARN},
    "qwen3": _BIASED | {"head_dim": 12},
}


def model_with(family: str, features: dict[str, Any]) -> Any:
    """A model of a family with these fields in its configuration, and weights so large that each of them shows."""
    config = AutoConfig.for_model(family, **_SIZES | features)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=register())
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model.eval().requires_grad_(False)


def backbone_of(model: Any) -> Backbone:
    """The model as `load_backbone` would give it."""
    return Backbone(name="tiny", model=model, tokenizer=tiny_tokenizer("random:llama"), decoder=Decoder(model))
