"""A scorer as a service: loopback by default, never without a token, every request checked against the records."""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import ValidationError

from poise.errors import ConfigError, PoiseError
from poise.feedback.remote import Health, RowScores, ScoreAnswer, ScoreRequest, ScoreRow
from poise.types import Completion, Prompt, Scorer

_MAX_BYTES = 64 * 2**20  # of one request
_SECONDS_TO_SEND = 60.0  # that a client may take for its request


class ScorerServer:
    """Serves a scorer on POST /score and says on GET /health which channels it has.

    channels  the scorer's, with whether higher is worse
    token     what clients send as `Authorization: Bearer TOKEN`; /health, which tells nothing secret, needs none
    port      0 takes a free one; `url` says which

    Requests are scored one after another, a batch at a time. What passes is not encrypted: between machines, let a
    tunnel or a proxy with TLS do that. Raises ConfigError without a token, or where the port is taken.
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
    ):
        if not token:
            raise ConfigError("a scorer is served with a token: whoever can reach the port could use it otherwise")
        self.scorer, self.token, self.lock = scorer, token, threading.Lock()
        self.health = Health(status="ok", source=source or type(scorer).__name__, channels=dict(channels))
        try:
            self.http = _Http((host, port), _handler(self))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port") from error
        self.url = f"http://{host}:{self.http.server_address[1]}"

    def serve_forever(self) -> None:
        """Answer until the process is stopped."""
        self.http.serve_forever(poll_interval=0.1)

    def __enter__(self) -> ScorerServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def score(self, rows: Sequence[ScoreRow]) -> ScoreAnswer:
        """The scores of rows, one each and in their order."""
        prompts = [Prompt.of([{"role": turn.role, "content": turn.content} for turn in row.messages]) for row in rows]
        completions = [Completion(prompt_id=p.id, text=r.response) for p, r in zip(prompts, rows, strict=True)]
        with self.lock:
            scores = self.scorer.score(prompts, completions) if rows else []
        return ScoreAnswer(
            scores=[
                RowScores(values=dict(s.values), unscorable=s.unscorable, explanation=s.explanation) for s in scores
            ]
        )

    def answer(self, path: str, authorization: str, body: bytes | None) -> tuple[int, Any]:
        """Status and JSON of the answer to a request; `body` is None for GET."""
        if path == "/health" and body is None:
            return 200, self.health.model_dump()
        if path != "/score" or body is None:
            return 404, {"error": "there are GET /health and POST /score"}
        if not hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode()):
            return 401, {"error": "wrong or no token: send the header Authorization: Bearer TOKEN"}
        try:
            rows = ScoreRequest.model_validate_json(body).rows
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            return 422, {"error": f"{where}: {first['msg']}"}
        try:
            return 200, self.score(rows).model_dump()
        except PoiseError as error:  # such as a prompt without a user's turn
            return 422, {"error": str(error)}


class _Http(ThreadingHTTPServer):
    daemon_threads = True


def _handler(server: ScorerServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = "HTTP/1.1", _SECONDS_TO_SEND

        def do_GET(self) -> None:
            self._reply(*self._answered(None))

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > _MAX_BYTES:
                self.close_connection = True
                status = 413 if length.isdecimal() else 411
                self._reply(status, {"error": f"a request says its length, at most {_MAX_BYTES >> 20} MiB"})
                return
            self._reply(*self._answered(self.rfile.read(int(length))))

        def _answered(self, body: bytes | None) -> tuple[int, Any]:
            try:
                return server.answer(self.path, self.headers.get("authorization", ""), body)
            except Exception as error:
                self.log_error("scoring failed: %r", error)
                return 500, {"error": f"scoring failed: {type(error).__name__}"}

        def _reply(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_request(self, *_: Any) -> None:
            """Say nothing of requests that went well."""

    return Handler
