"""What all hosts have in common: servers that are started, waited for, watched, started again when they die, and ended.

One policy for every host. A server that dies is started again, at the address that it had where it can, as often as its
`restarts` say; then, or where they are 0, its death is an error that names it and shows the end of its log. What was asked of it
meanwhile is asked again (`settled`, which a Client calls after a connection failed). Sessions in its memory are lost: their
requests fail, and no reward is made up.

A host is a module here with `environment_server(wanted) -> Server`, loaded by name, so that its packages are needed only where it
is chosen: local, ray, docker, url.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import math
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from gym_servers.protocol import OmnigymError

HostKind = Literal["local", "ray", "docker", "url"]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens the addresses of servers: they never go through a proxy."""
READY_SECONDS = 120.0


class ServerDied(OmnigymError):
    """A server is gone, or was not ready in time."""


@dataclass(frozen=True)
class Environments:
    """What a host is to serve. settings: by environment, on top of its environment.yaml. folders: of environments that are not
    installed. run: by which a host finds what an earlier process of the same run left behind.

    Read by one host only: image, network and memory_mb (docker), url (url, where the environments are served already).
    """

    names: Sequence[str]
    token: str = field(repr=False)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    log: Path | None = None
    restarts: int = 0
    run: str = ""
    image: str | None = None
    network: str | None = None
    memory_mb: int | None = None
    url: str | None = None

    def arguments(self) -> list[str]:
        """Those of `omnigym env serve`, but for where it listens; the token is none of them."""
        chosen = [
            f"--set={name}.{key}={_as_yaml(v)}" for name, values in self.settings.items() for key, v in values.items()
        ]
        return [*self.names, *chosen, *(f"--path={folder}" for folder in self.folders)]


def _as_yaml(value: Any) -> str:
    """One line that YAML reads as `value`; of JSON it would take 1e-05 for text."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


class Server(ABC):
    """One server of a host. log: where its log stays; without one it goes when the server is stopped."""

    def __init__(self, name: str, log: Path | None = None, restarts: int = 0) -> None:
        self.name, self.restarts = name, restarts
        self.url = ""
        self.addresses: list[str] = []
        self.began_again = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if log is None:
            self._folder = tempfile.TemporaryDirectory(prefix="omnigym-server-")
            log = Path(self._folder.name) / "server.log"
        self.log = log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")

    @abstractmethod
    def start(self) -> None:
        """Start it, or start it again with what is left of it ended, at the address that it had where it can. Not waited for."""

    @abstractmethod
    def address(self) -> str:
        """Its URL, as far as it is known yet; "" before."""

    @abstractmethod
    def death(self) -> str:
        """How it ended, such as "ended with status 1"; "" while it lives."""

    @abstractmethod
    def stop(self, seconds: float = 10.0) -> None:
        """Let it drain, then end it with all that belongs to it. Idempotent."""

    def environment_url(self, name: str) -> str:
        """Where environment `name` is."""
        return f"{self.url}/{name}"

    def log_tail(self) -> str:
        """Where its log is, if it stays, and its last lines as one."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        where = "its log" if self._folder is not None else str(self.log)
        return f"{where} ends: {' | '.join(lines[-3:]) or '(nothing)'}"

    def check(self) -> None:
        """Raises ServerDied."""
        how = self.death()
        if how:
            before = f" (after it was started again {self.began_again} times)" if self.began_again else ""
            raise ServerDied(f"{self.name} {how}{before}; {self.log_tail()}")

    def ready(self) -> bool:
        """Whether it answers /readyz; `url` is its address from then on. Raises ServerDied."""
        self.check()
        address = self.address()
        if not address:
            return False
        try:
            with DIRECT.open(f"{address}/readyz", timeout=5):
                pass
        except (OSError, http.client.HTTPException):
            return False
        self.url = address
        if address not in self.addresses:
            self.addresses.append(address)
        return True

    def wait_ready(self, seconds: float = READY_SECONDS) -> str:
        """Its address, once /readyz answers 200. Raises ServerDied."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise self.late(seconds)
            time.sleep(0.05)
        return self.url

    def late(self, seconds: float) -> ServerDied:
        """The error of one that is not ready in time."""
        return ServerDied(f"{self.name} was not ready within {seconds:g} s; {self.log_tail()}")


class Servers:
    """Servers of one command: a context that ends all of them in whichever way it is left.

    on_restart: told of each death after which a server is started again. ready_seconds: what one that is started again has.
    """

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.on_restart: Callable[[str], None] = lambda text: None
        self.ready_seconds = READY_SECONDS
        self._next_look: asyncio.Event | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as all_of_them:  # one that cannot be stopped keeps no other alive
            for server in self.servers:
                all_of_them.callback(server.stop)

    def check(self) -> None:
        """Raises ServerDied for the first that is gone for good: one that may be started again is `watch`'s."""
        for server in self.servers:
            if not server.restarts:
                server.check()

    async def watch(self, seconds: float = 0.5) -> None:
        """Look every `seconds`, for ever, and start again what died. Raises ServerDied for one that may not be."""
        try:
            while True:
                looked, self._next_look = self._next_look, asyncio.Event()
                if looked is not None:
                    looked.set()
                for server in self.servers:
                    try:
                        await asyncio.to_thread(server.check)
                    except ServerDied as death:
                        await self._start_again(server, death)
                await asyncio.sleep(seconds)
        finally:
            if self._next_look is not None:
                self._next_look.set()
            self._next_look = None

    async def _start_again(self, server: Server, death: ServerDied) -> None:
        while server.restarts:
            server.restarts -= 1
            server.began_again += 1
            self.on_restart(f"{death}; it is started again, restarts left: {server.restarts}")
            server.start()  # not in a thread that ends: processes end with the thread that started them
            deadline = time.monotonic() + self.ready_seconds
            try:
                while not await asyncio.to_thread(server.ready):
                    if time.monotonic() > deadline:
                        raise server.late(self.ready_seconds)
                    await asyncio.sleep(0.05)
                return
            except ServerDied as error:
                death = error
        raise death

    def current(self, url: str) -> str:
        """`url` of one of these servers, at the address that the server has now; any other one as it is."""
        for server in self.servers:
            for address in server.addresses:
                if url == address or url.startswith(f"{address}/"):
                    return server.url + url.removeprefix(address)
        return url

    async def settled(self, url: str) -> str:
        """Where to try `url` again after a connection failed: once every server has been looked after and is there again."""
        for _ in range(2):  # the look that is under way may have passed it already
            if self._next_look is None:
                break
            await self._next_look.wait()
        return self.current(url)


def environment_server(host: HostKind, wanted: Environments) -> Server:
    """The server of a run's environments, started on `host` and not waited for. Raises OmnigymError."""
    try:
        module = importlib.import_module(f"gym_servers.hosts.{host}")
    except ModuleNotFoundError as error:
        extra = {"ray": "train"}.get(host, host)
        raise OmnigymError(f"host '{host}' needs the package {error.name}: pip install 'omnigym[{extra}]'") from None
    server: Server = module.environment_server(wanted)
    return server
