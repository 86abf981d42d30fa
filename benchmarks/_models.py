"""The models and texts of the benchmarks: prompts and responses of exact lengths, and the same for both sides."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from harness import Size

from poise.models.load import Backbone, load_backbone
from poise.types import Prompt

WORDS = "the of and to in is you that it he was for on are as with his they at be this have from or one had by".split()


@cache
def backbone(model: str) -> Backbone:
    """The model in bf16."""
    return load_backbone(model, dtype=torch.bfloat16)


def prompts(size: Size, number: int) -> list[Prompt]:
    """Different prompts of `size.prompt` tokens each, as the model's chat template renders them."""
    renderer = backbone(size.model).renderer(max_prompt_tokens=size.prompt + 64)
    draw = random.Random(size.seed)
    return [_grow(lambda text: len(renderer.prompt_ids(Prompt.of(text).messages)[0]), size.prompt, draw)
            for _ in range(number)]  # fmt: skip


def _grow(length: Any, target: int, draw: random.Random) -> Prompt:
    words = [draw.choice(WORDS) for _ in range(max(1, target // 6))]
    while length(" ".join(words)) < target:
        words.append(draw.choice(WORDS))
    return Prompt.of(" ".join(words))


def response(size: Size, draw: random.Random, tokens: int | None = None) -> str:
    """A text of about that many tokens."""
    tokenizer, wanted = backbone(size.model).tokenizer, tokens or size.response
    words = [draw.choice(WORDS) for _ in range(max(1, wanted // 8))]
    while len(tokenizer(" ".join(words))["input_ids"]) < wanted:
        words.append(draw.choice(WORDS))
    return " ".join(words)


def peer_model(size: Size) -> tuple[Any, Any]:
    """A fresh model and tokenizer as transformers has them, in bf16."""
    found = backbone(size.model)
    found.tokenizer.padding_side = "left"
    found.model.requires_grad_(True)
    return found.model, found.tokenizer


def peer_inputs(size: Size, number: int) -> tuple[Any, Any, dict[str, Any]]:
    """The peer's model, tokenizer and left-padded prompts."""
    model, tokenizer = peer_model(size)
    renderer = backbone(size.model).renderer(max_prompt_tokens=size.prompt + 64)
    rows = [renderer.prompt_ids(prompt.messages)[0] for prompt in prompts(size, number)]
    encoded = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
    return model.eval(), tokenizer, dict(encoded)
