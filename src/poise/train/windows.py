"""What a trainer reads of prompts and responses: what was sampled, no more and no less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poise.data.chat import ChatRenderer
from poise.feedback.windows import require_sight
from poise.models.trainable import TrainablePolicy
from poise.types import Engine, Prompt, Sampling, Scorer


def sampled_renderer(
    policy: TrainablePolicy, engine: Engine, scorers: Sequence[Scorer], sampling: Sampling, prompts: Sequence[Prompt]
) -> ChatRenderer | None:
    """The renderer of a trainer on samples: prompts are cut where the engine cuts them, responses nowhere.

    None where the policy reads no text.

    Log-probabilities belong to the ids that were sampled from; another cut is another prompt. Raises ConfigError where
    a scorer would see less than may be said, and DataError where the chat template refuses a prompt.
    """
    require_sight(scorers, sampling)
    longest = max(4 * sampling.max_tokens, policy.context or 0)  # of a text that came without its ids
    renderer = policy.renderer(max_prompt_tokens=prompt_window(engine), max_response_tokens=longest)
    if renderer is not None:
        renderer.check(prompts)
    return renderer


def prompt_window(engine: Any) -> int | None:
    """Where an engine cuts prompts, in tokens; None where it renders none or cuts as its backbone does."""
    engine = getattr(engine, "engine", engine)  # one sharded over processes
    renderer = getattr(engine, "renderer", None)
    window = renderer.max_prompt_tokens if isinstance(renderer, ChatRenderer) else None
    return window or getattr(engine, "max_prompt_tokens", None)
