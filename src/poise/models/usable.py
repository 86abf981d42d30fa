"""Whether what was loaded can be used: every weight stored and a number, every token that may be said known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from poise.errors import ModelError, PoiseError

_BUFFERS = (
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
)


@contextmanager
def loading(source: str, name: str) -> Iterator[None]:
    """Whatever transformers raises as a ModelError, and its tables of weights not printed: they are errors here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except PoiseError:
        raise
    except Exception as error:  # what a strange configuration raises deep in transformers cannot be listed
        raise ModelError(_reason(source, name, error)) from error
    finally:
        logging.set_verbosity(before)


def _reason(source: str, name: str, error: Exception) -> str:
    folder = Path(source)
    if folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            f"model {name!r} stores its weights as pickles, which poise does not read because they can run code. "
            "Save it as safetensors (save_pretrained of transformers does)"
        )
    where = "folder" if folder.is_dir() else "hub id"
    first = (str(error).strip() or "no reason given").splitlines()[0]
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return (
        f"cannot load model {name!r} ({where}): {kind}{first}. "
        "Give a folder, a hub id that this machine can reach, smollm2-135m or random:llama"
    )


def require_whole(name: str, report: Mapping[str, Any]) -> None:
    """Raise ModelError that names weights which the files lack or which the model has no place for."""
    extra = [key for key in report["unexpected_keys"] if not key.endswith(_BUFFERS)]
    for keys, what in (
        (report["missing_keys"], "lacks weights, which would be random"),
        (report["mismatched_keys"], "has weights whose shapes differ from its config.json"),
        (extra, "has weights that do not belong to its config.json"),
    ):
        if keys:
            first = ", ".join(str(key[0] if isinstance(key, tuple) else key) for key in sorted(keys)[:3])
            raise ModelError(
                f"model {name!r} {what}: {len(keys)} in all, the first {first}. Save the whole language model again "
                "(AutoModelForCausalLM, save_pretrained)"
            )


def require_usable(name: str, model: Any, tokenizer: Any) -> None:
    """Raise ModelError for weights that are no numbers, and for a tokenizer of tokens that have no weights."""
    broken = [key for key, weight in model.named_parameters() if not _is_finite(weight)]
    if broken:
        raise ModelError(
            f"model {name!r} has weights that are not finite numbers: {len(broken)} tensors, the first {broken[0]}. "
            "Its training diverged or its file is damaged: give an earlier checkpoint"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [token for token, place in sorted(tokenizer.get_vocab().items()) if place >= rows]
    if said := [token for token in beyond if _may_be_said(token, tokenizer)]:
        raise ModelError(
            f"model {name!r} has weights for {rows} tokens, but its tokenizer has {len(tokenizer)}: {len(said)} "
            f"tokens that texts or its template use have no weights, such as {said[0]!r}. Give the tokenizer that "
            "belongs to the model, or save the model after resize_token_embeddings and training"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in weight.detach().aminmax())


def _may_be_said(token: str, tokenizer: Any) -> bool:
    """Whether a text can become this token, or a template writes it; padding and unused marks need no weights."""
    if token not in tokenizer.all_special_tokens:
        return True
    written = str(getattr(tokenizer, "chat_template", None) or "")
    return token in (tokenizer.eos_token, tokenizer.bos_token) or token in written
