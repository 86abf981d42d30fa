"""The engine samples from the model that transformers computes: compared when a configuration is first sampled from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from poise.models.adapters import use_adapter
from poise.models.decoder import Decoder
from poise.models.verified import transformers_logprobs, verify
from poise.ranks import current
from poise.rollout.generation import Forward, Generation, Row
from poise.types import Sampling

_SAMPLES = 2  # of each prompt: rows that share one


def verify_generation(
    model: Any, forward: Callable[[Decoder, int, torch.dtype], Forward], *, adapter: str | None
) -> None:
    """Compare the log-probabilities of what generation draws with transformers' own; ModelError if they differ.

    `forward(decoder, columns, dtype)` is how the engine runs a decoder, with that adapter. The parts of a sharded
    model cannot be compared; what its processes compute is what one process does.
    """
    if current().is_sharded:
        return

    def check(probe: Any, ids: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        with use_adapter(probe, adapter):
            prompts = [ids[0, : ids.shape[1] // 2].tolist(), ids[1, : ids.shape[1] // 3].tolist()]
            rows = _generated(probe, prompts, ids.shape[1] - len(prompts[0]), forward)
            for number, row in enumerate(rows):
                prompt = prompts[number // _SAMPLES]
                whole = torch.tensor([prompt + row.tokens], device=ids.device)
                wanted = transformers_logprobs(probe, whole)[0, len(prompt) - 1 : -1]
                drawn = torch.tensor(row.tokens, device=ids.device)[:, None]
                yield "in generation", torch.tensor(row.logprobs), wanted.gather(-1, drawn)[:, 0].cpu()

    verify(model, f"generation {'without an' if adapter is None else 'with its'} adapter", check)


def _generated(
    probe: Any, prompts: list[list[int]], tokens: int, forward: Callable[[Decoder, int, torch.dtype], Forward]
) -> list[Row]:
    """Rows of random draws, `_SAMPLES` to each prompt."""
    decoder, dtype = Decoder(probe), next(iter(probe.parameters())).dtype
    uniforms = torch.rand(len(prompts) * _SAMPLES, tokens, generator=torch.Generator().manual_seed(2))
    rows = [
        Row(number=number, prompt_length=len(prompts[number // _SAMPLES]), uniforms=each.to(probe.device))
        for number, each in enumerate(uniforms)
    ]
    with torch.autocast(probe.device.type, enabled=False):
        Generation(
            forward(decoder, max(map(len, prompts)) + tokens, dtype),
            prompts,
            rows,
            sampling=Sampling(max_tokens=tokens, samples=_SAMPLES),
            ends=lambda row: False,
            batch_rows=len(rows),
            dtype=dtype,
            device=probe.device,
        ).run()
    return rows
