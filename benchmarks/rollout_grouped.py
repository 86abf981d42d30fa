"""8 samples for each of 16 prompts of 256 tokens, 64 tokens each, against transformers' `generate`."""

from __future__ import annotations

from dataclasses import replace

from harness import Size, main
from rollout_fixed import BENCHMARK as FIXED

BENCHMARK = replace(
    FIXED,
    name="rollout_grouped",
    bar=4,
    size=Size(rows=16, prompt=256, samples=8, warm_up=1, repeats=3),
    quick={"samples": 3},
    scales=(2, 4, 8, 16, 32),
)

if __name__ == "__main__":
    main(BENCHMARK)
