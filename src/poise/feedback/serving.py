"""A scorer as a service: loopback by default, never without a token, bounded in all that a client can make it do.

Requests are let in by their head alone (`poise.feedback.web`), and the rows of those that are wait in one bounded queue
(`poise.feedback.batching`). A row that cannot be scored as a whole is unscorable, and costs no other row.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import ValidationError

from poise.errors import ConfigError, DataError
from poise.feedback.batching import ScoringQueue
from poise.feedback.remote import Health, RowScores, ScoreRow
from poise.feedback.web import Web, WebLimits
from poise.http_client import check_token
from poise.text import one_line
from poise.types import Completion, Message, Prompt, Scorer, Scores

TOO_LONG = "longer than the window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(WebLimits):
    """What a server takes at a time; what is beyond is told to come again, or refused with the reason."""

    rows_of_a_batch: int = 64
    rows_waiting: int = 4096
    turns: int = 256  # of one conversation
    characters: int = 200_000  # of one row


class ScorerServer:
    """Serves a scorer on POST /score and says on GET /health which channels it has.

    channels  the scorer's, with whether higher is worse
    token     what clients send as `Authorization: Bearer TOKEN`; /health, which tells nothing secret, needs none
    port      0 takes a free one; `url` says which
    sees_all  whether the scorer sees all of a prompt and a response; a row of which it does not is unscorable
    limits    on size, time and number of whatever clients send

    What passes is not encrypted: between machines, let a tunnel or a proxy with TLS do that. Raises ConfigError without
    a token, or where the port is taken.
    """

    def __init__(
        self,
        scorer: Scorer,
        channels: Mapping[str, bool],
        *,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        source: str = "",
        sees_all: Callable[[Prompt, str], bool] = lambda prompt, response: True,
        limits: Limits | None = None,
    ):
        if not token:
            raise ConfigError("a scorer needs a token: otherwise anyone who can reach the port could use it")
        check_token(token)
        self.scorer, self.sees_all, self.limits = scorer, sees_all, limits or Limits()
        health = Health(status="ok", source=source or type(scorer).__name__, channels=dict(channels))
        self.socket = _listening(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.socket.getsockname()[1]}"
        self.queue = ScoringQueue(self.score, batch_rows=self.limits.rows_of_a_batch, max_rows=self.limits.rows_waiting)
        self.web = Web(health, self.queue, token=token, limits=self.limits)

    def serve_forever(self) -> None:
        """Answer until the process is told to stop; what is under way is finished first."""
        try:
            self.web.run(self.socket)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the port and of all rows that wait."""
        self.queue.close()
        self.socket.close()

    def __enter__(self) -> ScorerServer:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.web.stop()
        self._thread.join()

    def score(self, rows: Sequence[ScoreRow]) -> list[RowScores]:
        """The scores of rows, one each and in their order."""
        found: list[RowScores | None] = [None] * len(rows)
        prompts, completions, places = [], [], []
        for place, row in enumerate(rows):
            prompt = self._prompt(row)
            if isinstance(prompt, RowScores):
                found[place] = prompt
                continue
            prompts.append(prompt)
            completions.append(Completion(prompt_id=prompt.id, text=row.response))
            places.append(place)
        scores = self.scorer.score(prompts, completions) if prompts else []
        for place, each in zip(places, scores, strict=True):
            found[place] = _row_scores(each)
        return [row for row in found if row is not None]

    def _prompt(self, row: ScoreRow) -> Prompt | RowScores:
        """The prompt of a row, or why the row cannot be scored."""
        if len(row.messages) > self.limits.turns:
            return _unscorable(f"{TOO_LONG}: {len(row.messages)} turns, at most {self.limits.turns} are allowed")
        length = len(row.response) + sum(len(turn.role) + len(turn.content) for turn in row.messages)
        length += sum(len(str(turn.tool_calls)) for turn in row.messages if turn.tool_calls) + len(str(row.tools or ""))
        if length > self.limits.characters:
            return _unscorable(f"{TOO_LONG}: {length} characters, at most {self.limits.characters} are allowed")
        try:
            said = [cast("Message", turn.model_dump(exclude_none=True)) for turn in row.messages]
            prompt = Prompt.of(said).with_tools(row.tools) if row.tools else Prompt.of(said)
            return prompt if self.sees_all(prompt, row.response) else _unscorable(TOO_LONG)
        except DataError as error:  # such as turns that the model's template refuses
            return _unscorable(str(error))


def _unscorable(reason: str) -> RowScores:
    return RowScores(values={}, unscorable=one_line(reason))


def _row_scores(scores: Scores) -> RowScores:
    """Scores as they are sent; what no client takes for a score is unscorable here."""
    if scores.unscorable:
        return _unscorable(scores.unscorable)
    try:
        return RowScores(values=dict(scores.values), explanation=scores.explanation)
    except ValidationError as error:
        return _unscorable(f"the scorer returned an invalid score ({error.errors(include_url=False)[0]['msg']})")


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ConfigError(
            f"cannot listen on {host}:{port}: a port must be at least 0 and below 65536. Choose another --port"
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port or --host"
        ) from error
