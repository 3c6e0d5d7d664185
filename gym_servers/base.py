"""What every server has: a bearer token, body and time limits, one error envelope, health, metrics.

One plain ASGI layer around a Starlette (or FastAPI) app: a verdict may cost half a millisecond of CPU, and stacked middlewares
alone cost that. A request ends at the time limit, or sooner where its `X-Deadline-Seconds` says so.
Every error is `{"error": {"type", "message", "request_id"}}`. While draining (draining.py), new requests get 503
and those in flight finish.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gym_servers import deadline
from gym_servers.client import raise_open_file_limit
from gym_servers.protocol import FailureError, OmnigymError, RowError
from gym_servers.tally import Tally
from gym_servers.tools import ToolRefused

log = logging.getLogger("omnigym.server")
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
RETRY_AFTER_SECONDS = "1"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
READY_SECONDS = 5.0
"""For the check behind /readyz."""
BACKLOG = 4096
"""Connections that wait to be accepted: all rollouts of a step may connect at once. The kernel caps it (somaxconn), and uvicorn must be
told too, since it listens again."""


class ServerSettings(BaseModel):
    """Limits of a server. token None means no authentication, which is allowed on loopback only."""

    model_config = ConfigDict(extra="forbid")
    token: str | None = None
    max_body_bytes: int = 16 << 20
    request_seconds: float = 600.0


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(
        orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), status, headers=headers, media_type="application/json"
    )


def problem(status: int, kind: str, message: str, request_id: str, **fields: Any) -> Response:
    """The one error envelope."""
    headers = {"X-Request-Id": request_id, **({"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else {})}
    return answer({"error": {"type": kind, "message": message, "request_id": request_id}, **fields}, status, headers)


class TooLarge(Exception):
    """A request body over the limit."""


class Guard:
    """The ASGI layer: token, limits, request id, metrics, drain."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self.draining = False
        self.in_flight = 0
        self.registry = CollectorRegistry()
        self.tally = Tally()
        self.registry.register(self.tally)
        self._too_large = f"the body is larger than {settings.max_body_bytes} bytes"
        self._expected = f"Bearer {settings.token}".encode() if settings.token is not None else None

    def share(self, tally: Tally) -> None:
        """Count in `tally`, which this server's other processes share."""
        self.registry.unregister(self.tally)
        self.tally = tally
        self.registry.register(tally)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")[:64] or secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        refusal = self._refusal(scope["path"], headers, request_id)
        seconds = self.settings.request_seconds
        try:
            seconds = deadline.seconds_of(headers.get(b"x-deadline-seconds"), seconds)
        except OmnigymError as error:
            refusal = refusal or problem(400, "invalid_request", str(error), request_id)
        if refusal is not None:
            self.tally.refused(refusal.status_code)
            await refusal(scope, receive, send)
            return
        status = 500
        received = 0
        started = ended = False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.settings.max_body_bytes:
                raise TooLarge(self._too_large)
            return message

        async def watched(message: Message) -> None:
            nonlocal status, started, ended
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                ended = True
            await send(message)

        began = time.perf_counter()
        self.in_flight += 1
        token = deadline.enter(deadline.after(seconds))
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, limited, watched)
        except (TooLarge, TimeoutError) as error:
            if started:
                raise
            if isinstance(error, TooLarge):
                response = problem(413, "body_too_large", self._too_large, request_id)
            else:
                message = f"no answer within {seconds:g} s"
                response = problem(503, "timeout", message, request_id, retryable=True)
            status = response.status_code
            await response(scope, receive, send)
        except asyncio.CancelledError:
            if not self.draining or started:
                raise
            response = problem(503, "draining", "the server stopped before the answer", request_id, retryable=True)
            status = response.status_code
            await response(scope, receive, send)
        except Exception:
            # Starlette raises a bug again after its 500 is sent. It is logged, and uvicorn would close the connection, perhaps
            # under the caller's next request.
            if not ended:
                raise
        finally:
            deadline.leave(token)
            self.in_flight -= 1
            self.tally.answered(status, time.perf_counter() - began)

    def _refusal(self, path: str, headers: dict[bytes, bytes], request_id: str) -> Response | None:
        if path in OPEN_PATHS:
            return None
        if self._expected is not None and not hmac.compare_digest(_bearer(headers), self._expected):
            message = "send the header 'Authorization: Bearer <token>', or the token as the password in the URL"
            return problem(401, "unauthorized", message, request_id)
        if self.draining:
            return problem(503, "draining", "the server is stopping", request_id, retryable=True)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return problem(413, "body_too_large", self._too_large, request_id)
        return None


def _bearer(headers: dict[bytes, bytes]) -> bytes:
    """The request's authorization as a bearer token: the password of `http://user:token@host` is one too, for clients that can
    be given nothing but a URL."""
    given = headers.get(b"authorization", b"")
    if given[:6].lower() != b"basic ":
        return given
    try:
        return b"Bearer " + base64.b64decode(given[6:], validate=True).partition(b":")[2]
    except binascii.Error:
        return given


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening socket. shared: with others that are bound so (SO_REUSEPORT); the kernel spreads connections over them.
    Raises OmnigymError that names the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)  # before the address is told: who reads it may connect at once
    except OSError as error:
        sock.close()
        raise OmnigymError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0") from None
    raise_open_file_limit()
    return sock


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises RowError."""
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise RowError(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise RowError(f"the body must be a JSON object, found {type(body).__name__}")
    try:
        orjson.dumps(body)  # cheap, and refuses what no answer could repeat: orjson reads deeper than it writes
    except TypeError:
        raise RowError("the body is nested deeper than 254 levels") from None
    return body


def _identify(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _too_large(request: Request, error: Exception) -> Response:
    return problem(413, "body_too_large", str(error), _identify(request))


async def _tool_refused(request: Request, error: Exception) -> Response:
    return problem(422, "tool_refused", str(error), _identify(request))


async def _bad_row(request: Request, error: Exception) -> Response:
    return problem(422, "bad_row", str(error), _identify(request))


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, FailureError)
    failure = error.failure
    return problem(503, failure.kind, failure.message, _identify(request), retryable=failure.retryable)


async def _refused(request: Request, error: Exception) -> Response:
    return problem(400, "invalid_request", str(error), _identify(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return problem(error.status_code, kind, message, _identify(request))


async def _bug(request: Request, error: Exception) -> Response:
    log.exception("request %s failed", _identify(request))
    return problem(500, "internal_error", f"{type(error).__name__}: see the server's log", _identify(request))


def build(app: Starlette, settings: ServerSettings, check: Callable[[], Awaitable[None]] | None = None) -> Guard:
    """`app` with health, metrics and the error envelope, inside its Guard. check: raises where the server is not ready."""
    guard = Guard(app, settings)
    for kind, handler in (
        (TooLarge, _too_large),
        (RowError, _bad_row),
        (ToolRefused, _tool_refused),
        (FailureError, _failed),
        (OmnigymError, _refused),
        (HTTPException, _http),
        (Exception, _bug),
    ):
        app.add_exception_handler(kind, handler)

    async def healthz(request: Request) -> Response:
        return answer({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if guard.draining:
            return answer({"status": "draining"}, 503)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await (check() if check is not None else asyncio.sleep(0))
        except Exception as error:  # whatever it is, it is the reason
            reason = (
                f"the check did not end within {READY_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
            )
            return answer({"status": "not ready", "reason": reason or type(error).__name__}, 503)
        return answer({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(guard.registry), media_type=CONTENT_TYPE_LATEST)

    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):
        app.add_route(path, endpoint)
    return guard
