"""No process outlives the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

_LIBC = ctypes.CDLL(None)  # loaded before a fork: a child between fork and exec may not
_PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """This process gets the signal `by` when the thread that started it ends (PR_SET_PDEATHSIG)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)


def end_with_input() -> str:
    """The first line of standard input; this process gets SIGTERM when its input ends. For where the parent is on the other side of
    a container: its death closes what it holds, and so the input."""
    first = sys.stdin.readline().strip()

    def follow() -> None:
        with contextlib.suppress(OSError):
            while sys.stdin.readline():
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True, name="end-with-input").start()
    return first
