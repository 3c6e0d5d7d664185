"""The gateway: one address for environments that are served in several places.

`GET /environments` lists them, `/<environment>/...` goes to the service that has it. Which one that is, each upstream says itself
(its own `/environments`, asked again every few seconds). Bodies stream through in both directions; headers, cookies and the query
pass as they are, so that a session, an idempotency key or a deadline means the same on both sides.

The name in an upstream's URL may stand for many addresses (the replicas of a service). It is resolved again every second, and each
request goes to the address with the fewest in flight: sessions are in Redis, so any will do. Where nobody listens the next address
is tried, since nothing was sent. What was sent and not answered is never sent twice: that is 503 `environment_down`, retryable, and
the caller repeats it with its idempotency key.

Left out: TLS to upstreams (names of certificates do not fit addresses), `/openapi.json` (each upstream has its own).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from yarl import URL

from gym_servers import deadline
from gym_servers.base import READY_SECONDS, Guard, ServerSettings, TooLarge, answer, build
from gym_servers.protocol import Failure, FailureError, OmnigymError

RESOLVE_SECONDS = 1.0
LIST_SECONDS = 5.0
CONNECT_SECONDS = 3.0
KEEPALIVE_SECONDS = 3.0
"""Less than the 5 s after which our servers close an idle connection, so that none is used just as it goes."""
AVOIDED_SECONDS = 2.0
"""How long an address where nobody listened comes last."""
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer upgrade transfer-encoding".split()
)
NOT_SENT_ON = HOP_BY_HOP | {b"host", b"expect", deadline.HEADER.lower().encode()}


def _down(message: str) -> FailureError:
    return FailureError(Failure(kind="environment_down", message=message))


async def resolve(host: str, port: int) -> list[str]:
    """The addresses that `host` stands for now. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Upstream:
    """A service: the addresses behind its name, and what it serves. Raises OmnigymError for a URL that is not http://host:port."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.username is not None or parts.path not in ("", "/"):
            raise OmnigymError(f"upstream '{url}': must be http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.url = f"http://{parts.netloc}"
        self.environments: list[dict[str, Any]] | None = None
        self.problem = "it was not asked yet"
        self.in_flight: Counter[str] = Counter()
        self._addresses: list[str] = []
        self._resolved = -float("inf")
        self._avoided: dict[str, float] = {}

    def __len__(self) -> int:
        """How many addresses the name has, as far as is known."""
        return len(self._addresses)

    async def addresses(self) -> list[str]:
        """The addresses, the one to use first in front. Raises OSError where the name stands for none."""
        now = time.monotonic()
        if now - self._resolved > RESOLVE_SECONDS:
            self._addresses = await resolve(self.host, self.port)
            self._resolved = now
            self._avoided = {one: until for one, until in self._avoided.items() if until > now}
        return sorted(self._addresses, key=lambda one: (self._avoided.get(one, 0.0) > now, self.in_flight[one]))

    def avoid(self, address: str) -> None:
        """Nobody listens at `address`."""
        self._avoided[address] = time.monotonic() + AVOIDED_SECONDS
        self._resolved = -float("inf")

    @asynccontextmanager
    async def request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        seconds: float,
        body: Callable[[], AsyncIterator[bytes]] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response, its body unread. target: path and query as they came. body: makes it, once for each address that is tried.
        Raises OSError, aiohttp.ClientError, TimeoutError."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        problem: Exception = OSError(f"the name '{self.host}' stands for no address")
        for address in await self.addresses():
            host = f"[{address}]" if ":" in address else address
            url = URL(f"http://{host}:{self.port}{target}", encoded=True)
            data = body() if body is not None else None
            self.in_flight[address] += 1
            try:
                response = await session.request(
                    method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False
                )
                async with response:
                    yield response
                return
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self._avoided[address] = time.monotonic() + AVOIDED_SECONDS
                self._resolved = -float("inf")
                problem = error
            finally:
                self.in_flight[address] -= 1
        raise problem

    async def get(self, session: aiohttp.ClientSession, target: str, headers: dict[str, str]) -> Any:
        """The JSON that a GET answers. Raises OmnigymError that says what is wrong with this upstream."""
        try:
            async with self.request(session, "GET", target, list(headers.items()), READY_SECONDS) as response:
                text = await response.read()
                if response.status != 200:
                    said = text[:500].decode(errors="replace")
                    raise OmnigymError(f"{self.url}{target}: {response.status}: {said}")
                return orjson.loads(text)
        except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
            raise OmnigymError(f"{self.url}{target}: {type(error).__name__}: {error}") from None

    async def ask(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        """Learn what it serves; what it served before stays where it does not answer."""
        try:
            listed = await self.get(session, "/environments", headers)
            if not isinstance(listed, list) or not all(isinstance(one, dict) and one.get("name") for one in listed):
                raise OmnigymError(f"{self.url}/environments: must be a list of objects with 'name'")
        except OmnigymError as error:
            self.problem = str(error)
        else:
            self.environments, self.problem = listed, ""


class Forwarded:
    """The ASGI endpoint behind `/<environment>/...`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        name = request.path_params["environment"]
        upstream = self.gateway.upstream(name)
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw if k not in NOT_SENT_ON]
        seconds = max(deadline.moment() - time.monotonic(), 0.001)
        headers.append((deadline.HEADER, f"{seconds:.3f}"))
        if "x-request-id" not in request.headers:
            headers.append(("X-Request-Id", request.state.request_id))
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        target = path.decode("latin-1") + (
            f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        )
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        too_large: list[TooLarge] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in request.stream():
                    yield part
            except TooLarge as error:  # the client would call it a connection's error
                too_large.append(error)
                raise

        started = False
        try:
            async with upstream.request(
                self.gateway.session, request.method, target, headers, seconds, body if has_body else None
            ) as response:
                kept = [(k.lower(), v) for k, v in response.raw_headers if k.lower() not in HOP_BY_HOP]
                await send({"type": "http.response.start", "status": response.status, "headers": kept})
                started = True
                async for part in response.content.iter_any():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            if too_large:
                raise too_large[0] from None
            if started:
                raise  # the connection breaks, which the caller takes for what it is
            if isinstance(error, TimeoutError):
                failure = Failure(kind="timeout", message=f"environment '{name}': no answer within {seconds:g} s")
                raise FailureError(failure) from None
            raise _down(f"environment '{name}' at {upstream.url}: {type(error).__name__}: {error}") from None


