"""One step of a reward model on 16 pairs of 64 + 64 tokens, LoRA of rank 16 on all linear layers, against TRL."""

from __future__ import annotations

import _training
import _trl
from harness import Benchmark, Size, main

BENCHMARK = Benchmark(
    name="reward",
    peer_name="TRL RewardTrainer",
    bar=1.2,
    ours=_training.reward,
    peer=_trl.reward,
    size=Size(rows=16, lora=True, repeats=4),
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
