"""One PPO-Lag step of 16 samples, 64 + 64 tokens, as the recipe has it: seconds over those of its matrix products."""

from __future__ import annotations

import _bounds
import _training
from harness import Benchmark, Size, main

BENCHMARK = Benchmark(
    name="ppo_lag_16",
    peer_name="the matrix products alone, measured in turn",
    bar=2.5,
    ours=_training.ppo_lag,
    peer=None,
    bound=_bounds.ppo_lag,
    size=Size(rows=16),
)

if __name__ == "__main__":
    main(BENCHMARK)
