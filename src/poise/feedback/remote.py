"""Scores from another process or machine: asked for in batches over HTTP, with a token, and checked before use.

What is wrong with one row costs that row and no other: it is unscorable, with the reason. The records below are all
that passes between `RemoteScorer` and `ScorerServer` (`poise serve-scorer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from poise.errors import DataError, FeedbackError
from poise.http_client import Endpoint, Request, RequestFailed, request_json, request_many
from poise.messages import text_only
from poise.text import one_line, visible
from poise.types import Completion, Prompt, Scores

MAX_ROWS = 1024  # of one request
_LARGEST = 3e38  # of a score: what 32 bits can hold
_LONGEST_TEXT = 20_000  # of an explanation, in characters
_BUSY = frozenset({408, 425, 429, 502, 503, 504})  # what says nothing of the rows that were sent


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(_Record):
    """One message of a conversation."""

    role: str
    content: str
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ScoreRow(_Record):
    """A response, and the conversation that it answers."""

    messages: list[Turn] = Field(min_length=1)
    response: str
    tools: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _awaits_an_answer(self) -> ScoreRow:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must be the user's")
        return self


class ScoreRequest(_Record):
    """The body of POST /score."""

    rows: list[ScoreRow] = Field(max_length=MAX_ROWS)


class RowScores(_Record):
    """The scores of one row by channel; `unscorable` says why there are none."""

    values: dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-_LARGEST, le=_LARGEST)]]
    unscorable: str = ""
    explanation: str = ""


class ScoreAnswer(_Record):
    """What POST /score returns: one record per row, in their order."""

    scores: list[RowScores]


class Health(_Record):
    """What GET /health returns: who scores, and the channels with whether higher is worse."""

    status: Literal["ok"]
    source: str
    channels: dict[str, StrictBool]


class RemoteScorer:
    """A scorer behind `url`: a `poise serve-scorer`, or any server that speaks the records of this file.

    expect      channels with whether higher is worse; FeedbackError if the server says otherwise, so that a cost is
                never used upside down
    batch_size  responses per request; `concurrency` requests are under way at a time

    Rows of a request that fails for good are asked for again one by one, and those that fail then are unscorable, with
    the reason. FeedbackError if the server is not there or refuses the token, so that no request is answered.
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
        backoff_s: float = 0.5,
    ):
        self.endpoint = Endpoint(
            url=url, token=token, concurrency=concurrency, attempts=attempts, seconds=seconds, backoff_s=backoff_s
        )
        self.expect, self.batch_size = dict(expect or {}), max(1, min(batch_size, MAX_ROWS))
        self.found: Health | None = None

    def health(self) -> Health:
        """What the server says of itself, asked once and checked.

        Raises FeedbackError if the server does not answer, or has other channels or directions than expected.
        """
        if self.found is None:
            try:
                found = request_json(self.endpoint, Request(path="/health"), read=Health.model_validate)
            except RequestFailed as failure:
                raise self._refused(failure) from failure
            for name, worse in self.expect.items():
                if found.channels.get(name) != worse:
                    said = found.channels.get(name, "there is no such channel")
                    raise FeedbackError(
                        f"{self.endpoint.url} ({one_line(found.source)}): channel {name!r} should have "
                        f"higher_is_worse={worse}, the server says {said}. It has {_listed(found.channels)}"
                    )
            self.found = found
        return self.found

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Scores of completions, one each and in their order; a failed completion is not sent."""
        source = f"{one_line(self.health().source)} at {self.endpoint.url}"
        found = [self._unsent(prompt, c) for prompt, c in zip(prompts, completions, strict=True)]
        asked = [i for i, row in enumerate(found) if row is None]
        batches = [asked[begin : begin + self.batch_size] for begin in range(0, len(asked), self.batch_size)]
        self._ask(batches, prompts, completions, found)
        self._ask([[i] for i in asked if found[i] is None], prompts, completions, found, again=True)
        return [
            Scores(
                values={} if row.unscorable else row.values,
                source=source,
                explanation=visible(row.explanation[:_LONGEST_TEXT]),
                unscorable=one_line(row.unscorable),
            )
            for row in found
            if row is not None
        ]

    def _ask(
        self,
        batches: Sequence[Sequence[int]],
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        found: list[RowScores | None],
        *,
        again: bool = False,
    ) -> None:
        """Put the scores of each batch into `found`; rows of a batch that may have failed for one of them stay None."""

        def receive(index: int, answer: Any) -> None:
            batch = batches[index]
            if isinstance(answer, RequestFailed):
                if answer.is_fatal and not again:
                    raise self._refused(answer) from answer
                if not again and answer.answered and answer.status not in _BUSY:
                    return
                answer = [RowScores(values={}, unscorable=f"the scorer failed: {answer}")] * len(batch)
            if len(answer) != len(batch):
                if not again:
                    return
                reason = f"{len(answer)} scores for 1 response: expected one"
                answer = [RowScores(values={}, unscorable=reason)]
            for i, row in zip(batch, answer, strict=True):
                found[i] = row

        requests = [self._request([(prompts[i], completions[i]) for i in batch]) for batch in batches]
        request_many(self.endpoint, requests, receive, read=self._read)

    def _unsent(self, prompt: Prompt, completion: Completion) -> RowScores | None:
        """Why a row is not sent: the completion failed, or holds what no JSON text can."""
        if completion.finish == "error":
            return RowScores(values={}, unscorable=completion.error or "the completion failed")
        try:
            said = [*text_only(prompt.messages), *prompt.tools]
            json.dumps([completion.text, *said], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            return RowScores(values={}, unscorable="the text contains half a surrogate pair, which cannot be sent")
        except DataError as error:
            return RowScores(values={}, unscorable=str(error))
        return None

    def _request(self, rows: Sequence[tuple[Prompt, Completion]]) -> Request:
        sent = [
            {"messages": text_only(prompt.messages), "response": c.text}
            | ({"tools": list(prompt.tools)} if prompt.tools else {})
            for prompt, c in rows
        ]
        return Request(path="/score", body={"rows": sent})

    def _read(self, answer: Any) -> list[RowScores]:
        """The rows of an answer, each checked by itself."""
        if not isinstance(answer["scores"], list):
            raise TypeError(f"scores are not a list but {answer['scores']!r:.80}")
        return [self._row(row) for row in answer["scores"]]

    def _row(self, content: Any) -> RowScores:
        channels = self.health().channels.keys()
        try:
            row = RowScores.model_validate(content)
        except (ValidationError, RecursionError) as error:
            return RowScores(values={}, unscorable=f"a score that cannot be read ({_first_error(error)})")
        if row.values.keys() != channels and not row.unscorable:
            reason = f"scores in the channels {_listed(row.values)}; expected {_listed(channels)}"
            return RowScores(values={}, unscorable=reason)
        return row

    def _refused(self, failure: RequestFailed) -> FeedbackError:
        if failure.unreachable:
            advice = "Start it with `poise serve-scorer MODEL_FOLDER`, or correct the address"
        elif failure.status in (401, 403):
            advice = "Give the token that the server was started with"
        else:
            advice = "Check the address: it must be that of a `poise serve-scorer`, without a path"
        return FeedbackError(f"the scorer at {self.endpoint.url}: {failure}. {advice}")


def _listed(names: Any) -> str:
    return one_line(", ".join(names)) or "none"


def _first_error(error: Exception) -> str:
    """What is wrong with a record, and where."""
    if not isinstance(error, ValidationError):
        return type(error).__name__
    first = error.errors(include_url=False, include_input=False)[0]
    return one_line(f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}")
