"""One server as several processes on one port: `omnigym env serve --processes N`.

The parent loads everything, listens N times on the port (the kernel spreads connections over the sockets), forks a process for each, and
then only waits. It keeps the sockets, so that connections to a process that died wait for the one that takes its place, which is
forked at once. Too many deaths in a row end the server. SIGTERM and SIGINT let every process drain.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from gym_servers.base import bind
from gym_servers.parent import end_with_parent
from gym_servers.protocol import OmnigymError

log = logging.getLogger("omnigym.processes")
MOST_DEATHS, DEATHS_SECONDS = 8, 60.0
"""The server ends at the death that makes so many within so many seconds."""
_ENDS = {signal.SIGTERM, signal.SIGINT}


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets that listen on one port. Raises OmnigymError where another server does so already."""
    with bind(host, port) as alone:  # a second server that shares the port would take half of the connections unnoticed
        port = alone.getsockname()[1]
    return [bind(host, port, shared=True) for _ in range(count)]


def _fork(body: Callable[[], None]) -> int:
    """Process id of a child that runs `body` and ends; it is told to end with this process."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        end_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_ENDS, signal.SIGCHLD})
        if os.getppid() == parent:
            with contextlib.suppress(KeyboardInterrupt):  # a terminal sends it to all processes; it has drained
                body()
        status = 0
    except BaseException:  # nothing of the parent's is this process's to unwind
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


class Processes:
    """`serve(k, socket)` in a process for every socket, until a signal. seconds: what is left then is killed."""

    def __init__(
        self, sockets: list[socket.socket], serve: Callable[[int, socket.socket], None], seconds: float
    ) -> None:
        self.sockets, self.serve, self.seconds = sockets, serve, seconds
        self._numbers: dict[int, int] = {}
        self._deaths: collections.deque[float] = collections.deque(maxlen=MOST_DEATHS)

    def run(self) -> None:
        """Raises OmnigymError where the processes keep dying."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDS, signal.SIGCHLD})
        try:
            for number in range(len(self.sockets)):
                self._start(number)
            while signal.sigwait({*_ENDS, signal.SIGCHLD}) == signal.SIGCHLD:
                for pid, how in self._ended():
                    self._replace(pid, how)
        finally:
            self._stop()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_ENDS, signal.SIGCHLD})

    def _start(self, number: int) -> None:
        def body() -> None:
            for other in self.sockets[:number] + self.sockets[number + 1 :]:
                other.close()  # else they would listen on after their own process has stopped
            self.serve(number, self.sockets[number])

        self._numbers[_fork(body)] = number

    def _ended(self) -> list[tuple[int, str]]:
        """(process id, how it ended) of those that did."""
        ended = []
        for known in list(self._numbers):
            pid, status = os.waitpid(known, os.WNOHANG)
            if pid:
                ended.append((pid, _how(status)))
        return ended

    def _replace(self, pid: int, how: str) -> None:
        number = self._numbers.pop(pid)
        log.warning("server process %d (%d of %d) %s: it is replaced", pid, number + 1, len(self.sockets), how)
        self._deaths.append(time.monotonic())
        if len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_SECONDS:
            raise OmnigymError(
                f"{MOST_DEATHS} server processes died within {DEATHS_SECONDS:g} s, the last one {how}: "
                "see the log above for the reason"
            )
        self._start(number)

    def _stop(self) -> None:
        """Let all drain, then kill what is left."""
        for pid in self._numbers:
            os.kill(pid, signal.SIGTERM)
        for sock in self.sockets:
            sock.close()
        end = time.monotonic() + self.seconds
        while self._numbers and time.monotonic() < end:
            signal.sigtimedwait({signal.SIGCHLD}, 0.5)
            for pid, _ in self._ended():
                del self._numbers[pid]
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
