"""An adapter's folder as a model: its base with the adapter merged by peft, kept in the cache as a plain model.

A folder, because adapters that are trained on it name it as their base, and every program must load that base.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise.errors import ModelError
from poise.models.identity import identity_of
from poise.models.kept import kept_model
from poise.models.runs import SCORE_MODEL_CARD
from poise.models.verified import distance, probe_ids

_WEIGHTS = "adapter_model.safetensors"
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")  # that peft saves beside an adapter
_TOKENS_OF_BOTH = "token_adapter"  # single tokens that peft trains: in a tied head as in the embedding
_REMEDY = "Merge it with peft (merge_and_unload, save_pretrained) and give the folder of the merged model"


def adapter_in(source: str) -> Path | None:
    """The adapter's own configuration in a folder, or None."""
    path = Path(source) / "adapter_config.json"
    return path if path.is_file() else None


def base_of(config: Path) -> str:
    """The name of the base model; ModelError if the adapter is not one of a language model that can be merged."""
    folder = config.parent
    if (folder / SCORE_MODEL_CARD).exists():
        raise ModelError(f"{folder} is a score model, not a language model: give the policy's folder, or its base")
    try:
        stored: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not JSON: {error}. Save the adapter again") from error
    if stored.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(f"{folder} is an adapter for {stored['task_type']}, not for a language model (CAUSAL_LM)")
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {_WEIGHTS}: save the adapter as safetensors; pickles are not read")
    if not stored.get("base_model_name_or_path"):
        raise ModelError(f"{config}: names no base model (base_model_name_or_path)")
    return str(stored["base_model_name_or_path"])


def merged_folder(config: Path, base: Callable[[], Any], tokenizer: Any, base_source: str) -> Path:
    """The folder of the merged model in the cache, made from a loaded base and its tokenizer if it is not there yet.

    `base` is called for the model when it is needed. Raises ModelError unless all of the adapter's tensors find a
    place, and unless the merged model computes what base and adapter compute together.
    """
    adapter = config.parent
    key = f"{identity_of(str(adapter))['checksum'][:16]}-{identity_of(base_source)['checksum'][:16]}"

    def make(folder: Path) -> None:
        _merge(base, adapter).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return kept_model(f"merged/{key}", make)


def _merge(base: Callable[[], Any], adapter: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / _WEIGHTS, framework="pt") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}
        model = _with_rows(base(), shapes)
        ids, parts_ends = probe_ids(model), _changes_one_end(model, set(shapes))
        adapted = with_adapter(model, adapter, set(shapes))
        expected = _logprobs(adapted, ids)
        if parts_ends:  # merged, it would change both
            adapted = with_adapter(_untied(_with_rows(base(), shapes)), adapter, set(shapes))
        merged = adapted.merge_and_unload()
        apart = distance(merged, _logprobs(merged, ids), expected)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{adapter}: peft cannot load or merge this adapter: {reason}. {_REMEDY}") from error
    if not apart.is_small:
        raise ModelError(
            f"{adapter}: the merged adapter and the unmerged one give different log-probabilities, by "
            f"{apart.nats:.2g} nats. {_REMEDY}"
        )
    return merged


def with_adapter(model: Any, adapter: Path, there: set[str]) -> Any:
    """The model with the adapter beside it; ModelError unless each has a place for the other's tensors."""
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that are missing: they are compared below
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    known = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    strange = sorted(known - there) + sorted(key for key in there - known if not key.endswith(_EMBEDDINGS))
    if strange:
        raise ModelError(f"{adapter}: the adapter does not fit its base; first differing tensors: {strange[:3]}")
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type
        raise ModelError(f"{adapter}: an adapter of kind {kind} cannot be merged into its base. Give the base model")
    return adapted.eval()


def _logprobs(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(ids, use_cache=False).logits).float().log_softmax(-1)


def _with_rows(model: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    """The model with as many tokens as the embeddings that the adapter brings: more would take probability from all."""
    rows = [shape[0] for key, shape in shapes.items() if key.endswith(_EMBEDDINGS)]
    if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows[0])
    return model


def _changes_one_end(model: Any, keys: set[str]) -> bool:
    """Whether embedding and head are the same weights, and the adapter changes one of them and not both alike."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(end is None for end in ends) or ends[0].weight is not ends[1].weight:
        return False
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    return any(f".{name}." in key and _TOKENS_OF_BOTH not in key for name in names for key in keys)


def _untied(model: Any) -> Any:
    """The model with weights of its own in the head."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model
