"""Rows of many requests, merged into batches that one thread scores: nobody holds a lock, nobody waits for the longest.

Each batch takes rows of all requests that wait, in turn, so that a small one is not held up by a large one. What may
wait is bounded; a row on which the scorer fails is found by halving its batch, and costs no other.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from poise.errors import PoiseError
from poise.feedback.remote import RowScores, ScoreRow
from poise.text import one_line, say

_LONGEST_WAIT = 60  # seconds that anybody is told to wait


class QueueFull(Exception):
    """No room for these rows now; there should be after `seconds`."""

    def __init__(self, seconds: int):
        super().__init__(f"full, for about {seconds} s")
        self.seconds = seconds


@dataclass(slots=True, kw_only=True)
class _Job:
    """The rows of one request, and what is known of them."""

    rows: Sequence[ScoreRow]
    found: list[RowScores] = field(default_factory=list)  # in the order of the rows
    taken: int = 0
    answer: Future[list[RowScores]] = field(default_factory=Future)

    @property
    def left(self) -> int:
        return 0 if self.answer.cancelled() else len(self.rows) - self.taken


class ScoringQueue:
    """Scores rows in batches of at most `batch_rows`; at most `max_rows` wait, but for a request that comes alone.

    score  rows to scores, one each and in their order; called by one thread at a time
    """

    def __init__(
        self, score: Callable[[Sequence[ScoreRow]], list[RowScores]], *, batch_rows: int = 64, max_rows: int = 4096
    ):
        self.score, self.batch_rows, self.max_rows = score, batch_rows, max_rows
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed, self._rate = False, float(batch_rows)  # rows a second
        self._worker = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._worker.start()

    def put(self, rows: Sequence[ScoreRow]) -> Future[list[RowScores]]:
        """The scores of rows when they are there; to cancel it gives up those that still wait. Raises QueueFull."""
        job = _Job(rows=rows)
        if not rows:
            job.answer.set_result([])
            return job.answer
        with self._changed:
            waiting = sum(each.left for each in self._jobs)
            if self._closed or (waiting and waiting + len(rows) > self.max_rows):
                raise QueueFull(min(_LONGEST_WAIT, math.ceil((waiting + len(rows)) / self._rate)))
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Take no more, and give up what still waits; a batch under way is left to itself."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.answer.cancel()
            self._jobs.clear()
            self._changed.notify()

    def _work(self) -> None:
        while parts := self._next_batch():
            rows = [row for job, begin, end in parts for row in job.rows[begin:end]]
            started = time.monotonic()
            found = self._scored(rows)
            self._rate = 0.5 * self._rate + 0.5 * len(rows) / max(1e-3, time.monotonic() - started)
            for job, begin, end in parts:
                job.found += found[: end - begin]
                found = found[end - begin :]
                if len(job.found) == len(job.rows):
                    with suppress(InvalidStateError):  # whoever asked has left
                        job.answer.set_result(job.found)

    def _next_batch(self) -> list[tuple[_Job, int, int]]:
        """Which rows of which jobs come next, once there are any; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._jobs)
            parts, room = [], self.batch_rows
            share = max(1, room // max(1, len(self._jobs)))
            while room and self._jobs:
                job = self._jobs.popleft()
                if count := min(share, room, job.left):
                    parts.append((job, job.taken, job.taken + count))
                    job.taken, room = job.taken + count, room - count
                if job.left:
                    self._jobs.append(job)
            return parts or ([] if self._closed else self._next_batch())

    def _scored(self, rows: Sequence[ScoreRow]) -> list[RowScores]:
        """The scores of rows; those on which the scorer fails are unscorable."""
        try:
            found = self.score(rows)
            if len(found) != len(rows):
                raise ValueError(f"{len(found)} scores for {len(rows)} rows")
            return found
        except Exception as error:
            if len(rows) > 1:
                half = len(rows) // 2
                return self._scored(rows[:half]) + self._scored(rows[half:])
            say(f"scoring failed: {one_line(repr(error))}", error=True)
            reason = one_line(str(error)) if isinstance(error, PoiseError) else type(error).__name__
            return [RowScores(values={}, unscorable=f"the scorer failed: {reason}")]
