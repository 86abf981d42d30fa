"""One GRPO step of 16 completions of 64 tokens to prompts of 64, full fine-tuning, against TRL."""

from __future__ import annotations

import _bounds
import _training
import _trl
from harness import Benchmark, Size, main

BENCHMARK = Benchmark(
    name="grpo_16",
    peer_name="TRL GRPOTrainer",
    bar=2,
    ours=_training.grpo,
    peer=_trl.grpo,
    size=Size(rows=16, lora=False, repeats=4),
    bound=_bounds.update,
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
