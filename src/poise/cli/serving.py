"""`poise serve-scorer`: a saved score model as a service."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poise.http_client import LOOPBACK
from poise.text import say

TOKEN_VARIABLE = "POISE_SCORER_TOKEN"


def serve_scorer(folder: Path, *, host: str, port: int) -> None:
    """Load the score model and answer until Ctrl-C; the token is that of the environment, or a new one."""
    from poise.feedback.serving import ScorerServer
    from poise.models.heads import load_score_model

    given = os.environ.get(TOKEN_VARIABLE, "")
    token = given or secrets.token_urlsafe(24)
    with _stoppable():
        model = load_score_model(folder)
        channels = {channel.name: channel.higher_is_worse for channel in model.channels}
        source = folder.resolve().name
        server = ScorerServer(
            model, channels, token=token, host=host, port=port, source=source, sees_all=model.sees_all
        )
        say(f"Scoring {', '.join(channels)} at {server.url}")
        say(f"Token: {f'the one in {TOKEN_VARIABLE}' if given else token}")
        if host not in LOOPBACK:
            say("Other machines can reach this server, without encryption: use TLS or a tunnel", error=True)
        server.serve_forever()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a line and a good end; the server finishes what is under way before."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say("Stopped")
    finally:
        signal.signal(signal.SIGTERM, previous)
