"""A frozen backbone in four bits a weight, by bitsandbytes: for models that do not fit on one GPU otherwise."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from poise.errors import ConfigError
from poise.ranks import current


def four_bits(bits: int, device: str) -> Any:
    """How transformers loads the backbone's linear layers in NF4; products are computed in bf16.

    Adapters and heads stay in fp32. Raises ConfigError where it cannot work: on a CPU, sharded, or not installed.
    Source: QLoRA (Dettmers et al., arXiv:2305.14314).
    """
    if bits != 4:
        raise ConfigError(f"POISE_BASE_BITS is {bits}: frozen weights have 16 bits, or 4 on a GPU")
    if not device.startswith("cuda"):
        raise ConfigError(f"POISE_BASE_BITS=4 needs a CUDA GPU, and this run is on {device!r}: unset it")
    if current().is_sharded:
        raise ConfigError("packed weights cannot be sharded: with POISE_BASE_BITS=4 set POISE_SHARD=0")
    if find_spec("bitsandbytes") is None:
        raise ConfigError("POISE_BASE_BITS=4 needs the package bitsandbytes: pip install 'poise[gpu]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
