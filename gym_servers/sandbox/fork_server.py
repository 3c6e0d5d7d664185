"""A warm process that forks once for every run and isolates the child. Started by pool.py as `python -S ... fork_server.py`'s `main`.

It speaks over one socket: first it says which layers it has, then a request is a header (HEADER) and a body (length-prefixed parts:
source, standard input, then names and contents of files), a reply RESULT, standard output and error. The body is read by the child
alone, output is kept in memory that is unmapped after the run: no program's text, input or output is in the memory that later children inherit. What is expected of a program is told to nobody
here.

The program runs as `__main__` in an empty folder of its own. Its process group is killed, its folder discarded, when it ends.
"""

from __future__ import annotations

import gc
import glob
import json
import math
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from gym_servers.sandbox import isolation

HEADER = struct.Struct("!QddIQI")
"""Bytes of the body, wall seconds, CPU seconds, memory in MB, output bytes, number of files."""
RESULT = struct.Struct("!Bidd")
"""Outcome (OUTCOMES), exit code or signal, CPU and wall seconds; two parts follow, standard output and error."""
PART = struct.Struct("!Q")
OUTCOMES = ("exited", "killed", "timed_out", "memory", "output", "broken")
SCRATCH = "/scratch"
SCRATCH_MB = 32
FILE_MB = 16
RULES = 4
"""The child's descriptor of Landlock's rules."""
TASKS = 256
"""Threads of a program. Where it has a user id to itself, the kernel counts them; else the fork server does, every WATCH_SECONDS."""
WATCH_SECONDS = 0.05
STDERR_KEPT = PIPE = 1 << 16
OURS: list[str] = []
"""Modules of omnigym, which programs do not find loaded."""
FIRST_UID, UIDS = 61_000, 4096
"""Of the users that root becomes: each fork server another, since threads are counted by user."""
WARM = (
    "array", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "threading", "traceback", "typing",
)  # fmt: skip
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
MODULES = ("numpy", "numpy.libs", "sympy", "mpmath")
"""What of the installed packages programs may import: nothing that holds tasks or verifiers."""


