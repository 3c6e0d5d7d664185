"""One aiohttp client for calls between servers: pooled, bounded, with a deadline that travels, retried with one idempotency key.

Retried are only calls that the other side did not finish: connection errors and 503 with `retryable` (for others' servers, the
statuses given). Anything else is final.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import resource
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
import orjson

from gym_servers import deadline
from gym_servers.protocol import Failure, FailureError, FailureKind, OmnigymError, RowError

RETRY_AFTER_MOST = 60.0
OPEN_FILES = 65_536
TRANSIENT = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""Statuses of others' model servers that are worth another try."""

Answered = tuple[int, bytes, dict[str, str], float]
"""Status, body, cookies set and Retry-After (seconds; 0 where it says none) of one finished HTTP exchange."""


class Transport(Protocol):
    """Makes an exchange otherwise than over a socket (gym_servers/hosts/inprocess.py)."""

    async def __call__(self, url: str, data: bytes, headers: dict[str, str]) -> Answered:
        """POST `data`. Raises OSError where nobody listens at `url`."""
        ...


def raise_open_file_limit() -> None:
    """Let this process open up to 65,536 files, where it may: a connection is one, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class Reply:
    """A finished call: status 200, its body, and the cookies that it set."""

    body: bytes
    cookies: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises FailureError where it is none."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise FailureError(Failure(kind="connection", message=f"the reply is not JSON: {error}")) from None
        if not isinstance(value, dict):
            raise FailureError(Failure(kind="connection", message="the reply is not a JSON object"))
        return value


def without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """(`url` without user and password, the header that carries them). They go instead of a bearer token, which a server that
    has credentials of its own need not know, and never into a message."""
    if "@" not in url or (parts := urlsplit(url)).username is None:
        return url, {}
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    value = base64.b64encode(f"{user}:{password}".encode()).decode()
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), {"Authorization": f"Basic {value}"}


def _problem(url: str, status: int, body: bytes, kind: FailureKind, retried: frozenset[int]) -> Exception:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = {}
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message", "") if isinstance(error, dict) else body[:300].decode(errors="replace")
    if status == 422:
        return RowError(message)
    named = error.get("type") if isinstance(error, dict) else None
    failure = {"kind": named if named in FailureKind.__args__ else kind, "message": f"{url}: {status}: {message}"}  # type: ignore[attr-defined]
    retryable = bool(value.get("retryable", status in retried)) if isinstance(value, dict) else status >= 500
    return FailureError(Failure.model_validate({**failure, "retryable": retryable}), status)


def _retry_after(header: str) -> float:
    """Seconds in a Retry-After header; 0 for none, and for a date."""
    return min(float(header), RETRY_AFTER_MOST) if header.isdigit() else 0.0


class Client:
    """Use as `async with Client(...) as client`. concurrency bounds the open connections; 0 does not. transport: instead of sockets.

    retried: statuses that are tried again where the body does not say. wait: seconds before the first retry, doubled each time;
    after a 429 a longer Retry-After is kept, up to RETRY_AFTER_MOST. settled: awaited after a connection failed; where to try the URL
    again.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        concurrency: int = 256,
        retries: int = 4,
        transport: Transport | None = None,
        retried: frozenset[int] = frozenset({503}),
        wait: float = 0.1,
        settled: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        self.retries, self.retried, self.wait, self._settled = retries, retried, wait, settled
        self._transport = transport
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(limit=self._concurrency, keepalive_timeout=30)
        raise_open_file_limit()
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=True
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def post(
        self,
        url: str,
        body: dict[str, Any],
        *,
        seconds: float,
        kind: FailureKind = "connection",
        cookies: dict[str, str] | None = None,
        key: str | None = None,
    ) -> Reply:
        """POST until it is answered or `seconds` are over (those of the request that is being answered here, where fewer).

        Raises FailureError (of `kind` where the other side names none) or RowError (422).
        """
        assert self._session is not None, "use the client as `async with`"
        data = orjson.dumps(body)
        end = deadline.after(seconds)
        url, credentials = without_credentials(url)
        headers = {**self._headers, **credentials, "Idempotency-Key": key or uuid.uuid4().hex}
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        for attempt in range(self.retries + 1):
            left = end - time.monotonic()
            if left <= 0:
                raise FailureError(Failure(kind="timeout", message=f"{url}: no answer within {seconds:g} s"))
            headers[deadline.HEADER] = f"{left:.3f}"
            problem: Exception
            after, answered = 0.0, False
            try:
                status, reply, set_cookies, retry_after = await self._exchange(url, data, headers, left)
                answered = True
                if status == 200:
                    return Reply(reply, set_cookies)
                problem = _problem(url, status, reply, kind, self.retried)
                if status == 429:
                    after = retry_after
            except TimeoutError:
                raise FailureError(Failure(kind="timeout", message=f"{url}: no answer within {seconds:g} s")) from None
            except (aiohttp.ClientError, OSError) as error:
                problem = FailureError(Failure(kind="connection", message=f"{url}: {type(error).__name__}: {error}"))
            retryable = isinstance(problem, FailureError) and problem.failure.retryable
            if not retryable or attempt == self.retries:
                raise problem
            wait = self.wait * 2**attempt * (0.5 + random.random())
            await asyncio.sleep(max(0.0, min(end - time.monotonic(), max(wait, after))))
            if self._settled is not None and not answered:
                with contextlib.suppress(TimeoutError):
                    url = await asyncio.wait_for(self._settled(url), max(0.0, end - time.monotonic()))
        raise AssertionError("unreachable")

    async def environments(self, url: str, *, seconds: float = 30.0) -> list[dict[str, Any]]:
        """What `GET /environments` of the server at `url` lists: objects with `name`, `description`, `agent`, `reward`, `url`.

        Raises OmnigymError that names the URL and what is wrong.
        """
        assert self._session is not None, "use the client as `async with`"
        url, credentials = without_credentials(f"{url.rstrip('/')}/environments")
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._session.get(url, headers={**self._headers, **credentials}, timeout=timeout) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OmnigymError(f"{url}: {type(error).__name__}: {error}") from None
        if response.status == 401:
            raise OmnigymError(f"{url}: 401: the token is not the server's: set OMNIGYM_TOKEN to it")
        if response.status != 200:
            raise OmnigymError(f"{url}: {response.status}: {body[:300].decode(errors='replace')}")
        try:
            listed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise OmnigymError(f"{url}: the reply is not JSON: {error}") from None
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "name" in one for one in listed):
            raise OmnigymError(f"{url}: the reply is no list of environments with `name`")
        return listed

    async def _exchange(self, url: str, data: bytes, headers: dict[str, str], seconds: float) -> Answered:
        if self._transport is not None:
            async with asyncio.timeout(seconds):
                return await self._transport(url, data, headers)
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self._session.post(url, data=data, headers=headers, timeout=timeout) as response:
            reply = await response.read()
            set_cookies = {name: morsel.value for name, morsel in response.cookies.items()}
            return response.status, reply, set_cookies, _retry_after(response.headers.get("Retry-After", ""))
