"""The scorer's server on the wire, by FastAPI and uvicorn: who is let in, what is read of them and for how long.

A request is judged by its head: token, framing and size, in this order, before a byte of its body is read. One that is
refused is told why and hung up on. Only a body of a stated length is read, so that no two servers on the way can differ
about where it ends.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import resource
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from poise.errors import ConfigError
from poise.feedback.batching import QueueFull, ScoringQueue
from poise.feedback.remote import Health, ScoreAnswer, ScoreRequest
from poise.text import one_line, say

_LINGER = 2.0  # seconds in which whoever is refused may finish sending, so as to read the reason
_HEAD_BYTES = 32 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class WebLimits:
    """How much is read, from how many and for how long."""

    connections: int = 512
    bytes_of_a_request: int = 16 * 2**20
    bytes_under_way: int = 128 * 2**20  # of the bodies that are read or parsed at a time
    seconds_for_the_head: float = 10.0
    seconds_for_the_body: float = 60.0
    seconds_to_stop: int = 30  # for what is under way when the server is told to stop


class _Refused(Exception):
    """A request that is answered without being served; `seconds` says when to come again."""

    def __init__(self, status: int, reason: str, *, seconds: float | None = None):
        super().__init__(reason)
        self.status, self.seconds = status, seconds

    @property
    def headers(self) -> dict[str, str]:
        """What a client is told beside the reason."""
        again = {} if self.seconds is None else {"Retry-After": str(max(1, math.ceil(self.seconds)))}
        unknown = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        unread = {"Connection": "close"} if self.status == 408 else {}
        return {"Content-Type": "application/json"} | again | unknown | unread

    @property
    def last_headers(self) -> dict[str, str]:
        """The same of an answer after which the connection is closed."""
        return self.headers | {"Content-Length": str(len(self.content)), "Connection": "close"}

    @property
    def content(self) -> bytes:
        """The reason, as JSON."""
        return json.dumps({"error": str(self)}).encode()


class Web:
    """An HTTP server before a queue of rows to score."""

    def __init__(self, health: Health, queue: ScoringQueue, *, token: str, limits: WebLimits):
        self.health, self.queue, self.limits = health, queue, limits
        self.authorization = f"Bearer {token}".encode()
        self.bytes_under_way = 0
        self.server = self._server()

    def run(self, listening: socket.socket) -> None:
        """Serve until stopped, in the main thread by SIGINT or SIGTERM as well."""
        self.server.run(sockets=[listening])

    def stop(self) -> None:
        """Take no more requests, finish those under way and let `run` return."""
        self.server.should_exit = True

    def _server(self) -> Any:
        try:
            import fastapi
            import uvicorn
            from uvicorn.protocols.http.h11_impl import H11Protocol
        except ImportError as error:
            raise ConfigError("serving a scorer needs fastapi and uvicorn: pip install 'poise[serve]'") from error
        app = fastapi.FastAPI(openapi_url=None)
        app.add_route("/health", _answered(self._health), methods=["GET"])
        app.add_route("/score", _answered(self._score), methods=["POST"])
        config = uvicorn.Config(
            self._guarded(app),
            http=_bounded(H11Protocol, self.limits),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=self.limits.seconds_to_stop,
            h11_max_incomplete_event_size=_HEAD_BYTES,
        )
        return uvicorn.Server(config)

    def _guarded(self, app: Any) -> Any:
        """The app, behind a look at the head of each request."""

        async def guard(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
            try:
                length = self._length_of(scope)
            except _Refused as refused:
                await _refuse(refused, receive, send)
                return
            self.bytes_under_way += length
            try:
                await app(scope, receive, send)
            finally:
                self.bytes_under_way -= length

        return guard

    def _length_of(self, scope: Mapping[str, Any]) -> int:
        """The length of the body that a request may send; raises _Refused."""
        heads: dict[bytes, bytes] = dict(scope["headers"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEAD_BYTES:
            raise _Refused(431, f"the headers of a request may have at most {_HEAD_BYTES >> 10} KiB")
        if b"transfer-encoding" in heads:
            both = b"content-length" in heads
            raise _Refused(400 if both else 411, "a request must give its length in Content-Length only")
        asked = (scope["method"], scope["path"])
        if asked == ("GET", "/health"):
            if int(heads.get(b"content-length", b"0")):
                raise _Refused(413, "GET /health must have no body")
            return 0
        if not hmac.compare_digest(heads.get(b"authorization", b""), self.authorization):
            raise _Refused(401, "wrong or no token: send the header Authorization: Bearer TOKEN")
        if asked != ("POST", "/score"):
            raise _Refused(404, "the endpoints are GET /health and POST /score")
        return self._length_of_rows(heads)

    def _length_of_rows(self, heads: Mapping[bytes, bytes]) -> int:
        if heads.get(b"content-encoding", b"identity") != b"identity":
            raise _Refused(415, "send the body without Content-Encoding")
        if b"content-length" not in heads:
            raise _Refused(411, "a request must give its length in Content-Length")
        length, most = int(heads[b"content-length"]), self.limits.bytes_of_a_request
        if length > most:
            raise _Refused(413, f"a request may have at most {most / 2**20:g} MiB: send fewer rows at a time")
        if self.bytes_under_way and self.bytes_under_way + length > self.limits.bytes_under_way:
            raise _Refused(503, "busy with other requests", seconds=1)
        return length

    async def _health(self, request: Any) -> Any:
        return self.health.model_dump()

    async def _score(self, request: Any) -> Any:
        rows = await asyncio.to_thread(_parsed, await self._body(request))
        try:
            future = self.queue.put(rows)
        except QueueFull as full:
            raise _Refused(503, "too many rows are waiting", seconds=full.seconds) from full
        leaving = asyncio.ensure_future(request.receive())  # after the body, all that comes is that the client leaves
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Refused(400, "the client disconnected")
            return ScoreAnswer(scores=answer.result()).model_dump()
        except asyncio.CancelledError as error:
            raise _Refused(503, "the server is stopping", seconds=10) from error
        finally:
            answer.cancel()
            leaving.cancel()

    async def _body(self, request: Any) -> bytes:
        """The body, while it comes in time; raises _Refused."""
        seconds, parts = self.limits.seconds_for_the_body, []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "the client disconnected")
                    parts.append(message["body"])
                    if not message["more_body"]:
                        return b"".join(parts)
        except TimeoutError as error:
            raise _Refused(408, f"the body did not arrive within {seconds:g} s") from error


def _parsed(body: bytes) -> Any:
    try:
        return ScoreRequest.model_validate_json(body).rows
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise _Refused(422, one_line(f"{where}: {first['msg']}")) from error


def _answered(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A handler whose answers are JSON; where it fails, what failed stays here."""

    async def answered(request: Any) -> Any:
        from starlette.responses import Response

        try:
            content = json.dumps(await handler(request)).encode()
            return Response(content, media_type="application/json")
        except _Refused as found:
            refused = found
        except Exception as error:
            say(f"answering failed: {one_line(repr(error))}", error=True)
            refused = _Refused(500, "the server failed")
        return Response(refused.content, refused.status, refused.headers)

    return answered


