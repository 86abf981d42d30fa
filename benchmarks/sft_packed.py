"""One supervised step on 32 ragged rows of 64 to 256 tokens, full fine-tuning, against TRL without packing.

TRL's packing (`bfd`, `wrapped`) is slower than padding on a CPU, where attention sees the whole packed row: `--packing`
measures it as the peer instead.
"""

from __future__ import annotations

import random

import _training
import _trl
from _models import prompts, response
from harness import Benchmark, Repeat, Size, main

from poise.types import Prompt


def rows(size: Size) -> list[tuple[Prompt, str]]:
    draw = random.Random(1)
    longest = size.response
    return [(p, response(size, draw, draw.randint(longest // 16, longest))) for p in prompts(size, 4 * size.rows)]


def ours(size: Size) -> Repeat:
    return _training.sft(size, rows(size))


def peer(size: Size) -> None:
    _trl.sft(size, rows(size))


BENCHMARK = Benchmark(
    name="sft_packed",
    peer_name="TRL SFTTrainer, padded (its fastest mode on a CPU)",
    bar=2,
    ours=ours,
    peer=peer,
    size=Size(rows=32, prompt=40, response=216, repeats=4),
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
