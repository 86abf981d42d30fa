"""JSON over HTTP, many requests at a time: a token, time-outs, and retries that wait longer each time.

Engines and scorers outside the process are asked through here. A request that fails for good is an answer too
(`RequestFailed`), so that one bad row does not end the others; who asked decides what it means. Answers are not
trusted: they are read up to a size, and whatever cannot be read is a failure of that one request.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import random
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from poise.errors import ConfigError, PoiseError
from poise.text import HIDDEN, one_line, without_passwords

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_SECONDS_TO_CONNECT = 10.0
_MAX_REASON_BYTES = 64 * 2**10  # of an answer that says what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a service is, the token that opens it, and how patiently it is asked.

    A name and a password in the address are sent as such, and leave `url`, which is what errors and pages show.
    """

    url: str  # what paths are appended to
    token: str = field(default="", repr=False)
    concurrency: int = 16  # requests under way at a time
    attempts: int = 5
    seconds: float = 300.0  # that one attempt may take, from its first byte to its last
    backoff_s: float = 0.5  # seconds before the second attempt; doubled before each further one
    max_bytes: int = 32 * 2**20  # of one answer, decompressed
    login: tuple[str, str] | None = field(default=None, repr=False)  # what stood before the host

    def __post_init__(self) -> None:
        shown = without_passwords(self.url)
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # such as a port that is no number
            usable = False
        if not usable or parts.query or parts.fragment or not self.url.isprintable() or " " in self.url:
            raise ConfigError(f"{shown!r} is not a server address: write http://HOST:PORT or https://HOST")
        if HIDDEN in parts.netloc:
            raise ConfigError(
                f"{shown!r} has {HIDDEN} instead of its password, which is never recorded: give the full address"
            )
        check_token(self.token)
        if (
            self.concurrency < 1
            or self.attempts < 1
            or not self.seconds > 0
            or self.backoff_s < 0
            or self.max_bytes < 1
        ):
            raise ConfigError(
                f"concurrency={self.concurrency}, attempts={self.attempts} and max_bytes={self.max_bytes} are at least "
                f"1, seconds={self.seconds} is above 0 and backoff_s={self.backoff_s} not negative"
            )
        if "@" in parts.netloc:
            given, _, host = parts.netloc.rpartition("@")
            name, _, password = given.partition(":")
            object.__setattr__(self, "login", (unquote(name), unquote(password)))
            object.__setattr__(self, "url", parts._replace(netloc=host).geturl())


def check_token(token: str) -> None:
    """Raise ConfigError for a token that no header can carry, without showing it."""
    for place, character in enumerate(token, start=1):
        if not " " <= character <= "~" or (character == " " and place in (1, len(token))):
            raise ConfigError(
                f"character {place} of the token is U+{ord(character):04X}: a token consists of visible ASCII "
                "characters, without line breaks or spaces at its ends"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question: a path below the endpoint's url, and the JSON that is sent to it, if any."""

    path: str
    body: Mapping[str, Any] | None = None  # None: GET


class RequestFailed(Exception):
    """A request failed for good.

    status       that of the last answer, 0 if there was none
    answered     an answer came, even if none that can be used
    unreachable  nobody listens there
    is_fatal     other requests fail as well: nobody listens, or a token or an address is wrong, and nothing else has
                 been answered
    error        what the reader of answers raised, where that is for the user
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        answered: bool = False,
        unreachable: bool = False,
        wait: float = 0.0,
        retry: bool = True,
    ):
        super().__init__(reason)
        self.status, self.answered, self.unreachable, self.wait = status, answered or status > 0, unreachable, wait
        self.worth_a_retry = retry and (not status or status in _WORTH_A_RETRY)
        self.is_fatal = unreachable or status in (401, 403, 404)
        self.error: PoiseError | None = None


def request_many(
    endpoint: Endpoint,
    requests: Sequence[Request],
    receive: Callable[[int, Any], None],
    *,
    read: Callable[[Any], Any] = lambda answer: answer,
) -> None:
    """Ask all requests and hand over each answer when it comes: `receive(index, answer)`.

    `read` turns the JSON of an answer into what is handed over; where it raises, the answer is broken, and the request
    is tried again. A request that failed for good is handed over as a RequestFailed, and so is a PoiseError of `read`;
    it is fatal only if no other request was answered. What `receive` raises ends all requests under way.
    """
    if requests:
        _run(_exchange(endpoint, requests, receive, read))


def request_json(endpoint: Endpoint, request: Request, *, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
    """The answer to one request; raises RequestFailed."""
    found: list[Any] = []
    request_many(endpoint, [request], lambda _, answer: found.append(answer), read=read)
    if isinstance(found[0], RequestFailed):
        raise found[0].error or found[0]
    return found[0]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where a loop runs already, as in a notebook."""
    if not _inside_a_loop():
        asyncio.run(work)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, work).result()


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Hope:
    """Whether a failure that speaks of the whole server is believed: not once any request has been answered."""

    def __init__(self, workers: int):
        self.workers, self.doubts, self.lives = workers, 0, False
        self.decided = asyncio.Event()
        self.gone: RequestFailed | None = None

    def answered(self) -> None:
        self.lives = True
        self.decided.set()

    async def weigh(self, failure: RequestFailed) -> None:
        """Wait until another request is answered or none is left that could be."""
        self.doubts += 1
        if self.doubts == self.workers:
            self.decided.set()
        await self.decided.wait()
        failure.is_fatal = not self.lives
        if failure.unreachable:
            self.gone = failure  # it was there and has left: the requests that remain need not wait for it