async def _refuse(refused: _Refused, receive: Any, send: Any) -> None:
    """Tell why, then let the client finish what it sends, unread and not for long, lest it never hear the reason."""
    raw = [(name.lower().encode(), value.encode()) for name, value in refused.last_headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": refused.content, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Bounded:
    """Goes before uvicorn's protocol: bounds the connections, and the time that a head and an unread answer take."""

    limits: WebLimits
    most: int
    connections: Any
    transport: Any
    loop: Any
    cycle: Any
    surplus = deaf = False
    deadline: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.surplus = len(self.connections) > self.most
        if len(self.connections) > 2 * self.most:
            transport.abort()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self.surplus:
            self._turn_away(_Refused(503, "too many connections", seconds=1))
        if self.deaf:
            return
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self.transport.is_closing():  # an answer that nobody reads is not kept for ever
            self.loop.call_later(self.limits.seconds_for_the_body, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # type: ignore[misc]
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)  # type: ignore[misc]

    def _expect_head(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.limits.seconds_for_the_head, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so, whatever else it may be."""
        self._turn_away(_Refused(400, msg))

    def _turn_away(self, refused: _Refused) -> None:
        """Tell why, hear no more of it, and hang up when it has had the time to read that."""
        if not self.deaf:
            self.deaf = True
            self._stop_waiting()
            self.transport.write(_spelled(refused))
            self.loop.call_later(_LINGER / 4, self.transport.close)


def _spelled(refused: _Refused) -> bytes:
    """A refusal as it goes over the wire, where no app has seen the request."""
    lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in refused.last_headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + refused.content


def _bounded(protocol: Any, limits: WebLimits) -> Any:
    """The protocol with bounds on what each connection may take."""
    most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)
    return type("Bounded", (_Bounded, protocol), {"limits": limits, "most": most})