class Gateway:
    """What is behind the routes."""

    session: aiohttp.ClientSession

    def __init__(self, upstreams: Sequence[Upstream], token: str | None) -> None:
        self.upstreams = upstreams
        self.headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    def upstream(self, name: str) -> Upstream:
        """Who serves environment `name`. Raises HTTPException (404), and FailureError where that is not known yet."""
        for upstream in self.upstreams:
            if any(one["name"] == name for one in upstream.environments or ()):
                return upstream
        if unknown := [one.problem for one in self.upstreams if one.environments is None]:
            raise _down(f"environment '{name}': not every upstream has said what it serves: {'; '.join(unknown)}")
        known = ", ".join(one["name"] for one in self.listed())
        raise HTTPException(404, f"no environment '{name}'; there are: {known}")

    def listed(self) -> list[dict[str, Any]]:
        """What the upstreams list, by name."""
        return sorted((e for one in self.upstreams for e in one.environments or ()), key=lambda e: str(e["name"]))

    async def watch(self) -> None:
        """Ask every upstream what it serves, again and again."""
        while True:
            await asyncio.gather(*(one.ask(self.session, self.headers) for one in self.upstreams))
            told = all(one.environments is not None for one in self.upstreams)
            await asyncio.sleep(LIST_SECONDS if told else RESOLVE_SECONDS)

    async def check(self) -> None:
        """Raises OmnigymError that names each upstream that is not ready."""
        asked = await asyncio.gather(
            *(one.get(self.session, "/readyz", {}) for one in self.upstreams), return_exceptions=True
        )
        problems = [str(one) for one in asked if isinstance(one, Exception)]
        problems += [one.problem for one in self.upstreams if one.environments is None]
        counted = Counter(str(one["name"]) for one in self.listed())
        problems += [f"environment '{name}' is served by two upstreams" for name, n in counted.items() if n > 1]
        if problems:
            raise OmnigymError("; ".join(problems))


def build_gateway(urls: Sequence[str], settings: ServerSettings | None = None) -> Guard:
    """An ASGI app in front of the servers at `urls`, which take the same token. Raises OmnigymError for what is no such URL."""
    settings = settings or ServerSettings()
    if not urls or len(set(urls)) != len(urls):
        raise OmnigymError(f"a gateway needs the URLs of different upstreams, got {list(urls)}")
    gateway = Gateway([Upstream(url) for url in urls], settings.token)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as gateway.session:
            watching = asyncio.create_task(gateway.watch())
            yield
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def environments(request: Request) -> Response:
        return answer([{**one, "url": f"{request.base_url}{one['name']}"} for one in gateway.listed()])

    routes = [
        Route("/environments", environments, methods=["GET"]),
        Route("/{environment}/{path:path}", Forwarded(gateway)),
    ]
    guard = build(Starlette(routes=routes, lifespan=lifespan), settings, gateway.check)
    replicas = Gauge(
        "omnigym_upstream_addresses", "Addresses behind an upstream's name", ["upstream"], registry=guard.registry
    )
    for one in gateway.upstreams:
        replicas.labels(one.url).set_function(one.__len__)
    return guard
