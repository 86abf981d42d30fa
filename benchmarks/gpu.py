"""One GPU: decoding against memory bandwidth, training against peak arithmetic, a PPO-Lag step, peak memory.

Needs torch and transformers only; models are random with real shapes, so nothing is downloaded. `--device cpu --quick`
shows in seconds that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import RESULTS, machine

from poise.models.adapters import Lora
from poise.models.decoder import Decoder
from poise.models.heads import ScoreModel
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.models.tiny import tiny_tokenizer
from poise.rollout.native import NativeEngine
from poise.train.algorithms import PPO
from poise.train.controllers import ProjectedAscent
from poise.train.objectives import Lagrangian, Limit
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.types import Prompt, Sampling


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama of this shape."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int = 49_152


SHAPES = (
    Shape(name="135M", layers=30, hidden=576, inner=1536, heads=9, key_heads=3),
    Shape(name="1.5B", layers=28, hidden=1536, inner=8960, heads=12, key_heads=2, vocabulary=151_936),
    Shape(name="7B", layers=32, hidden=4096, inner=11_008, heads=32, key_heads=32, vocabulary=32_000),
)
TINY = Shape(name="tiny", layers=2, hidden=64, inner=128, heads=4, key_heads=2, vocabulary=512)


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much is measured."""

    rows: int = 64
    prompt: int = 64
    response: int = 64
    tokens: int = 8192
    repeats: int = 3


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--largest", default="7B", choices=[shape.name for shape in SHAPES])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: nothing was measured. --device cpu --quick shows that it runs")
    names = [shape.name for shape in SHAPES]
    shapes = [TINY] if options.quick else list(SHAPES[: names.index(options.largest) + 1])
    work = Work(rows=4, prompt=24, response=8, tokens=256, repeats=2) if options.quick else Work()
    limits = {"products, TFLOP/s": flops(options.device, options.quick), "memory, GB/s": bandwidth(options.device)}
    figures = {name: round(value, 2) for name, value in limits.items()}
    for shape in shapes:
        for name, value in measure(shape, work, options.device, limits).items():
            figures[f"{shape.name} {name}"] = value
            print(f"{shape.name} {name}: {value}", flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else machine()["cpu"]
    result = {"device": device, "date": time.strftime("%Y-%m-%d"), "figures": figures, "machine": machine()}
    if options.device == "cuda" and not options.quick:
        (RESULTS / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    ratio = figures[f"{shapes[0].name} decoding, share of the bandwidth limit"]
    told = {"benchmark": "gpu", "ratio": ratio, "ours": figures, "peer": limits, "device": device}
    print(json.dumps(told))


def random_backbone(shape: Shape, device: str) -> Backbone:
    """A random model of the shape in bf16."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    return Backbone(name=shape.name, model=model, tokenizer=tiny_tokenizer("random:llama"), decoder=Decoder(model))


def measure(shape: Shape, work: Work, device: str, limits: dict[str, float]) -> dict[str, float]:
    """All figures of one shape."""
    backbone = random_backbone(shape, device)
    parameters = sum(each.numel() for each in backbone.model.parameters())
    policy = Policy(backbone, Lora(top=0.5))
    engine = NativeEngine(policy, batch_size=work.rows)
    engine.renderer.stop_ids = frozenset()
    asked = [Prompt.of(chr(97 + i % 26) * max(1, work.prompt - 30 - i // 26)) for i in range(work.rows)]
    few, all_of_them = Sampling(max_tokens=2), Sampling(max_tokens=work.response)
    reset_peak(device)
    prefill = seconds(lambda: engine.generate(asked, few), work.repeats, device)
    whole = seconds(lambda: engine.generate(asked, all_of_them), work.repeats, device)
    step = max(1e-9, (whole - prefill) / (work.response - 2))
    weights_read = 2 * parameters / (limits["memory, GB/s"] * 1e9)
    found = {
        "parameters, millions": round(parameters / 1e6, 1),
        "generation, tokens/s": round(work.rows * work.response / whole, 1),
        "decoding, tokens/s": round(work.rows / step, 1),
        "decoding, share of the bandwidth limit": round(weights_read / step, 3),
        "generation, peak GiB": peak(device),
    }
    if device == "cuda":
        os.environ["POISE_GRAPHS"] = "1"
        graphs = seconds(lambda: engine.generate(asked, all_of_them), work.repeats, device)
        found["generation with graphs, tokens/s"] = round(work.rows * work.response / graphs, 1)
        del os.environ["POISE_GRAPHS"]
    return found | training(backbone, policy, work, device, limits) | ppo_lag(backbone, engine, asked, work, device)


def training(backbone: Backbone, policy: Policy, work: Work, device: str, limits: dict[str, float]) -> dict[str, float]:
    """Forward and backward passes of the adapter on whole rows."""
    length = work.prompt + work.response
    rows = max(1, work.tokens // length)
    ids = torch.randint(4, 200, (rows, length), device=device)
    starts = torch.full((rows,), work.prompt, device=device)
    mask = torch.ones(rows, work.response, dtype=torch.bool, device=device)
    shared = SharedRows.of(ids, starts, mask)

    def train() -> None:
        logprobs, _ = policy.logprobs(shared)
        logprobs.sum().backward()

    reset_peak(device)
    spent = seconds(train, work.repeats, device)
    head = backbone.decoder.head.weight.numel()
    layers = sum(each.numel() for each in backbone.decoder.layers.parameters())
    needed = 2 * rows * (length * layers * 1.5 + 3 * work.response * head)  # half of the layers are adapted
    return {
        "training, tokens/s": round(rows * length / spent, 1),
        "training, share of the arithmetic limit": round(needed / spent / (limits["products, TFLOP/s"] * 1e12), 3),
        "training, peak GiB": peak(device),
    }


def ppo_lag(backbone: Backbone, engine: NativeEngine, asked: list[Prompt], work: Work, device: str) -> dict[str, float]:
    """A step of PPO-Lag: one backbone, two score channels, two critics."""
    trainer = OnPolicyTrainer(
        policy=engine.policy,
        engine=engine,
        scorers=[ScoreModel(backbone)],
        algorithm=PPO,
        objective=Lagrangian(Limit(at_most=0.0), ProjectedAscent()),
        prompts=[replace(prompt, id=f"{i}") for i, prompt in enumerate(asked)],
        prompts_per_step=work.rows,
        sampling=Sampling(max_tokens=work.response),
        optimisation=OptimizerSettings(tokens_per_micro_batch=work.tokens),
    )
    steps = iter(range(1_000))
    reset_peak(device)
    spent = seconds(lambda: trainer.step_at(next(steps)), work.repeats, device)
    return {"PPO-Lag, s a step": round(spent, 3), "PPO-Lag, peak GiB": peak(device)}


def seconds(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Median seconds of a call, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def flops(device: str, quick: bool) -> float:
    """TFLOP/s of a large bf16 product."""
    size = 1024 if quick or device == "cpu" else 8192
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: left @ left, 5, device) / 1e12


def bandwidth(device: str) -> float:
    """GB/s read and written by a copy."""
    source = torch.ones((1 << 30) if device == "cuda" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), 5, device) / 1e9


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    """Peak GiB on the device; 0 on a CPU, where the other benchmarks measure it."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else 0.0


if __name__ == "__main__":
    main()
