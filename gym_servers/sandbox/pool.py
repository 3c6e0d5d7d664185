"""The sandbox of a server: a pool of warm fork servers, each one run at a time.

A program's misbehaviour is a `Run`. What is the sandbox's own fault (a fork server that died, a confinement that failed) is a
FailureError, and that fork server is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gym_servers.protocol import Failure, FailureError, OmnigymError
from gym_servers.sandbox.fork_server import HEADER, OUTCOMES, PART, RESULT

START_SECONDS = 60.0
FOLDER = "omnigym-sandbox-"
NEW_SECONDS = 60.0
"""How long a folder may be there unlocked: it is locked at once by who made it."""
LAYERS = ("namespaces", "landlock", "seccomp")


@dataclass(frozen=True)
class Limits:
    """Of one run. cpu_seconds: of all threads. wall_seconds: for programs that sleep, so without what the program waited for a busy
    processor. memory_mb: address space, the interpreter's 40 MB included. output_bytes: of both streams together."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 30.0
    memory_mb: int = 512
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Run:
    """What came of one run. exit_code: None where a signal or a limit ended it. stderr: its last 64 KB."""

    status: Literal["exited", "killed", "timed_out", "memory", "output"]
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float


class SandboxUnavailable(OmnigymError):
    """This machine cannot isolate a program; says which layer is missing."""


def missing(layers: Mapping[str, Any]) -> str | None:
    """What keeps these layers from being a sandbox; None where they are one."""
    if not layers["namespaces"] and not layers["landlock"]:
        return "neither user namespaces nor Landlock (Linux 5.13) are to be had, so files cannot be hidden"
    if not layers["seccomp"]:
        return "seccomp filters are not to be had, so processes and the network cannot be refused"
    return None


def _lock(folder: Path) -> int | None:
    """A descriptor that locks the folder for as long as this process has it; None where another process does. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_orphans() -> None:
    """Remove the folders of servers that were killed: those that no process locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # another user's, or one that another server removes at this moment
            if time.time() - folder.stat().st_mtime < NEW_SECONDS or (lock := _lock(folder)) is None:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


class _ForkServer:
    """One process and the socket to it."""

    def __init__(self, without: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER))
        self._folder_lock = _lock(self.folder)
        self.folder.chmod(0o711)
        ours, theirs = socket.socketpair()
        root = Path(__file__).parents[2]
        start = (
            f"import sys; sys.path.insert(0, {str(root)!r}); from gym_servers.sandbox.fork_server import main; "
            f"sys.path.pop(0); main({theirs.fileno()}, {str(self.folder)!r}, "
            f"{sysconfig.get_path('purelib')!r}, {tuple(without)!r})"
        )
        # A fixed hash seed: what a program prints must not depend on which fork server it met.
        # One arena: glibc reserves 64 MB of address space for each more, one a thread.
        environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-s", "-X", "utf8", "-c", start],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._socket = ours
        self.writer: asyncio.StreamWriter | None = None
        self.layers: dict[str, Any] = {}

    async def ready(self) -> None:
        """Wait for what it says of its layers. Raises OSError, EOFError (asyncio.IncompleteReadError), TimeoutError."""
        self.reader, self.writer = await asyncio.open_connection(sock=self._socket)
        async with asyncio.timeout(START_SECONDS):
            self.layers = json.loads(await self._part())

    async def run(self, source: bytes, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> tuple[str, Run]:
        """(outcome, run). Raises OSError or EOFError where the process is gone."""
        parts = [source, stdin]
        for name, content in files.items():
            parts += [name.encode(), content]
        body = b"".join(PART.pack(len(part)) + part for part in parts)
        header = HEADER.pack(
            len(body), limits.wall_seconds, limits.cpu_seconds, limits.memory_mb, limits.output_bytes, len(files)
        )
        assert self.writer is not None, "ready comes first"
        self.writer.write(header + body)
        await self.writer.drain()
        packed = RESULT.unpack(await self.reader.readexactly(RESULT.size))
        outcome, code = OUTCOMES[packed[0]], packed[1]
        stdout, stderr = await self._part(), await self._part()
        if outcome == "exited" and code and stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):
            outcome = "memory"
        run = Run(
            status=outcome if outcome != "broken" else "killed",  # type: ignore[arg-type]
            exit_code=code if outcome == "exited" else None,
            stdout=stdout,
            stderr=stderr,
            cpu_seconds=packed[2],
            wall_seconds=packed[3],
        )
        return outcome, run

    async def _part(self) -> bytes:
        (size,) = PART.unpack(await self.reader.readexactly(PART.size))
        return await self.reader.readexactly(size)

    def end(self) -> None:
        """Kill it, and with it the program that it runs."""
        self.process.kill()
        self.process.wait()
        if self.writer is not None:
            self.writer.transport.abort()  # who waits for a reply learns of it
        else:
            self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None


