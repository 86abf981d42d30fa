"""Tiny random models with byte tokens: real architectures, no download, a step in milliseconds.

random:llama                                 ChatML template, pad = eos
random:qwen?layers=3&hidden=32&seed=1        any of layers, hidden, heads and seed; 260 tokens
random:gpt2                                  absolute positions, the BEAVER template of Safe RLHF
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import torch

from poise.errors import ModelError
from poise.models.attention import register

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Safe RLHF's own format: no space after the last colon, the response follows directly, then eos.
BEAVER = (
    "{% for m in messages %}{% if loop.first %}BEGINNING OF CONVERSATION: {% endif %}{% if m['role'] == 'user' %}"
    "USER: {{ m['content'] }} ASSISTANT:{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% else %}"
    "{{ m['content'] }} {% endif %}{% endfor %}"
)
_FAMILIES = {"llama": CHATML, "qwen": CHATML, "gpt2": BEAVER}
_END = "<|im_end|>"


def _parse(name: str) -> tuple[str, dict[str, int]]:
    family, _, query = name.removeprefix("random:").partition("?")
    options = {"layers": 2, "hidden": 64, "heads": 4, "seed": 0}
    try:
        given = {key: int(value) for key, value in parse_qsl(query, strict_parsing=bool(query))}
    except ValueError as error:
        raise ModelError(
            f"{name!r}: options after ? are key=integer pairs, e.g. random:llama?layers=3&hidden=32"
        ) from error
    if family not in _FAMILIES or not given.keys() <= options.keys():
        raise ModelError(f"{name!r}: families are {', '.join(_FAMILIES)}; options are {', '.join(options)}")
    options |= given
    if min(options["layers"], options["hidden"], options["heads"]) < 1 or options["hidden"] % (2 * options["heads"]):
        raise ModelError(f"{name!r}: layers, hidden and heads are at least 1 and hidden is a multiple of 2 x heads")
    return family, options


def with_seed(name: str, seed: int) -> str:
    """The name of the model that `tiny_model(name, seed=seed)` makes: who reloads it by that name gets its weights.

    >>> with_seed("random:llama", 3), with_seed("random:llama?seed=1", 3)
    ('random:llama?seed=3', 'random:llama?seed=1')
    """
    if seed == 0 or _parse(name)[1]["seed"] != 0:
        return name
    return f"{name}{'&' if '?' in name else '?'}seed={seed}"


def tiny_tokenizer(name: str) -> Any:
    """A byte-level tokenizer with the family's chat template; pad = eos on purpose."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    family, _ = _parse(name)
    specials = [_END, "<|im_start|>", "<|bos|>", "<|spare|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_END,
        bos_token="<|bos|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = _FAMILIES[family]
    return fast


def tiny_model(name: str, *, seed: int = 0) -> Any:
    """A randomly initialised two-layer model of the family, the same for the same name and seed."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    family, options = _parse(name)
    shared: dict[str, Any] = {
        "vocab_size": 260,
        "bos_token_id": 2,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    hidden, heads, layers = options["hidden"], options["heads"], options["layers"]
    config: Any
    if family == "gpt2":
        config = GPT2Config(n_embd=hidden, n_head=heads, n_layer=layers, n_positions=2048, **shared)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    else:
        make = LlamaConfig if family == "llama" else Qwen2Config
        config = make(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2 if heads % 2 == 0 else 1,
            max_position_embeddings=2048,
            **shared,
        )
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"] or seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=register())
