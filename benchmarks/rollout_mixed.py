"""128 requests that end after 8 to 128 tokens, the lengths drawn once (log-uniform), against `generate`.

Both sides are told when a row has ended by a rule on its length, so that the work is the same in every repeat.
`generate` has static batches: the peer runs two of 64 rows.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from _models import backbone, peer_inputs, prompts
from harness import Benchmark, Repeat, Size, main

from poise.models.policy import Policy
from poise.rollout.generation import Row
from poise.rollout.native import NativeEngine
from poise.types import Sampling


def lengths(size: Size) -> list[int]:
    """Tokens of each response, log-uniform from a sixteenth of `response` to all of it: 8 to 128."""
    draw = random.Random(7)
    return [max(1, round(size.response / 16 * 16 ** draw.random())) for _ in range(size.rows)]


class Ending(NativeEngine):
    """An engine whose rows end after lengths that are given."""

    def ending_at(self, wanted: list[int]) -> Ending:
        self.wanted = wanted
        return self

    def _ends(self, row: Row, sampling: Sampling) -> bool:
        return len(row.tokens) >= self.wanted[row.number]


def ours(size: Size) -> Repeat:
    engine = Ending(Policy(backbone(size.model)), batch_size=min(64, size.rows)).ending_at(lengths(size))
    asked, draws = prompts(size, size.rows), iter(range(1_000_000))

    def repeat() -> None:
        made = engine.generate(asked, Sampling(max_tokens=size.response, seed=next(draws)))
        assert [len(each.token_ids) for each in made] == engine.wanted

    return repeat


def peer(size: Size) -> Repeat:
    model, _, inputs = peer_inputs(size, size.rows)
    wanted, width = torch.tensor(lengths(size)), inputs["input_ids"].shape[1]
    model.generation_config.eos_token_id = None

    def batch(begin: int, end: int) -> None:
        def done(input_ids: torch.Tensor, scores: Any, **settings: Any) -> torch.Tensor:
            return input_ids.shape[1] - width >= wanted[begin:end]

        part = {name: value[begin:end] for name, value in inputs.items()}
        model.generate(
            **part, do_sample=True, top_k=0, max_new_tokens=size.response, pad_token_id=0, stopping_criteria=[done]
        )

    @torch.no_grad()
    def repeat() -> None:
        half = -(-size.rows // 2)
        batch(0, half)
        batch(half, size.rows)

    return repeat


BENCHMARK = Benchmark(
    name="rollout_mixed",
    peer_name="transformers generate, two batches of 64",
    bar=4,
    ours=ours,
    peer=peer,
    size=Size(rows=128, response=128, warm_up=1, repeats=3),
    scales=(32, 64, 128, 256),
)

if __name__ == "__main__":
    main(BENCHMARK)
