"""How long a request may still take: a header between servers, a context variable inside one.

The base server ends a request at its deadline, and calls that it makes to other servers carry what is left of it.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

from gym_servers.protocol import OmnigymError

HEADER = "X-Deadline-Seconds"
_MOMENT: ContextVar[float] = ContextVar("deadline", default=math.inf)

enter = _MOMENT.set
leave = _MOMENT.reset


def moment() -> float:
    """When the request that is being answered must be over, on time.monotonic's clock; infinity outside of one."""
    return _MOMENT.get()


def seconds_of(header: bytes | None, limit: float) -> float:
    """Seconds that a request with this header may take, at most `limit`. Raises OmnigymError for what is no number."""
    if header is None:
        return limit
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise OmnigymError(f"header {HEADER}: must be a number of seconds, found {header[:40]!r}")
    return min(max(seconds, 0.0), limit)


def after(seconds: float) -> float:
    """The moment in `seconds` from now, or the present request's own where that is sooner."""
    return min(time.monotonic() + seconds, _MOMENT.get())
