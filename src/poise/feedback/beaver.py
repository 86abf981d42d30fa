"""Reward and cost models in the layout of PKU's Safe RLHF (`LlamaForScore`), read without their code.

    config.json        architectures ["...ForScore"], score_type "reward" or "cost", do_normalize
    state dict         the language model without its head, score_head.weight [1, H], score_head.bias [1] if any,
                       normalizer.mean [1] and normalizer.var [1]
    text               BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{answer}</s>
    score              the head's value at the last token; normalised only if do_normalize says so:
                       reward (s - mean) / std, cost s / std, so that the zero of a cost stays where it is

A reward is better when higher, a cost worse. Source: Safe RLHF (arXiv:2310.12773) and its code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from poise.errors import ModelError
from poise.models.usable import loading, require_whole

BEAVER = (
    "{% for m in messages %}{% if loop.first %}BEGINNING OF CONVERSATION: {% endif %}{% if m['role'] == 'user' %}"
    "USER: {{ m['content'] }} ASSISTANT:{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}{% else %}"
    "{{ raise_exception('it knows only turns of user and assistant') }}{% endif %}{% endfor %}"
)
_WAYS = {"reward": False, "cost": True}
_HEAD, _NORMALIZER = "score_head.", "normalizer."
_EPSILON = 1e-8  # as in the reference


def is_beaver(config: Any) -> bool:
    """Whether a configuration says that its weights are in this layout."""
    return any(kind.endswith("ForScore") for kind in getattr(config, "architectures", None) or [])


def ways_of_beaver(config: Any) -> dict[str, bool | None]:
    """The output, named after its type, with whether higher is worse; unknown where no type is stored.

    Raises ModelError for a type that is no score of a response.
    """
    kind = getattr(config, "score_type", None)
    if kind is None:
        return {"score": None}
    if kind not in _WAYS:
        raise ModelError(f"score_type in config.json is {kind!r}; expected {' or '.join(_WAYS)}")
    return {kind: _WAYS[kind]}


class EndScores(nn.Module):
    """A language model without its head, and a linear score of the state of the last token."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: Any, head: nn.Linear, *, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.backbone, self.head, self.config = backbone, head, backbone.config
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Scores [B, 1], as `logits`, of rows [B, L] that are filled on the right."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        scores = self.head(states[torch.arange(len(last), device=last.device), last]).float()
        return SimpleNamespace(logits=(scores - self.mean) / self.deviation)


def load_beaver(source: str, name: str, config: Any, dtype: Any) -> EndScores:
    """The score model in a folder or of a hub id. Raises ModelError for weights that are missing or strange."""
    from transformers import AutoModel

    with loading(source, name):
        backbone, report = AutoModel.from_pretrained(
            source, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
        stored = _extra_weights(_files(source))
    own = (_HEAD, _NORMALIZER, "lm_head.")
    unexpected = [key for key in report["unexpected_keys"] if not key.startswith(own)]
    require_whole(name, {**report, "unexpected_keys": unexpected})
    width = config.get_text_config().hidden_size
    weight, bias = stored.get(f"{_HEAD}weight"), stored.get(f"{_HEAD}bias")
    if weight is None or weight.shape != (1, width):
        found = "is missing" if weight is None else f"has the shape {tuple(weight.shape)}"
        raise ModelError(
            f"model {name!r} says that it is a {config.architectures[0]}, but its {_HEAD}weight {found}; expected "
            f"(1, {width})"
        )
    head = nn.Linear(width, 1, bias=bias is not None)
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    head.to(backbone.dtype)
    mean, deviation = _normaliser(name, config, stored)
    return EndScores(backbone, head, mean=mean, deviation=deviation)


def _normaliser(name: str, config: Any, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What scores are shifted and divided by; nothing unless the configuration says so."""
    if not getattr(config, "do_normalize", False):
        return torch.zeros(1), torch.ones(1)
    if missing := [key for key in ("mean", "var") if f"{_NORMALIZER}{key}" not in stored]:
        raise ModelError(
            f"model {name!r} says do_normalize, but stores no {', '.join(_NORMALIZER + k for k in missing)}"
        )
    mean, variance = (stored[f"{_NORMALIZER}{key}"].float() for key in ("mean", "var"))
    is_cost = getattr(config, "score_type", None) == "cost"
    return (torch.zeros_like(mean) if is_cost else mean), variance.sqrt() + _EPSILON


def _files(source: str) -> Callable[[str], Path | None]:
    """A function that finds a file of the folder or hub id."""

    def found(file: str) -> Path | None:
        if Path(source).is_dir():
            return Path(source, file) if Path(source, file).is_file() else None
        from transformers.utils.hub import cached_file

        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    return found


def _extra_weights(found: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """The weights that the language model has no place for: head and normaliser."""
    from safetensors import safe_open

    index = found("model.safetensors.index.json")
    names = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index else {"model.safetensors"}
    weights: dict[str, Tensor] = {}
    for path in filter(None, map(found, sorted(names))):
        with safe_open(path, "pt") as file:
            weights |= {key: file.get_tensor(key) for key in file.keys() if key.startswith((_HEAD, _NORMALIZER))}
    return weights
