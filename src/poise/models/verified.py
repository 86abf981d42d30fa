"""A model is computed here as transformers computes it: compared when a configuration is first met, or refused.

`Decoder` and its faster forms run a model in parts, so that a feature of a configuration that they do not know would be
dropped without a word. So the passes of this package and transformers' own are run once on the same few tokens, with
windows made shorter than these. What was found equal is remembered by configuration, code and versions, in the cache.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.errors import ModelError, RunError
from poise.files import atomic_write, cache_folder
from poise.models.decoder import Decoder
from poise.models.families import context_of
from poise.models.shared_pass import run_every_way
from poise.models.shared_rows import SharedRows
from poise.provenance import package_versions

_TOKENS, _WINDOW = 24, 5
_SMALL, _COPIED = 5_000_000, 200_000_000  # parameters of models whose weights are drawn anew, or copied to float32
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_CODE = ("models", "rollout", "kernels", "functional/logprobs.py")
_verified: set[str] = set()

Check = Callable[[Any, Tensor], Iterator[tuple[str, Tensor, Tensor]]]


def verify(model: Any, what: str, check: Check) -> None:
    """Run a check on a model unless its configuration has passed it before.

    `check(probe, ids)` yields the name of a way of computing with log-probabilities as found and as expected.
    Raises ModelError where these differ.
    """
    key = _fingerprint(model, what)
    record = cache_folder() / "verified" / key
    if key in _verified or record.exists():
        return
    for probe in _probes(model):
        with torch.no_grad():
            for way, found, expected in check(probe, probe_ids(probe)):
                _require_equal(probe, way, found, expected)
    _verified.add(key)
    with suppress(RunError):  # a cache that cannot be written costs a check in each process
        atomic_write(record, f"{model.config.model_type}\n")


def verify_layers(model: Any) -> None:
    """Compare every way of running the decoder with transformers' own forward pass; ModelError if one differs."""
    verify(model, "layers", _check_layers)


def transformers_logprobs(model: Any, ids: Tensor) -> Tensor:
    """Log-probabilities [B, L, V] in fp32 by transformers' own forward pass and its plain attention."""
    with _plain_attention(model):
        return torch.as_tensor(model(ids, use_cache=False).logits).float().log_softmax(-1)


def _check_layers(model: Any, ids: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    decoder, length = Decoder(model), ids.shape[1]
    expected = transformers_logprobs(model, ids)
    yield "layer by layer", decoder.logits(decoder.run(decoder.embed(ids))).float().log_softmax(-1), expected
    starts = [length // 2, length // 3]
    rows = SharedRows.of_lists(ids.tolist(), starts, device=ids.device)
    wanted = [expected[row, start - 1 : -1] for row, start in enumerate(starts)]
    for way, shared in run_every_way(decoder, rows):
        found = decoder.logits(shared.predicting()).float().log_softmax(-1)
        yield way, torch.cat([found[row, : len(each)] for row, each in enumerate(wanted)]), torch.cat(wanted)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far log-probabilities are apart, and whether rounding explains it."""

    nats: float
    is_small: bool


def distance(model: Any, found: Tensor, expected: Tensor) -> Distance:
    """How far a model's log-probabilities are from those expected: at most in fp32, on average in a narrower dtype."""
    apart = (found - expected).abs()
    is_wide = next(iter(model.parameters())).dtype == torch.float32
    likely = ~(expected <= expected.amax(-1, keepdim=True) - 10)  # what has no probability may differ, NaN may not
    nats = float(apart[likely].max() if is_wide else apart[likely].mean())
    return Distance(nats, nats <= (0.01 if is_wide else 0.15))


def probe_ids(model: Any) -> Tensor:
    """Random ids [2, L] to compare passes with, no longer than the context."""
    length = min(_TOKENS, context_of(model.config))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(1)).to(model.device)


def _require_equal(model: Any, way: str, found: Tensor, expected: Tensor) -> None:
    """Raise ModelError unless log-probabilities agree."""
    apart = distance(model, found, expected)
    if not apart.is_small:
        raise ModelError(
            f"model of family {model.config.model_type!r}: log-probabilities computed {way} differ from those of "
            f"transformers by {apart.nats:.2g} nats. Its configuration uses an unsupported feature; compare its "
            "config.json with that of a standard model of the family"
        )


def _probes(model: Any) -> Iterator[Any]:
    """The model as it is checked: with its windows shortened, if it has any, and with all tokens within them."""
    windowed = any(window is not None for window in Decoder(model).windows)
    for window in (_WINDOW, _TOKENS * 2) if windowed else (None,):
        count = sum(parameter.numel() for parameter in model.parameters())
        if count > _COPIED or getattr(model, "is_quantized", False):
            with _window(model.config, window):
                yield model
            continue
        probe = copy.deepcopy(model).float()
        if count <= _SMALL:
            _draw_anew(probe)
        with _window(probe.config, window):
            yield probe


def _draw_anew(model: Any) -> None:
    """Weights so large that no feature is too small to be seen: those of a fresh model hardly attend."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter + 0.2 * noise)


@contextmanager
def _window(config: Any, window: int | None) -> Iterator[None]:
    before = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = window
    try:
        yield
    finally:
        config.sliding_window = before


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _fingerprint(model: Any, what: str) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    facts = [what, model.config.model_type, str(model.dtype), model.device.type, package_versions(), _code()]
    return hashlib.sha256(json.dumps([facts, config], sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code() -> str:
    """A checksum of the source that computes passes."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for name in _CODE:
        paths = [root / name] if name.endswith(".py") else sorted((root / name).glob("*.[pc]*"))
        for path in paths:
            digest.update(path.read_bytes())
    return digest.hexdigest()
