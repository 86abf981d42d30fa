"""Scores from another process or machine: asked for in batches over HTTP, with a token, and checked before use.

The records below are all that passes between `RemoteScorer` and `ScorerServer` (`poise serve-scorer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from poise.errors import FeedbackError
from poise.http_client import Endpoint, Request, RequestFailed, ask, exchange
from poise.types import Completion, Prompt, Scores

MAX_ROWS = 1024  # of one request


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(_Record):
    """One message of a conversation."""

    role: str
    content: str


class ScoreRow(_Record):
    """A response, and the conversation that it answers."""

    messages: list[Turn] = Field(min_length=1)
    response: str


class ScoreRequest(_Record):
    """The body of POST /score."""

    rows: list[ScoreRow] = Field(max_length=MAX_ROWS)


class RowScores(_Record):
    """The scores of one row by channel; `unscorable` says why there are none."""

    values: dict[str, FiniteFloat]
    unscorable: str = ""
    explanation: str = ""


class ScoreAnswer(_Record):
    """What POST /score returns: one record per row, in their order."""

    scores: list[RowScores]


class Health(_Record):
    """What GET /health returns: who scores, and the channels with whether higher is worse."""

    status: Literal["ok"]
    source: str
    channels: dict[str, bool]


class RemoteScorer:
    """A scorer behind `url`: a `poise serve-scorer`, or any server that speaks the records of this file.

    expect      channels with whether higher is worse; FeedbackError if the server says otherwise, so that a cost is
                never used upside down
    batch_size  responses per request; `concurrency` requests are under way at a time

    Responses of a request that fails for good are unscorable, with the reason; FeedbackError if the server is not there
    or refuses the token.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        expect: Mapping[str, bool] | None = None,
        batch_size: int = 32,
        concurrency: int = 4,
        attempts: int = 5,
        seconds: float = 300.0,
        pause: float = 0.5,
    ):
        self.endpoint = Endpoint(
            url=url, token=token, concurrency=concurrency, attempts=attempts, seconds=seconds, pause=pause
        )
        self.expect, self.batch_size = dict(expect or {}), max(1, min(batch_size, MAX_ROWS))
        self.found: Health | None = None

    def health(self) -> Health:
        """What the server says of itself, asked once and checked."""
        if self.found is None:
            try:
                found = ask(self.endpoint, Request(path="/health"), read=Health.model_validate)
            except RequestFailed as failure:
                raise self._refused(failure) from failure
            for name, worse in self.expect.items():
                if found.channels.get(name) != worse:
                    said = found.channels.get(name, "there is no such channel")
                    raise FeedbackError(
                        f"{self.endpoint.url} ({found.source}): channel {name!r} should have higher_is_worse={worse}, "
                        f"the server says {said}. It has {_listed(found.channels)}"
                    )
            self.found = found
        return self.found

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Scores of completions, one each and in their order; a failed completion is not sent."""
        source = f"{self.health().source} at {self.endpoint.url}"
        scores = [Scores(values={}, source=source, unscorable=c.error or "the completion failed") for c in completions]
        asked = [i for i, completion in enumerate(completions) if completion.finish != "error"]
        batches = [asked[begin : begin + self.batch_size] for begin in range(0, len(asked), self.batch_size)]

        def receive(index: int, answer: Any) -> None:
            if isinstance(answer, RequestFailed):
                if answer.hopeless:
                    raise self._refused(answer) from answer
                answer = [RowScores(values={}, unscorable=f"the scorer failed: {answer}")] * len(batches[index])
            if len(answer) != len(batches[index]):
                raise FeedbackError(
                    f"{self.endpoint.url} returned {len(answer)} scores for {len(batches[index])} responses: one each "
                    "is due, in their order"
                )
            for i, row in zip(batches[index], answer, strict=True):
                scores[i] = Scores(
                    values=row.values, source=source, explanation=row.explanation, unscorable=row.unscorable
                )

        requests = [self._request([(prompts[i], completions[i]) for i in batch]) for batch in batches]
        exchange(self.endpoint, requests, receive, read=self._read)
        return scores

    def _request(self, rows: Sequence[tuple[Prompt, Completion]]) -> Request:
        sent = [{"messages": [dict(m) for m in prompt.messages], "response": c.text} for prompt, c in rows]
        return Request(path="/score", body={"rows": sent})

    def _read(self, answer: Any) -> list[RowScores]:
        rows = ScoreAnswer.model_validate(answer).scores
        channels = self.health().channels.keys()
        for row in rows:
            if row.values.keys() != channels and not row.unscorable:
                raise ValueError(f"scores in the channels {_listed(row.values)} where {_listed(channels)} are due")
        return rows

    def _refused(self, failure: RequestFailed) -> FeedbackError:
        if failure.unreachable:
            advice = "Start it with `poise serve-scorer MODEL_FOLDER`, or give its right address"
        elif failure.status in (401, 403):
            advice = "Give the token that the server was started with"
        else:
            advice = "Check the address: it is that of a `poise serve-scorer`, without a path"
        return FeedbackError(f"the scorer at {self.endpoint.url}: {failure}. {advice}")


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
