"""One GRPO step of 64 completions of 64 tokens to prompts of 64, LoRA of rank 16 on all linear layers, against TRL."""

from __future__ import annotations

import _training
import _trl
from harness import Benchmark, Size, main

BENCHMARK = Benchmark(
    name="grpo_64_lora",
    peer_name="TRL GRPOTrainer",
    bar=3,
    ours=_training.grpo,
    peer=_trl.grpo,
    size=Size(rows=64, lora=True, repeats=4),
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
