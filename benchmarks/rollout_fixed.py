"""64 prompts of 64 tokens answered with 64 tokens each, none ending early, against transformers' `generate`."""

from __future__ import annotations

import _bounds
import torch
from _models import backbone, peer_inputs, prompts
from harness import Benchmark, Repeat, Size, main

from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.types import Sampling


def ours(size: Size) -> Repeat:
    engine = NativeEngine(Policy(backbone(size.model)), batch_size=size.rows * size.samples)
    engine.renderer.stop_ids = frozenset()
    asked, draws = prompts(size, size.rows), iter(range(1_000_000))

    def repeat() -> None:
        sampling = Sampling(max_tokens=size.response, samples=size.samples, seed=next(draws))
        made = engine.generate(asked, sampling)
        assert sum(len(each.token_ids) for each in made) == size.rows * size.samples * size.response

    return repeat


def peer(size: Size) -> Repeat:
    model, _, inputs = peer_inputs(size, size.rows)
    model.generation_config.eos_token_id = None  # no row ends early, and no pass over the logits sees to it

    @torch.no_grad()
    def repeat() -> None:
        model.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            max_new_tokens=size.response,
            num_return_sequences=size.samples,
            pad_token_id=0,
        )

    return repeat


BENCHMARK = Benchmark(
    name="rollout_fixed",
    peer_name="transformers generate",
    bar=2.5,
    ours=ours,
    peer=peer,
    bound=_bounds.generation,
    size=Size(rows=64, warm_up=1),
)

if __name__ == "__main__":
    main(BENCHMARK)
