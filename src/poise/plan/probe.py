"""A short measurement of our own passes on this machine, with a few layers of the model's widths and random weights.

A layer costs the same as its neighbour, so that models of two depths tell what one layer costs and what the head does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from poise.errors import ConfigError
from poise.models.adapters import Lora
from poise.models.decoder import Decoder
from poise.models.load import Backbone, fastest_dtype
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.models.tiny import tiny_tokenizer
from poise.plan.model_sizes import ModelSize
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling

_DEPTHS = (1, 4)
_PROMPTS, _SAMPLES, _PROMPT_TOKENS, _RESPONSE_TOKENS = 8, 4, 45, 40  # of a micro-batch
_ROWS, _STEPS = 64, (4, 20)  # of generation; two lengths, so that reading the prompts is left out
_ROUNDS = 3, 9  # at least and, where the times make no sense yet, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Seconds of our passes: of each token in one layer, and of each position in the head."""

    forward_layer: float
    forward_head: float
    training_layer: float  # forward and backward, with an adapter on a frozen backbone
    training_head: float
    decoding_layer: float  # of one step of 64 rows
    decoding_head: float
    rows: int = _ROWS


def probe(size: ModelSize) -> Probe:
    """Measure for some seconds on this machine; of each work the shortest time counts.

    The depths take turns, so that another program slows both. Raises ConfigError where a deeper model still took no
    longer: the machine is too busy to be measured.
    """
    works = [_works(size, depth) for depth in _DEPTHS]
    shortest = [[float("inf")] * len(each) for each in works]
    for done in range(1, _ROUNDS[1] + 1):
        for times, each in zip(shortest, works, strict=True):
            times[:] = [min(known, _seconds(work)) for known, work in zip(times, each, strict=True)]
        few, many = ((forward, training, _per_step(short, long)) for forward, training, short, long in shortest)
        if done >= _ROUNDS[0] and all(0 < a < b for a, b in zip(few, many, strict=True)):
            break
    else:
        raise ConfigError(
            f"{_DEPTHS[1]} layers took no longer than {_DEPTHS[0]} on this machine, so it cannot be measured now: "
            "try again when the machine is less busy, or name a machine with --machine"
        )
    tokens = _PROMPTS * (_PROMPT_TOKENS + _SAMPLES * _RESPONSE_TOKENS)
    positions = _PROMPTS * _SAMPLES * _RESPONSE_TOKENS
    per_layer = [(b - a) / (_DEPTHS[1] - _DEPTHS[0]) for a, b in zip(few, many, strict=True)]
    heads = [max(0.0, a - _DEPTHS[0] * layer) for a, layer in zip(few, per_layer, strict=True)]
    return Probe(
        forward_layer=per_layer[0] / tokens,
        forward_head=heads[0] / positions,
        training_layer=per_layer[1] / tokens,
        training_head=heads[1] / positions,
        decoding_layer=per_layer[2],
        decoding_head=heads[2],
    )


def _works(size: ModelSize, depth: int) -> tuple[Callable[[], object], ...]:
    """A forward pass, a training pass and a short and a longer generation of a model of so many layers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy(_backbone(size, depth, device), Lora())
    ids = torch.randint(0, 256, (_PROMPTS, _PROMPT_TOKENS), device=device).repeat_interleave(_SAMPLES, 0)
    rows = SharedRows.of(
        torch.nn.functional.pad(ids, (0, _RESPONSE_TOKENS), value=5),
        torch.full((len(ids),), _PROMPT_TOKENS, device=device),
        torch.ones(len(ids), _RESPONSE_TOKENS, dtype=torch.bool, device=device),
    )

    def forward() -> None:
        with torch.no_grad():
            policy.logprobs(rows, reference=True)

    def training() -> None:
        policy.logprobs(rows)[0].sum().backward()

    engine = NativeEngine(policy, batch_size=_ROWS)
    prompts = [Prompt.of("x" * _PROMPT_TOKENS, number=i) for i in range(_ROWS)]
    short, long = (partial(engine.generate, prompts, Sampling(max_tokens=steps, seed=1)) for steps in _STEPS)
    return forward, training, short, long


def _per_step(short: float, long: float) -> float:
    return (long - short) / (_STEPS[1] - _STEPS[0])


def _backbone(size: ModelSize, depth: int, device: str) -> Backbone:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=depth,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_width or None,
        vocab_size=max(size.vocabulary, 260),
        tie_word_embeddings=size.is_tied,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng():
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=fastest_dtype(device))
    model = model.to(device).eval().requires_grad_(False)
    return Backbone(name="probe", model=model, tokenizer=tiny_tokenizer("random:llama"), decoder=Decoder(model))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
