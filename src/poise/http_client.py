"""JSON over HTTP, many requests at a time: a token, time-outs, and retries that wait longer each time.

Engines and scorers outside the process are asked through here. A request that fails for good is an answer too
(`RequestFailed`), so that one bad row does not end the others; who asked decides what it means.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from poise.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_SECONDS_TO_CONNECT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a service is, the token that opens it, and how patiently it is asked."""

    url: str  # what paths are appended to
    token: str = field(default="", repr=False)
    concurrency: int = 16  # requests under way at a time
    attempts: int = 5
    seconds: float = 300.0  # that one attempt may take, from its first byte to its last
    pause: float = 0.5  # seconds before the second attempt; doubled before each further one

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ConfigError(f"{self.url!r} is not the address of a server: write http://HOST:PORT or https://HOST")
        if self.concurrency < 1 or self.attempts < 1 or not self.seconds > 0 or self.pause < 0:
            raise ConfigError(
                f"concurrency={self.concurrency} and attempts={self.attempts} are at least 1, seconds={self.seconds} "
                f"is above 0 and pause={self.pause} not negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question: a path below the endpoint's url, and the JSON that is sent to it, if any."""

    path: str
    body: Mapping[str, Any] | None = None  # None: GET


class RequestFailed(Exception):
    """A request failed for good; `status` is that of the last answer, 0 if there was none."""

    def __init__(self, reason: str, *, status: int = 0, unreachable: bool = False):
        super().__init__(reason)
        self.status, self.unreachable = status, unreachable

    @property
    def hopeless(self) -> bool:
        """Whether other requests would fail as well: nobody listens, or a token or an address is wrong."""
        return self.unreachable or self.status in (401, 403, 404)


def exchange(
    endpoint: Endpoint,
    requests: Sequence[Request],
    receive: Callable[[int, Any], None],
    *,
    read: Callable[[Any], Any] = lambda answer: answer,
) -> None:
    """Ask all requests and hand over each answer when it comes: `receive(index, answer)`.

    `read` turns the JSON of an answer into what is handed over; where it raises ValueError, KeyError, TypeError or
    IndexError the answer is broken, and the request is tried again. A request that failed for good is handed over as
    a RequestFailed. What `receive` raises ends all requests under way.
    """
    if requests:
        _run(_exchange(endpoint, requests, receive, read))


def ask(endpoint: Endpoint, request: Request, *, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
    """The answer to one request; raises RequestFailed."""
    found: list[Any] = []
    exchange(endpoint, [request], lambda _, answer: found.append(answer), read=read)
    if isinstance(found[0], RequestFailed):
        raise found[0]
    return found[0]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, work).result()


async def _exchange(
    endpoint: Endpoint, requests: Sequence[Request], receive: Callable[[int, Any], None], read: Callable[[Any], Any]
) -> None:
    waiting = iter(enumerate(requests))

    async def work(client: Any) -> None:
        for index, request in waiting:  # shared: each worker takes the next
            try:
                answer = await _ask(client, endpoint, request, read)
            except RequestFailed as failure:
                answer = failure
            receive(index, answer)

    failure: BaseException | None = None
    try:
        async with _client(endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(min(endpoint.concurrency, len(requests))):
                group.create_task(work(client))
    except BaseExceptionGroup as several:
        failure = several.exceptions[0]
    if failure is not None:
        raise failure


def _client(endpoint: Endpoint) -> Any:
    httpx = _httpx()
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    return httpx.AsyncClient(
        headers=headers,
        timeout=httpx.Timeout(None, connect=min(_SECONDS_TO_CONNECT, endpoint.seconds)),
        limits=httpx.Limits(max_connections=endpoint.concurrency),
        trust_env=urlsplit(endpoint.url).hostname not in LOOPBACK,  # no proxy on the way to this machine
    )


async def _ask(client: Any, endpoint: Endpoint, request: Request, read: Callable[[Any], Any]) -> Any:
    httpx, wait = _httpx(), 0.0
    failure = RequestFailed("never asked")
    for attempt in range(endpoint.attempts):
        await asyncio.sleep(wait)
        wait = min(_LONGEST_WAIT, endpoint.pause * 2**attempt) * random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(endpoint.seconds):
                method, url = "GET" if request.body is None else "POST", endpoint.url.rstrip("/") + request.path
                response = await client.request(method, url, json=request.body)
            if response.is_success:
                return read(_content(response))
            failure = RequestFailed(f"{response.status_code} {_reason(response)}", status=response.status_code)
            wait = max(wait, _retry_after(response))
        except TimeoutError:
            failure = RequestFailed(f"no answer within {endpoint.seconds:g} s")
        except httpx.TransportError as error:
            unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            what = "nobody answers" if unreachable else "the connection broke"
            failure = RequestFailed(f"{what} ({error or type(error).__name__})", unreachable=unreachable)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            failure = RequestFailed(f"an answer that cannot be read ({type(error).__name__}: {str(error)[:200]})")
        if failure.status and failure.status not in _WORTH_A_RETRY:
            break
    raise failure


def _content(response: Any) -> Any:
    """The JSON of an answer; its text where the server does not say that it is JSON and it is none."""
    try:
        return response.json()
    except ValueError:
        if "json" in response.headers.get("content-type", ""):
            raise
        return response.text


def _reason(response: Any) -> str:
    """What the server says is wrong, in the forms that servers say it in."""
    try:
        found = response.json()
        for name in ("error", "detail", "message"):
            found = found.get(name, found) if isinstance(found, dict) else found
        return str(found)[:300]
    except ValueError:
        return (response.text.strip() or response.reason_phrase)[:300]


def _retry_after(response: Any) -> float:
    """Seconds that the server asks to wait."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", 0))))
    except ValueError:  # a date
        return 0.0


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ConfigError("servers are asked through the package httpx2: pip install 'poise[serve]'") from error
    return httpx2