class Sandbox:
    """Programs in at most `servers` at once. insecure: run them even where nothing can be isolated. without: layers of LAYERS that
    are not used, to see what the others hold. Belongs to the event loop that started it."""

    def __init__(self, servers: int = 2, *, insecure: bool = False, without: Sequence[str] = ()) -> None:
        if unknown := sorted(set(without) - set(LAYERS)):
            raise OmnigymError(f"there is no layer {unknown}; layers: {', '.join(LAYERS)}")
        self.servers, self.insecure, self.without = servers, insecure, tuple(without)
        self.layers: dict[str, Any] = {}
        self._places: dict[int, _ForkServer] = {}
        self._free: asyncio.Queue[int] = asyncio.Queue()
        self._open = False

    @property
    def processes(self) -> list[int]:
        """Pids of the fork servers."""
        return [server.process.pid for server in self._places.values()]

    async def start(self) -> None:
        """Start the fork servers. Raises SandboxUnavailable."""
        self._open = True
        remove_orphans()
        try:
            for place in range(self.servers):
                await self._new(place)
                self._free.put_nowait(place)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the fork servers and what they run: who waits for a run gets a FailureError."""
        self._open = False
        for place in list(self._places):
            self._drop(place)

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _new(self, place: int) -> _ForkServer:
        server = self._places[place] = _ForkServer(self.without)
        try:
            await server.ready()
            if (problem := missing(server.layers)) and not self.insecure:
                raise SandboxUnavailable(
                    f"programs cannot be isolated on this machine: {problem}. `omnigym sandbox doctor` shows more; "
                    f"`insecure: true` runs them all the same, for code that you trust"
                )
        except (OSError, EOFError, TimeoutError) as error:
            self._drop(place)
            raise SandboxUnavailable(
                f"a fork server of the sandbox does not start: {type(error).__name__}: {error}"
            ) from None
        except BaseException:
            self._drop(place)
            raise
        self.layers = server.layers
        return server

    def _drop(self, place: int) -> None:
        if (server := self._places.pop(place, None)) is not None:
            server.end()

    async def run(
        self, source: str, *, stdin: bytes = b"", files: Mapping[str, bytes] = {}, limits: Limits = Limits()
    ) -> Run:
        """Run `source` as `__main__`, in a folder that holds `files` and nothing else. Raises FailureError, and OmnigymError for files
        that are not plain names."""
        for name in files:
            if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > 255:
                raise OmnigymError(f"files['{name[:80]}']: must be a plain file name of at most 255 bytes")
        place = await self._take()
        done = False
        try:
            server = self._places.get(place)
            if server is None or server.process.poll() is not None:  # it died while idle: no run of anybody's is lost
                self._drop(place)
                server = await self._new(place)
            outcome, run = await server.run(source.encode(errors="surrogatepass"), stdin, files, limits)
            if outcome == "broken":
                raise EOFError(run.stderr.decode(errors="replace"))
            done = True
            return run
        except (OSError, EOFError, SandboxUnavailable) as error:
            message = f"a fork server of the sandbox failed: {error or type(error).__name__}"
            raise FailureError(Failure(kind="environment_down", message=message)) from None
        finally:
            if not done:  # also where the caller gave up: the program must not go on
                self._drop(place)
            self._free.put_nowait(place)

    async def _take(self) -> int:
        """A place where nothing runs. Raises FailureError once the sandbox is closed."""
        if self._open:
            place = await self._free.get()
            if self._open:
                return place
            self._free.put_nowait(place)  # so that the next who waits learns of it too
        raise FailureError(Failure(kind="environment_down", message="the sandbox is not started", retryable=False))