class Layers:
    """What this process can put between a program and the machine; found out by trying."""

    def __init__(self, folder: str, packages: str, without: Sequence[str] = ()) -> None:
        self.root = os.geteuid() == 0
        self.uid = self.gid = FIRST_UID + os.getpid() % UIDS
        self.scratch = os.path.join(folder, "scratch")
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        stdlib = [os.path.join(prefix, "lib", version) for prefix in (sys.base_prefix, sys.base_exec_prefix)]
        self.packages = packages
        self.hidden = {self.packages, *(os.path.join(path, "site-packages") for path in stdlib)}
        self.hidden |= set(glob.glob("/usr/lib/python3*/*-packages") + glob.glob("/usr/local/lib/python3*/*-packages"))
        self.modules = [os.path.join(self.packages, name) for name in MODULES]
        self.system = [*SYSTEM, *sorted(set(stdlib))]
        self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        self.namespaces = "namespaces" not in without and self._can(lambda: self._enter(folder))
        if self.namespaces:
            self._enter(folder)
            self.scratch = SCRATCH
        self.change_user = self.root and self._can(lambda: self._read_as_user(stdlib[0]))
        self.abi = isolation.landlock_abi() if "landlock" not in without and not self.namespaces else 0
        os.makedirs(self.scratch, 0o755, exist_ok=True)
        self.rules = self._rules() if self.abi else -1
        self.counted = self.change_user or (self.namespaces and not self.root)
        self.seccomp = "seccomp" not in without and self._can(isolation.seccomp)

    @staticmethod
    def _can(step: Callable[[], object]) -> bool:
        """Whether `step` works, tried in a child: it could not be undone."""
        if (pid := os.fork()) == 0:
            try:
                step()
            except OSError:
                os._exit(1)
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0

    def _enter(self, folder: str) -> None:
        """Namespaces of this process: files of its own, no network."""
        flags = isolation.NEWNS | isolation.NEWNET | isolation.NEWIPC
        uid, gid = os.geteuid(), os.getegid()
        isolation.unshare(flags if self.root else flags | isolation.NEWUSER)
        if not self.root:
            isolation.map_user(uid, gid)
        isolation.enter_root(folder, [*self.system, *DEVICES], self.hidden, self.modules, SCRATCH)

    def _read_as_user(self, folder: str) -> None:
        """Raises OSError where that user could not read the interpreter's modules (they lie in /root): then root stays, with no
        capability."""
        isolation.become(self.uid, self.gid)
        os.listdir(folder)

    def _rules(self) -> int:
        readable = [self.scratch, *self.modules]
        for place in self.system:
            inside = [path for path in self.hidden if path.startswith(place + "/")]
            readable += _around(place, inside) if inside else [place]
        return isolation.landlock_rules(self.abi, readable, [self.packages], DEVICES)

    def describe(self) -> dict[str, Any]:
        """As the pool and `omnigym sandbox doctor` show it."""
        return {
            "namespaces": self.namespaces,
            "landlock": self.abi,
            "seccomp": self.seccomp,
            "user": self.uid if self.change_user else os.geteuid(),
        }

    def open_scratch(self) -> None:
        """An empty folder for the next program."""
        if self.namespaces:
            uid, gid = (self.uid, self.gid) if self.change_user else (0, 0)
            isolation.mount_scratch(self.scratch, SCRATCH_MB, uid, gid)

    def discard_scratch(self) -> None:
        """Nothing of the program's is left. Without namespaces it could only read here: without a file system of its own it could fill
        the disk."""
        if self.namespaces:
            isolation.unmount(self.scratch)
        else:
            for name in os.listdir(self.scratch):
                os.unlink(os.path.join(self.scratch, name))

    def confine(self, server: int, cpu_seconds: float, memory_mb: int) -> None:
        """All layers, in the child of the process `server`. Raises OSError."""
        if self.change_user:
            isolation.become(self.uid, self.gid)
        elif self.root or self.namespaces:
            isolation.drop_capabilities()
        isolation.end_with_parent()
        if os.getppid() != server:  # it died before that
            os._exit(1)
        isolation.limit(
            math.ceil(cpu_seconds) + 1,  # a second line: the fork server watches the clock of the process
            memory_mb << 20,
            FILE_MB << 20 if self.namespaces else 0,
            TASKS if self.counted else None,
        )
        if self.abi:
            isolation.landlock(RULES)
        if self.seccomp:
            isolation.seccomp()


def _around(folder: str, but: Sequence[str]) -> list[str]:
    """All that is in `folder` except the folders `but` below it."""
    found: list[str] = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        inside = [other for other in but if other.startswith(path + "/")]
        if inside:
            found += _around(path, inside)
        elif path not in but:
            found.append(path)
    return found


