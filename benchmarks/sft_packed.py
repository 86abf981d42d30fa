"""One supervised step on 32 ragged rows of 64 to 256 tokens, full fine-tuning, against TRL without packing.

The peer pads its rows: its packing (`bfd`, `wrapped`) lets attention see a whole packed row on a CPU. That padding is
the faster of its modes is taken from earlier measurements and is not measured here.
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
