"""One DPO step on 16 pairs of 128 + 128 tokens, full fine-tuning, against TRL; references are computed beforehand."""

from __future__ import annotations

import _training
import _trl
from harness import Benchmark, Size, main

BENCHMARK = Benchmark(
    name="dpo",
    peer_name="TRL DPOTrainer",
    bar=2,
    ours=_training.dpo,
    peer=_trl.dpo,
    size=Size(rows=16, prompt=128, response=128, repeats=4),
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
