"""A pool of killable worker processes with hard limits on CPU time, memory and wall time.

Verifiers examine model output here, never in the server's process. Workers are forked from a warm nursery
(gym_servers/worker_process.py), so a replacement after a kill costs milliseconds, not the imports. A worker is replaced
after any broken call and after `recycle_after` calls. The pool may be used from any thread and any event loop.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Literal

from gym_servers.protocol import Failure, FailureError, OmnigymError, RowError
from gym_servers.registry import PATH_VARIABLE
from gym_servers.worker_process import _LENGTH, EXIT_MEMORY, pack, receive

WorkerErrorKind = Literal["cpu", "memory", "crash", "exception", "wall"]
_START_SECONDS = 120.0
# Nothing else of the server's environment, its token least of all, is where model output is examined.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "TMPDIR", PATH_VARIABLE)
_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
}


class WorkerError(OmnigymError):
    """A call broke its worker.

    by_content: the call itself did it (a limit, an exception, a fault of its own), as opposed to a kill from outside or
    a machine too busy to run it. Whether it happens again in a fresh worker is for the caller to find out.
    """

    def __init__(self, kind: WorkerErrorKind, message: str, by_content: bool = True) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: WorkerErrorKind = kind
        self.message = message
        self.by_content = by_content


class _Nursery:
    """The process that imports once and forks workers. All methods block; the pool calls them off the event loop."""

    def __init__(self, warm: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gym_servers.worker_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the pool's to handle
                env={
                    **{key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
                    **_ONE_THREAD,
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                },
            )
        ours.settimeout(_START_SECONDS)
        self.socket = ours
        ours.sendall(pack(list(sys.path)))
        for target, args in warm:
            self.warm(target, args)

    def ask(self, command: bytes, message: Any, fds: tuple[int, ...] = ()) -> Any:
        try:
            with self.lock:
                # The descriptor travels with the command byte: the receiver reads exactly that byte together with it.
                socket.send_fds(self.socket, [command], fds)
                self.socket.sendall(pack(message))
                return receive(self.socket)
        except (OSError, EOFError) as error:
            raise WorkerError("crash", f"the worker nursery is gone ({error or 'closed'})", by_content=False) from None

    def warm(self, target: str, args: tuple[Any, ...]) -> None:
        problem = self.ask(b"W", (target, args))
        if problem is not None:
            raise OmnigymError(f"a worker cannot load {problem}")

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Worker:
    """One worker process: its socket and how many calls it has served."""

    def __init__(self, nursery: _Nursery) -> None:
        self.nursery = nursery
        ours, theirs = socket.socketpair()
        with theirs:
            self.pid = int(nursery.ask(b"F", None, (theirs.fileno(),)))
        ours.setblocking(False)
        self.socket = ours
        self.calls = 0

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> tuple[int, int, float] | None:
        """Kill if still alive, reap. (exit code or -signal, peak RSS in KiB, CPU seconds); None if the nursery is gone."""
        self.socket.close()
        try:
            found = self.nursery.ask(b"R", self.pid)
        except WorkerError:
            return None
        return None if found is None else (int(found[0]), int(found[1]), float(found[2]))


class WorkerPool:
    """At most `size` workers, started when first needed.

    warm: `(target, args)` pairs run once in the nursery before any worker is forked, to import what calls will need.
    """

    def __init__(self, size: int, *, recycle_after: int = 1000, warm: list[tuple[str, tuple[Any, ...]]] | None = None):
        if size < 1:
            raise OmnigymError(f"a worker pool needs at least one worker, got size={size}")
        self.size = size
        self.recycle_after = recycle_after
        self.kills = 0
        self._warm = list(warm or [])
        self._lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._nursery: _Nursery | None = None
        self._free: list[_Worker] = []
        self._live: set[_Worker] = set()
        self._slots = size
        self._waiters: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._closed = False

    # -- one slot per running call ------------------------------------------------------------------------------

    def _take_slot(self) -> concurrent.futures.Future[None] | None:
        with self._lock:
            if self._closed:
                raise OmnigymError("the worker pool is closed")
            if self._slots:
                self._slots -= 1
                return None
            waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._waiters.append(waiter)
            return waiter

    def _give_slot(self) -> None:
        while True:
            with self._lock:
                if not self._waiters:
                    self._slots += 1
                    return
                waiter = self._waiters.popleft()
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)
                return

    # -- workers -------------------------------------------------------------------------------------------------

    def warm(self, target: str, args: tuple[Any, ...]) -> None:
        """Have the nursery call `target(*args)` now (it is started if need be), for workers forked from here on."""
        with self._start_lock:
            if (target, args) in self._warm:
                return
            self._warm.append((target, args))
            if self._nursery is not None:
                self._nursery.warm(target, args)

    def start(self) -> None:
        """Start the nursery and one worker now, so that the first call does not wait for imports. Blocks."""
        worker = self._new_worker()
        with self._lock:
            self._free.append(worker)

    def _new_worker(self) -> _Worker:
        with self._start_lock:
            for attempt in (0, 1):
                if self._nursery is None:
                    self._nursery = _Nursery(self._warm)
                try:
                    worker = _Worker(self._nursery)
                    break
                except WorkerError:
                    dead, self._nursery = self._nursery, None
                    dead.close()
                    if attempt:
                        raise
            with self._lock:
                self._live.add(worker)
            return worker

    def _idle_worker(self, fresh: bool) -> _Worker | None:
        with self._lock:
            if not fresh and self._free:
                return self._free.pop()
            spare = self._free.pop() if fresh and self._free else None
        if spare is not None:  # keep to `size` processes: the fresh worker takes this one's place
            self._discard(spare)
        return None

    def _discard(self, worker: _Worker) -> tuple[int, int, float] | None:
        worker.kill()
        with self._lock:
            self._live.discard(worker)
        return worker.end()

    def _keep(self, worker: _Worker) -> None:
        worker.calls += 1
        if worker.calls < self.recycle_after:
            with self._lock:
                if not self._closed:
                    self._free.append(worker)
                    return
        self._discard(worker)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def run(
        self,
        target: str,
        args: tuple[Any, ...],
        *,
        cpu_seconds: float,
        wall_seconds: float,
        memory_mb: int,
        fresh: bool = False,
    ) -> Any:
        """`target(*args)` in a worker (`module:function`; arguments and result are pickled).

        fresh: in a process that has served no call before.
        Raises WorkerError; RowError and FailureError raised by the target arrive as themselves.
        """
        loop = asyncio.get_running_loop()
        waiter = self._take_slot()
        if waiter is not None:
            try:
                await asyncio.wrap_future(waiter)
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._give_slot()
                raise
        try:
            for last in (False, True):
                idle = self._idle_worker(fresh)
                worker = idle if idle is not None else await asyncio.to_thread(self._new_worker)
                began = time.monotonic()
                try:
                    async with asyncio.timeout(wall_seconds):
                        await loop.sock_sendall(worker.socket, pack((target, args, cpu_seconds, memory_mb)))
                        data = await self._receive_async(loop, worker.socket)
                except TimeoutError:
                    raise await asyncio.to_thread(self._late, worker, time.monotonic() - began) from None
                except (OSError, EOFError):
                    idle_death = worker.calls > 0 and time.monotonic() - began < 0.005
                    error = await asyncio.to_thread(self._broken, worker, cpu_seconds, memory_mb)
                    if idle_death and not last and not error.by_content:
                        continue  # it was killed while idle: the call never began
                    raise error from None
                except BaseException:  # cancelled: the worker is in the middle of something nobody waits for
                    await asyncio.to_thread(self._discard, worker)
                    raise
                return self._answer(worker, data)
        finally:
            self._give_slot()

    def run_sync(
        self,
        target: str,
        args: tuple[Any, ...],
        *,
        cpu_seconds: float,
        wall_seconds: float,
        memory_mb: int,
        fresh: bool = False,
    ) -> Any:
        """`run` for code without an event loop."""
        waiter = self._take_slot()
        if waiter is not None:
            waiter.result()
        try:
            worker = self._idle_worker(fresh) or self._new_worker()
            began = time.monotonic()
            worker.socket.settimeout(wall_seconds)
            try:
                worker.socket.sendall(pack((target, args, cpu_seconds, memory_mb)))
                data = receive(worker.socket)
                worker.socket.setblocking(False)
            except TimeoutError:
                raise self._late(worker, time.monotonic() - began) from None
            except (OSError, EOFError):
                raise self._broken(worker, cpu_seconds, memory_mb) from None
            except BaseException:
                self._discard(worker)
                raise
            return self._answer(worker, data)
        finally:
            self._give_slot()

    async def _receive_async(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> Any:
        import pickle

        buffer = bytearray()
        while len(buffer) < _LENGTH.size or len(buffer) < _LENGTH.size + _LENGTH.unpack_from(buffer)[0]:
            chunk = await loop.sock_recv(sock, 1 << 18)
            if not chunk:
                raise EOFError
            buffer += chunk
        return pickle.loads(memoryview(buffer)[_LENGTH.size :])

    def _answer(self, worker: _Worker, data: tuple[str, Any]) -> Any:
        status, value = data
        if status == "ok":
            self._keep(worker)
            return value
        if status == "row":
            self._keep(worker)
            raise RowError(value)
        if status == "failure":
            self._keep(worker)
            raise FailureError(Failure.model_validate(value))
        self._discard(worker)
        self.kills += 1
        if status == "memory":
            raise WorkerError("memory", value)
        raise WorkerError("exception", value, by_content=status != "setup")

    def _late(self, worker: _Worker, seconds: float) -> WorkerError:
        state, ran, waited = _schedule(worker.pid)
        self._discard(worker)
        self.kills += 1
        # Asleep of its own accord for most of the time; not stopped, not queueing for a processor or a disk.
        slept = state == "S" and ran + waited < 0.5 * seconds
        return WorkerError(
            "wall",
            f"no answer after {seconds:.1f} s (state {state}, {ran:.1f} s running, {waited:.1f} s waiting for a CPU)",
            by_content=slept,
        )

    def _broken(self, worker: _Worker, cpu_seconds: float, memory_mb: int) -> WorkerError:
        with self._lock:
            self._live.discard(worker)
        self.kills += 1
        ended = worker.end()
        if ended is None:
            return WorkerError("crash", "worker lost together with its nursery", by_content=False)
        code, peak_kib, _ = ended
        if code == -signal.SIGPROF:
            return WorkerError("cpu", f"more than {cpu_seconds:g} s of CPU time")
        if code == EXIT_MEMORY:
            return WorkerError("memory", f"more than {memory_mb} MiB of new memory")
        if code == -signal.SIGKILL and peak_kib > memory_mb * 1024 // 2:
            return WorkerError("memory", f"killed at {peak_kib // 1024} MiB, as the kernel does when memory runs out")
        if code < 0:
            outside = -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return WorkerError("crash", f"worker ended by {name}", by_content=not outside)
        return WorkerError("crash", f"worker exited with code {code}")

    def pids(self) -> list[int]:
        """Process ids of the live workers."""
        with self._lock:
            return [worker.pid for worker in self._live]

    def close(self) -> None:
        """End every worker and the nursery; calls in flight fail. Idempotent."""
        with self._lock:
            self._closed = True
            live, self._live, self._free = list(self._live), set(), []
            waiters, self._waiters = list(self._waiters), collections.deque()
        for waiter in waiters:
            if waiter.set_running_or_notify_cancel():
                waiter.set_exception(OmnigymError("the worker pool was closed"))
        for worker in live:
            worker.kill()
        with self._start_lock:
            if self._nursery is not None:
                self._nursery.close()
                self._nursery = None
        # Sockets of calls in flight are closed by those calls; closing them here would pull them from under a reader.


def _schedule(pid: int) -> tuple[str, float, float]:
    """(state letter, seconds on a CPU, seconds runnable but waiting for one) of a process since its start."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rsplit(")", 1)[1].split()[0]
        with open(f"/proc/{pid}/schedstat") as file:
            ran, waited = file.read().split()[:2]
        return state, int(ran) / 1e9, int(waited) / 1e9
    except (OSError, IndexError, ValueError):
        return "?", 0.0, 0.0
