"""Servers in this process, without a socket: for tests of the same ASGI apps that the other hosts serve.

    async with InProcessHost() as host:
        url = await host.start("math", build_resources([CompetitionMath()]))
        async with Client(transport=host) as client:
            await client.post(f"{url}/verify", body, seconds=10)

Requests run in the caller's task; a server's start and end are run as a real host runs them. Left out: streamed answers.
"""

from __future__ import annotations

import asyncio
from http.cookies import SimpleCookie
from urllib.parse import unquote, urlsplit

from starlette.types import ASGIApp, Message, Scope

from gym_servers.client import Answered
from gym_servers.protocol import OmnigymError

SCHEME = "inprocess"


class _Lifespan:
    """A server's start and end, in one task, as ASGI wants it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self.app(scope, self._to_app.get, self._from_app.put))  # type: ignore[arg-type]
        await self._step("startup")

    async def stop(self) -> None:
        await self._step("shutdown")
        assert self._task is not None
        await self._task

    async def _step(self, name: str) -> None:
        assert self._task is not None
        await self._to_app.put({"type": f"lifespan.{name}"})
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() or answer.result()["type"] != f"lifespan.{name}.complete":
            answer.cancel()
            raise OmnigymError(f"the server failed at its {name}: see the log")


class InProcessHost:
    """Servers by name at `inprocess://<name>`; itself the transport of clients that talk to them."""

    def __init__(self) -> None:
        self._servers: dict[str, _Lifespan] = {}

    async def __aenter__(self) -> InProcessHost:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for server in reversed(list(self._servers.values())):
            await server.stop()

    async def start(self, name: str, app: ASGIApp) -> str:
        """Start a server; its URL. Raises OmnigymError."""
        if name in self._servers:
            raise OmnigymError(f"there is a server '{name}' already")
        server = _Lifespan(app)
        await server.start()
        self._servers[name] = server
        return f"{SCHEME}://{name}"

    async def __call__(self, url: str, data: bytes, headers: dict[str, str]) -> Answered:
        """One POST, as gym_servers.client.Transport has it."""
        parts = urlsplit(url)
        server = self._servers.get(parts.netloc)
        if parts.scheme != SCHEME or server is None:
            raise ConnectionRefusedError(f"no server at {url}; there are: {', '.join(self._servers) or 'none'}")
        given = {**headers, "Host": parts.netloc, "Content-Length": str(len(data))}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "root_path": "",
            "query_string": parts.query.encode(),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given.items()],
            "server": (parts.netloc, None),
            "client": None,
            "state": {},
        }
        status, body, cookies = 0, bytearray(), SimpleCookie()
        requests: asyncio.Queue[Message] = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": data, "more_body": False})

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message["headers"]:
                    if name == b"set-cookie":
                        cookies.load(value.decode("latin-1"))
            else:
                body.extend(message.get("body", b""))

        await server.app(scope, requests.get, send)
        return status, bytes(body), {name: morsel.value for name, morsel in cookies.items()}, 0.0
