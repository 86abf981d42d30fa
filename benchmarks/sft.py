"""One supervised step on 16 rows of 256 tokens, full fine-tuning, loss on the completion, against TRL."""

from __future__ import annotations

import random

import _training
import _trl
from _models import prompts, response
from harness import Benchmark, Repeat, Size, main

from poise.types import Prompt


def rows(size: Size) -> list[tuple[Prompt, str]]:
    draw = random.Random(1)
    return [(prompt, response(size, draw)) for prompt in prompts(size, 4 * size.rows)]


def ours(size: Size) -> Repeat:
    return _training.sft(size, rows(size))


def peer(size: Size) -> None:
    _trl.sft(size, rows(size))


BENCHMARK = Benchmark(
    name="sft",
    peer_name="TRL SFTTrainer",
    bar=2,
    ours=ours,
    peer=peer,
    size=Size(rows=16, prompt=128, response=128, repeats=4),
    needs="trl",
)

if __name__ == "__main__":
    main(BENCHMARK)
