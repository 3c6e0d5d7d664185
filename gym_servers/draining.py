"""How every server process ends: told to stop, it refuses new requests and finishes those in flight."""

from __future__ import annotations

from typing import Any

import uvicorn

from gym_servers.base import BACKLOG, Guard


class DrainingServer(uvicorn.Server):  # type: ignore[misc]  # uvicorn is not followed by mypy
    """uvicorn over `guard`. From a signal to stop on, new requests are told to come again; those in flight have `seconds`."""

    def __init__(self, guard: Guard, seconds: int) -> None:
        super().__init__(
            uvicorn.Config(
                guard, log_level="warning", access_log=False, timeout_graceful_shutdown=seconds, backlog=BACKLOG
            )
        )
        self.guard = guard

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.guard.draining = True
        super().handle_exit(sig, frame)
