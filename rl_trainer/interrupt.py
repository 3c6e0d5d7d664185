"""Ctrl-C and SIGTERM: at once, but never in the middle of a call into Ray.

KeyboardInterrupt raised inside one of Ray's callbacks is swallowed (the run goes on) or ends the process by abort, with everything that
it started left behind. Such calls stand in `held()`: a signal that comes meanwhile is raised when the block is left.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of this process. Handlers run in the main thread only, as do the calls that hold them."""

    def __init__(self) -> None:
        self._requested = False
        self._holders = 0
        self._installed = False

    def _handle(self, number: int, frame: object) -> None:
        self._requested = True
        self._raise()

    def _raise(self) -> None:
        if self._requested and not self._holders:
            self._requested = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both signals inside the block, as before after it."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._installed = True
        try:
            yield
        finally:
            self._installed = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def claim(self) -> None:
        """Take the signals back from a library that set handlers of its own, as ray.init does for SIGTERM."""
        if self._installed:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No KeyboardInterrupt inside the block; one that is due is raised at its end."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        self._raise()


INTERRUPTS = Interrupts()
