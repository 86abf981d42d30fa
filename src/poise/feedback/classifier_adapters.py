"""Adapters of sequence classifiers, as peft and TRL's reward trainer save them, merged into their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from poise.errors import ModelError
from poise.models.locate import locate
from poise.models.merged import adapter_in, with_adapter
from poise.models.usable import loading

_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
_WEIGHTS = "adapter_model.safetensors"


def load_adapted(source: str, name: str, dtype: Any) -> Any | None:
    """The classifier of an adapter's folder; None for a folder that holds no adapter.

    Raises ModelError for an adapter of a language model, or one that brings no head: it would be random.
    """
    card = adapter_in(source)
    if card is None:
        return None
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification

    stored = json.loads(card.read_text("utf-8"))
    if stored.get("task_type") != "SEQ_CLS":
        raise ModelError(
            f"model {name!r} is an adapter for {stored.get('task_type')}, not for a sequence classifier (SEQ_CLS): its "
            "head would be random. Give a reward model or classifier"
        )
    weights = Path(source) / _WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{source} has no {_WEIGHTS}: save the adapter as safetensors; pickles are not read")
    with safe_open(weights, "pt") as file:
        keys = set(file.keys())
        heads = [file.get_slice(key).get_shape()[0] for key in keys if key.endswith(_HEADS)]
    if len(heads) != 1:
        raise ModelError(
            f"{source}: the adapter brings {len(heads)} heads, expected one ({' or '.join(_HEADS)}): train it with "
            'task_type="SEQ_CLS", which saves the head, or merge it with peft and give the folder of the merged model'
        )
    base = locate(str(stored["base_model_name_or_path"]))
    with loading(base, name):
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=heads[0], dtype=dtype, use_safetensors=True
        )
        return with_adapter(model, Path(source), keys).merge_and_unload()