def receive(peer: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; fewer at the end of the stream."""
    parts = []
    while size:
        part = peer.recv(min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _part(peer: socket.socket) -> bytes:
    (size,) = PART.unpack(receive(peer, PART.size))
    return receive(peer, size)


def _streams() -> None:
    """The streams that every child inherits; it puts its own pipes under their descriptors."""
    read, write = os.pipe()  # so that standard output is known for what cannot be sought in
    os.dup2(write, 1)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open(2, "w", errors="backslashreplace", closefd=False)  # type: ignore[misc]
    os.close(read)
    os.close(write)


def run_program(source: bytes) -> NoReturn:
    """Run `source` as `__main__` and end as Python would: threads awaited, exit handlers run, output flushed."""
    import atexit
    import threading
    import traceback

    main = ModuleType("__main__")
    main.__dict__.update(__file__="main.py", __builtins__=__builtins__)
    for name in OURS:
        del sys.modules[name]
    sys.modules["__main__"] = main
    sys.argv = ["main.py"]
    status: Any = 0
    try:
        code = compile(source, "main.py", "exec", dont_inherit=True)
        exec(code, main.__dict__)  # the program: this process is confined
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        status = 1
        shown = error.__traceback__.tb_next if error.__traceback__ else None
        try:
            traceback.print_exception(type(error), error, shown)
        except BaseException:
            os.write(2, f"{type(error).__name__}\n".encode())
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
        sys.stderr.flush()
        sys.stdout.flush()
        main.__dict__.clear()  # what the program left open is written when its last reference goes
        gc.collect()
    except BaseException:
        status = status or 120
    os._exit((status or 0) & 0xFF)


def child(
    server: int, peer: socket.socket, status: int, out: int, error: int, layers: Layers, header: tuple[Any, ...]
) -> NoReturn:
    """The run, in the forked child. What fails before the program starts is written to `status`."""
    try:
        _, _, cpu_seconds, memory_mb, _, files = header
        os.setsid()
        source, given = _part(peer), _part(peer)
        stdin = os.memfd_create("stdin")
        os.truncate(stdin, 0)
        with open(stdin, "wb", closefd=False) as file:
            file.write(given)
        os.lseek(stdin, 0, os.SEEK_SET)
        os.chdir(layers.scratch)
        for _ in range(files):
            name, content = _part(peer).decode(), _part(peer)
            with open(name, "xb") as file:
                file.write(content)
            os.chmod(name, 0o644)
        del given
        os.dup2(stdin, 0)
        os.dup2(out, 1)
        os.dup2(error, 2)
        os.dup2(status, 3)
        if layers.abi:
            os.dup2(layers.rules, RULES)
        os.closerange(RULES + bool(layers.abi), 1 << 16)
        status = 3
        layers.confine(server, cpu_seconds, memory_mb)
    except BaseException as problem:
        os.write(status, f"{type(problem).__name__}: {problem}"[:2000].encode())
        os._exit(1)
    os.close(status)
    run_program(source)


def starved(layers: Layers, pid: int) -> float:
    """Seconds that the process was ready to run and the machine busy with others; 0 where the kernel does not say."""
    try:
        place = os.open(f"{pid}/schedstat", os.O_RDONLY, dir_fd=layers.proc)
    except OSError:
        return 0.0
    try:
        return int(os.read(place, 256).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
    finally:
        os.close(place)


def tasks(layers: Layers, pid: int) -> int:
    """Threads of the process."""
    try:
        return os.stat(f"{pid}/task", dir_fd=layers.proc).st_nlink - 2
    except OSError:
        return 0  # it ended


class Captured:
    """What a program wrote to one pipe. most: of which the last so many bytes are kept. The memory is given back after the run: one
    program's output is not there for the next to find."""

    def __init__(self, pipe: int, most: int) -> None:
        self.pipe, self.most = pipe, most
        self.memory = mmap.mmap(-1, 2 * most + PIPE)
        self.kept = self.written = 0

    def read(self) -> bool:
        """Take what is there; False once the program cannot write any more."""
        with memoryview(self.memory) as whole, whole[self.kept : self.kept + PIPE] as free:
            count = os.readv(self.pipe, [free])
        self.written += count
        self.kept += count
        if self.kept > 2 * self.most:
            self.memory.move(0, self.kept - self.most, self.most)
            self.kept = self.most
        return count > 0

    def send(self, peer: socket.socket, most: int) -> None:
        """The first `most` bytes of what is kept, as a part of the reply; then it is forgotten."""
        with memoryview(self.memory) as whole, whole[: min(self.kept, most)] as text:
            peer.sendall(PART.pack(len(text)))
            peer.sendall(text)
        self.memory.close()


def supervise(
    peer: socket.socket, layers: Layers, pid: int, header: tuple[Any, ...], out: Captured, error: Captured
) -> bytes:
    """Read what the child writes until it ends or passes a limit. Returns the reply's RESULT."""
    _, wall_seconds, cpu_seconds, _, output_bytes, _ = header
    began = time.monotonic()
    captured = {one.pipe: one for one in (out, error)}
    outcome = ""
    ending = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ending, select.POLLIN)
    poll.register(peer, select.POLLHUP | select.POLLRDHUP)
    for pipe in captured:
        poll.register(pipe, select.POLLIN)
    clock = (~pid << 3) | 2  # CPUCLOCK_SCHED: CPU time of all its threads
    cores = os.cpu_count() or 1
    ended = False
    while not ended and not outcome:
        left = wall_seconds - (time.monotonic() - began)
        cpu_left = cpu_seconds - time.clock_gettime(clock)
        if cpu_left <= 0 or (left <= 0 and (left := left + starved(layers, pid)) <= 0):
            outcome = "timed_out"
            break
        pause = min(left, cpu_left / cores)
        if not layers.counted:
            pause = min(pause, WATCH_SECONDS)
            if tasks(layers, pid) > TASKS:
                outcome = "killed"
                break
        for ready, _ in poll.poll(min(pause, 3600.0) * 1000 + 1):
            if ready == peer.fileno():  # nobody waits for it any more
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif ready == ending:
                ended = True
            elif not captured[ready].read():
                poll.unregister(ready)  # it closed its output and goes on
        if out.written + error.written > output_bytes:
            outcome = "output"
    if not ended:
        os.kill(pid, signal.SIGKILL)  # not yet waited for: the number is still its own
    _, state, usage = os.wait4(pid, 0)
    os.close(ending)
    for one in captured.values():  # no other process can hold the pipes open
        while not outcome and one.read():
            if out.written + error.written > output_bytes:
                outcome = "output"
    cpu, wall = usage.ru_utime + usage.ru_stime, time.monotonic() - began
    code = os.waitstatus_to_exitcode(state)
    if not outcome:
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu >= cpu_seconds):
            outcome = "timed_out"
        else:
            outcome = "exited" if code >= 0 else "killed"
    return RESULT.pack(OUTCOMES.index(outcome), abs(code), cpu, wall)


