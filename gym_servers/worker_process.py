"""The processes behind gym_servers/workers.py: a nursery that imports once, and the workers it forks.

The nursery (`python -m gym_servers.worker_process FD`) is single-threaded. It imports what it is told to (`warm`), forks a
worker on request and reaps workers when asked, so that a worker's pid cannot be reused before its end was reported. It
ends when its control socket closes or its parent is gone; its workers end with it (PR_SET_PDEATHSIG).

A worker runs one call at a time. Imports (`prepare`) happen before the limits start: they are ours, not the output's.
CPU time is limited by the kernel: ITIMER_PROF counts the process's CPU time and SIGPROF's default action ends it, in the
middle of C code too. Memory is limited by RLIMIT_AS, set to the present size plus the allowed growth before every call.

Not a sandbox: code of the model never runs here, only verifiers reading what the model wrote.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any

from gym_servers.parent import end_with_parent
from gym_servers.protocol import FailureError, RowError

_LENGTH = struct.Struct("!Q")
EXIT_MEMORY = 77
"""Exit code of a worker that had not even the memory to report that it ran out of it."""


def pack(message: Any) -> bytes:
    """One length-prefixed pickled message."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def receive(sock: socket.socket) -> Any:
    """The next message of a blocking socket. Raises EOFError when the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return pickle.loads(_exactly(sock, length))


def _exactly(sock: socket.socket, count: int) -> bytes:
    chunks: list[bytes] = []
    while count:
        chunk = sock.recv(min(count, 1 << 20))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def resolve(target: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _grow_limit(memory_mb: int) -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    soft = pages * resource.getpagesize() + memory_mb * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _lift_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _call(target: str, args: tuple[Any, ...], cpu_seconds: float, memory_mb: int) -> tuple[str, Any]:
    try:
        function = resolve(target)
        prepare = getattr(function, "prepare", None)
        if prepare is not None:
            prepare(*args)
    except (RowError, FailureError) as error:
        return _carried(error)
    except BaseException as error:
        return "setup", f"{type(error).__name__}: {error}"
    try:
        _grow_limit(memory_mb)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a verifier may have left a handler
        signal.setitimer(signal.ITIMER_PROF, max(cpu_seconds, 0.001))
        try:
            result = function(*args)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _lift_limit()
        return "ok", result
    except MemoryError as error:
        return "memory", f"more than {memory_mb} MiB of new memory {error}".rstrip()
    except (RowError, FailureError) as error:
        return _carried(error)
    except BaseException as error:
        return "exception", f"{type(error).__name__}: {error}"[:2000]


def _carried(error: RowError | FailureError) -> tuple[str, Any]:
    return ("row", str(error)) if isinstance(error, RowError) else ("failure", error.failure.model_dump())


def worker_loop(sock: socket.socket) -> None:
    """Serve calls `(target, args, cpu_seconds, memory_mb)` until the pool closes the socket."""
    while True:
        try:
            target, args, cpu_seconds, memory_mb = receive(sock)
        except (EOFError, ConnectionError):
            return
        answer = _call(target, args, cpu_seconds, memory_mb)
        try:
            data = pack(answer)
        except MemoryError:
            os._exit(EXIT_MEMORY)
        except Exception as error:
            data = pack(("setup", f"the result cannot be sent back: {type(error).__name__}: {error}"))
        sock.sendall(data)


def _start_worker(control: socket.socket, fd: int, parent: int) -> None:
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # the nursery died before that
        os._exit(1)
    control.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # when the machine runs out, a worker goes before the servers
    status = 1
    try:
        worker_loop(socket.socket(fileno=fd))
        status = 0
    except MemoryError:
        status = EXIT_MEMORY
    except BaseException:
        status = 1
    finally:
        os._exit(status)


def nursery_loop(control: socket.socket) -> None:
    """Answer `warm`, `fork` (the worker's socket travels as a file descriptor) and `wait` until the pool is gone."""
    parent, me = os.getppid(), os.getpid()
    children: set[int] = set()
    poll = select.poll()
    poll.register(control, select.POLLIN | select.POLLHUP)
    while True:
        if not poll.poll(1000):
            if os.getppid() != parent:  # another process inherited our socket: the pool is gone all the same
                break
            continue
        try:
            command, fds, _, _ = socket.recv_fds(control, 1, 1)
            if not command:
                break
            request = receive(control)
        except (EOFError, ConnectionError):
            break
        reply: Any = None
        if command == b"W":
            target, args = request
            try:
                resolve(target)(*args)
                gc.collect()
                gc.freeze()  # keep the imported pages shared between the workers
            except BaseException as error:
                reply = f"{target}{args!r}: {type(error).__name__}: {error}"
        elif command == b"F":
            pid = os.fork()
            if pid == 0:
                _start_worker(control, fds[0], me)
            children.add(pid)
            reply = pid
        elif command == b"R":
            try:
                _, status, usage = os.wait4(int(request), 0)
                reply = (os.waitstatus_to_exitcode(status), usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
            except ChildProcessError:
                reply = None
            children.discard(int(request))
        for fd in fds:
            os.close(fd)
        try:
            control.sendall(pack(reply))
        except OSError:
            break
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def main() -> None:
    """Entry of the nursery: argv[1] is the control socket's descriptor."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path[:] = receive(control)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)  # a library that prints must not write into a command's output
    nursery_loop(control)
    os._exit(0)


if __name__ == "__main__":
    # Under `-m` this file is `__main__`; workers must use the importable module's classes.
    from gym_servers.worker_process import main as _main

    _main()