async def _exchange(
    endpoint: Endpoint, requests: Sequence[Request], receive: Callable[[int, Any], None], read: Callable[[Any], Any]
) -> None:
    waiting = iter(enumerate(requests))
    workers = min(endpoint.concurrency, len(requests))
    hope = _Hope(workers)

    async def work(client: Any) -> None:
        for index, request in waiting:  # shared: each worker takes the next
            answer = hope.gone or await _ask(client, endpoint, request, read)
            if isinstance(answer, RequestFailed) and answer.is_fatal:
                await hope.weigh(answer)
            elif answer is not hope.gone:
                hope.answered()
            receive(index, answer)

    failure: BaseException | None = None
    try:
        async with _client(endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work(client))
    except BaseExceptionGroup as several:
        failure = several.exceptions[0]
    if failure is not None:
        raise failure


def _client(endpoint: Endpoint) -> Any:
    httpx = _httpx()
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    return httpx.AsyncClient(
        headers=headers | {"Accept-Encoding": "identity", "Content-Type": "application/json"},
        auth=None if endpoint.token else endpoint.login,
        timeout=httpx.Timeout(None, connect=min(_SECONDS_TO_CONNECT, endpoint.seconds)),
        limits=httpx.Limits(max_connections=endpoint.concurrency),
        trust_env=urlsplit(endpoint.url).hostname not in LOOPBACK,  # no proxy on the way to this machine
    )


async def _ask(client: Any, endpoint: Endpoint, request: Request, read: Callable[[Any], Any]) -> Any:
    """What `read` made of the answer, or the RequestFailed of the last attempt."""
    tenacity = _tenacity()

    def wait(state: Any) -> float:
        backoff = min(_LONGEST_WAIT, endpoint.backoff_s * 2 ** (state.attempt_number - 1)) * random.uniform(0.5, 1.0)
        return max(backoff, state.outcome.exception().wait)

    attempts = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(endpoint.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestFailed) and error.worth_a_retry),
        sleep=asyncio.sleep,
        reraise=True,
    )
    try:
        return await attempts(_attempt, client, endpoint, request, read)
    except RequestFailed as failure:
        return failure


async def _attempt(client: Any, endpoint: Endpoint, request: Request, read: Callable[[Any], Any]) -> Any:
    """One attempt; raises RequestFailed."""
    httpx, method = _httpx(), "GET" if request.body is None else "POST"
    try:
        content = None if request.body is None else json.dumps(request.body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestFailed(f"a request that cannot be written as JSON ({error})", retry=False) from error
    try:
        async with (
            asyncio.timeout(endpoint.seconds),
            client.stream(method, endpoint.url.rstrip("/") + request.path, content=content) as response,
        ):
            if not response.is_success:
                raise await _refusal(response)
            data = await _bounded(response, endpoint.max_bytes)
    except TimeoutError:
        raise RequestFailed(f"no answer within {endpoint.seconds:g} s") from None
    except httpx.TransportError as error:
        unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        what = "nobody answers" if unreachable else "the connection broke"
        raise RequestFailed(
            f"{what} ({one_line(str(error)) or type(error).__name__})", unreachable=unreachable
        ) from error
    return _read(data, response.headers.get("content-type", ""), read)


def _read(data: bytes, content_type: str, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of an answer; whatever it stumbles over is the answer's fault."""
    try:
        return read(_content(data, content_type))
    except PoiseError as error:
        failure = RequestFailed(str(error), answered=True, retry=False)
        failure.error, failure.is_fatal = error, True
        raise failure from error
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(str(error), 200)}"
        raise RequestFailed(f"an answer that cannot be read ({reason})", answered=True) from error


def _content(data: bytes, content_type: str) -> Any:
    """The JSON of an answer; its text where the server does not say that it is JSON and it is none."""
    try:
        return json.loads(data)
    except ValueError:
        if "json" in content_type:
            raise
        return data.decode(errors="replace")


async def _bounded(response: Any, limit: int) -> bytes:
    """The body of an answer, decompressed, while it stays within the limit; raises RequestFailed if it does not."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise RequestFailed(
            f"an answer that cannot be read (encoded as {one_line(encoding, 40)})", answered=True, retry=False
        )
    unpack = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    found = bytearray()
    async for part in response.aiter_raw():
        try:
            found += unpack.decompress(part, limit + 1 - len(found)) if unpack else part
        except zlib.error as error:
            raise RequestFailed(f"an answer that cannot be read ({error})", answered=True) from error
        if len(found) > limit:
            raise RequestFailed(
                f"an answer of more than {limit / 2**20:g} MiB, which was discarded", answered=True, retry=False
            )
    return bytes(found)


async def _refusal(response: Any) -> RequestFailed:
    """The failure that an answer without success stands for, with what the server says is wrong."""
    try:
        reason = _reason(await _bounded(response, _MAX_REASON_BYTES)) or response.reason_phrase
    except RequestFailed:
        reason = response.reason_phrase
    status = response.status_code
    return RequestFailed(f"{status} {one_line(reason)}", status=status, wait=_retry_after(response))


def _reason(data: bytes) -> str:
    """What the server says is wrong, in the forms that servers say it in."""
    try:
        found = json.loads(data)
        for name in ("error", "detail", "message"):
            found = found.get(name, found) if isinstance(found, dict) else found
        return str(found)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")


def _retry_after(response: Any) -> float:
    """Seconds that the server asks to wait."""
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
    return min(_LONGEST_WAIT, seconds) if seconds > 0 else 0.0  # not for NaN either


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ConfigError("requests to servers need the package httpx2: pip install 'poise[serve]'") from error
    return httpx2


def _tenacity() -> Any:
    try:
        import tenacity
    except ImportError as error:
        raise ConfigError("retries need the package tenacity: pip install 'poise[serve]'") from error
    return tenacity
