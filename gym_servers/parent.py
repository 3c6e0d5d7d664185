"""No process outlives the one that started it."""

from __future__ import annotations

import ctypes
import signal

_LIBC = ctypes.CDLL(None)  # loaded before a fork: a child between fork and exec may not
_PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """This process gets the signal `by` when the thread that started it ends (PR_SET_PDEATHSIG)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)