def serve(peer: socket.socket, layers: Layers) -> None:
    """Runs, one at a time, until the other side is gone."""
    server = os.getpid()
    while True:
        raw = receive(peer, HEADER.size)
        if len(raw) < HEADER.size:
            return
        header = HEADER.unpack(raw)
        layers.open_scratch()
        status_read, status = os.pipe()
        out_read, out = os.pipe()
        error_read, error = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(server, peer, status, out, error, layers, header)
        for end in (status, out, error):
            os.close(end)
        problem = os.read(status_read, 4096)  # until the child says what failed, or closes it to begin
        if problem:
            os.waitpid(pid, 0)
            peer.sendall(RESULT.pack(OUTCOMES.index("broken"), 0, 0.0, 0.0) + PART.pack(0) + PART.pack(len(problem)))
            peer.sendall(problem)
            return  # how much of the body it read is unknown
        output_bytes = header[4]
        captured_out, captured_error = Captured(out_read, output_bytes + PIPE), Captured(error_read, STDERR_KEPT)
        reply = supervise(peer, layers, pid, header, captured_out, captured_error)
        for end in (status_read, out_read, error_read):
            os.close(end)
        layers.discard_scratch()
        peer.sendall(reply)
        captured_out.send(peer, output_bytes)
        captured_error.send(peer, 2 * STDERR_KEPT)


def main(descriptor: int, folder: str, packages: str, without: tuple[str, ...] = ()) -> None:
    """Serve on the socket `descriptor`. folder: an empty one of its own.
    packages: the folder of installed packages, of which programs see MODULES."""
    import importlib
    import site

    isolation.LIBC.prctl(1, int(signal.SIGKILL), 0, 0, 0)  # ends with its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's business
    site.setquit()  # `exit` and `quit`, of which -S leaves programs without
    site.setcopyright()
    sys.setrecursionlimit(1000)
    for name in WARM:
        importlib.import_module(name)
    peer = socket.socket(fileno=descriptor)
    os.umask(0o022)
    layers = Layers(folder, packages, without)
    told = json.dumps(layers.describe()).encode()
    peer.sendall(PART.pack(len(told)) + told)
    sys.path[:] = [layers.scratch, *(path for path in sys.path if path), layers.packages]
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    _streams()
    OURS.extend(name for name in sys.modules if name.startswith("gym_servers"))
    gc.collect()
    gc.freeze()
    serve(peer, layers)
