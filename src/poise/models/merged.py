"""An adapter's folder as a model: its base with the adapter merged by peft, kept in the cache as a plain model.

A folder, because adapters that are trained on it name it as their base, and every program must load that base.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from poise.errors import ModelError
from poise.models.identity import identity_of
from poise.models.kept import kept_model

_WEIGHTS = "adapter_model.safetensors"
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")  # that peft saves beside an adapter
_SCORE_CARD = "poise_score_model.json"


def adapter_in(source: str) -> Path | None:
    """The adapter's own configuration in a folder, or None."""
    path = Path(source) / "adapter_config.json"
    return path if path.is_file() else None


def base_of(config: Path) -> str:
    """The name of the base model; ModelError if the adapter is not one of a language model that can be merged."""
    folder = config.parent
    if (folder / _SCORE_CARD).exists():
        raise ModelError(f"{folder} is a score model, not a language model: give the policy's folder, or its base")
    try:
        stored: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not JSON: {error}. Save the adapter again") from error
    if stored.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(f"{folder} is an adapter for {stored['task_type']}, not for a language model (CAUSAL_LM)")
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {_WEIGHTS}: save the adapter as safetensors; pickles are not read")
    if not stored.get("base_model_name_or_path"):
        raise ModelError(f"{config}: names no base model (base_model_name_or_path)")
    return str(stored["base_model_name_or_path"])


def merged_folder(config: Path, base: Any, tokenizer: Any, base_source: str) -> Path:
    """The folder of the merged model in the cache, made from a loaded base and its tokenizer if it is not there yet.

    `base` is called for the model when it is needed. Raises ModelError unless all of the adapter's tensors find a
    place.
    """
    adapter = config.parent
    key = f"{identity_of(str(adapter))['checksum'][:16]}-{identity_of(base_source)['checksum'][:16]}"

    def make(folder: Path) -> None:
        model = base()
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        _merge(model, adapter).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return kept_model(f"merged/{key}", make)


def _merge(model: Any, adapter: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    remedy = "Merge it with peft (merge_and_unload, save_pretrained) and give the folder of the whole model"
    try:
        with safe_open(adapter / _WEIGHTS, framework="pt") as stored:
            there = set(stored.keys())
        _untie(model, there)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing: they are compared below
            adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
        known = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        strange = sorted(known - there) + sorted(key for key in there - known if not key.endswith(_EMBEDDINGS))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{adapter}: peft cannot load this adapter: {str(error).splitlines()[0]}. {remedy}") from error
    if strange:
        raise ModelError(f"{adapter}: the adapter does not fit its base; first differing tensors: {strange[:3]}")
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type
        raise ModelError(f"{adapter}: an adapter of kind {kind} cannot be merged into its base. Give the base model")
    return adapted.merge_and_unload()


def _untie(model: Any, keys: set[str]) -> None:
    """Give the head weights of its own where an adapter changes embedding or head: merged, it would change both."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    if (
        len(ends) == 2
        and ends[0].weight is ends[1].weight
        and any(f".{name}." in key for name in names for key in keys)
    ):
        ends[1].weight = nn.Parameter(ends[1].weight.detach().clone())
        model.config.tie_word_embeddings = False
