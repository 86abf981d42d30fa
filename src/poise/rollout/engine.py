"""What every engine promises, checked in one place."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from poise.errors import ConfigError, EngineError
from poise.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor


def check_sampling(sampling: Sampling) -> None:
    """Raise ConfigError for settings that no distribution or batch can satisfy."""
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ConfigError(
            f"Sampling(temperature={sampling.temperature}, top_p={sampling.top_p}): temperature is at least 0 "
            "(0 is greedy) and top_p in (0, 1]"
        )
    if sampling.samples < 1 or sampling.max_tokens < 1:
        raise ConfigError(
            f"Sampling(samples={sampling.samples}, max_tokens={sampling.max_tokens}): both are at least 1"
        )


def sample_numbers(prompts: Sequence[Prompt], samples: int) -> list[tuple[Prompt, int, int]]:
    """Prompts with the number of each of their samples, and the number that its draws follow from.

    The two are the same, but for a prompt that is listed again: it goes on where the one before it ended, as if more
    samples had been asked for, so that no two completions are drawn alike.

    >>> hello = Prompt.of("Hello")
    >>> [(sample, draw) for _, sample, draw in sample_numbers([hello, Prompt.of("Bye"), hello], samples=2)]
    [(0, 0), (1, 1), (0, 0), (1, 1), (0, 2), (1, 3)]
    """
    before: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        begin = before[prompt.id]
        found += [(prompt, sample, begin + sample) for sample in range(samples)]
        before[prompt.id] += samples
    return found


def places_by_prompt(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Where each prompt stands, once for each: places that belong into one call, since they share their draws.

    >>> places_by_prompt([Prompt.of("Hello"), Prompt.of("Bye"), Prompt.of("Hello")])
    [[0, 2], [1]]
    """
    found: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        found.setdefault(prompt.id, []).append(place)
    return list(found.values())


def check_completions(prompts: Sequence[Prompt], completions: list[Completion], sampling: Sampling) -> list[Completion]:
    """Return the completions if they are `samples` per prompt, in order, with one log-prob per token.

    Raises EngineError naming the first completion that breaks the promise.
    """
    expected = [(prompt.id, sample) for prompt in prompts for sample in range(sampling.samples)]
    if len(completions) != len(expected):
        raise EngineError(
            f"the engine returned {len(completions)} completions where {len(prompts)} prompts x "
            f"{sampling.samples} samples were requested: an engine must answer every prompt; a failure has "
            "finish='error'"
        )
    for completion, (prompt_id, sample) in zip(completions, expected, strict=True):
        if (completion.prompt_id, completion.sample) != (prompt_id, sample):
            raise EngineError(
                f"the engine returned prompt {completion.prompt_id} sample {completion.sample} where prompt "
                f"{prompt_id} sample {sample} was due: samples of a prompt are adjacent, in the order of the prompts"
            )
        if completion.token_logprobs and len(completion.token_ids) != len(completion.token_logprobs):
            raise EngineError(
                f"prompt {prompt_id} sample {sample}: {len(completion.token_ids)} tokens but "
                f"{len(completion.token_logprobs)} log-probabilities, expected one per token"
            )
    return completions


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Names weights by their content: a version may be trained twice, after a resume or from another start."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:10]
