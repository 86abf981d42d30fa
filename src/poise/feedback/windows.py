"""How much of a response a scorer reads: it must see all that may be said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poise.errors import ConfigError
from poise.types import Sampling, Scorer


def require_sight(scorers: Iterable[Scorer], sampling: Sampling) -> None:
    """Raise ConfigError if responses may be longer than what one of the scorers reads of them.

    A scorer with a window says so by `max_response_tokens`; one that wraps another as `scorer` reads what that reads.
    """
    for scorer in scorers:
        window = _window(scorer)
        if window is not None and window < sampling.max_tokens:
            raise ConfigError(
                f"{_name(scorer)} reads {window} tokens of a response and max_tokens={sampling.max_tokens} may be "
                f"generated: anything after token {window} would count as harmless. Lower max_tokens, or train "
                f"the scorer with max_response_tokens={sampling.max_tokens} or more"
            )


def _window(scorer: Any) -> int | None:
    while scorer is not None:
        window = getattr(scorer, "max_response_tokens", None)
        if isinstance(window, int):
            return window
        scorer = getattr(scorer, "scorer", None)
    return None


def _name(scorer: Any) -> str:
    channels = getattr(scorer, "names", None)
    kind = type(scorer).__name__
    return f"{kind} ({', '.join(channels)})" if isinstance(channels, tuple) else kind
