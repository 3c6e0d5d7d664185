"""Sessions of a resources server: the state of one episode between its requests.

A session's state is kept pickled. A call works on a copy of its own and stores it with the version it had loaded
(compare-and-swap), so two calls of one session cannot undo each other, and one that fails changes nothing. A state that is
large and shared should pickle to what changed (`__getstate__`), which then also is its memory here.

A session that nobody used for the TTL is dropped by a reaper that always runs, whoever opened it and went away; their
number is bounded. Ids are random and signed with the deployment's secret: one that was not given out is refused unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from gym_servers.protocol import Failure, FailureError
from gym_servers.signing import SignatureError, check_session_id, sign_session_id

TTL_SECONDS = 3600.0
MAX_SESSIONS = 100_000
MAX_REPLIES = 32
"""How many of a session's latest tool outputs are kept for requests that come a second time."""


Reply = tuple[str, bytes]
"""Media type and body of a tool's output."""


@dataclass(frozen=True)
class Session:
    """state: pickled. replies: outputs of the latest tool calls by idempotency key. version: 0 before it is stored."""

    state: bytes
    replies: dict[str, Reply] = field(default_factory=dict)
    version: int = 0

    def after(self, state: bytes, key: str | None, reply: Reply) -> Session:
        """The session once a call with `key` has answered `reply`; the version stays that of what was loaded."""
        replies = self.replies
        if key is not None:
            replies = {**replies, key: reply}
            while len(replies) > MAX_REPLIES:
                del replies[next(iter(replies))]
        return Session(state, replies, self.version)


class SessionStore(Protocol):
    """Where sessions are: memory, or something that several workers share. ttl_seconds: how long one may be idle."""

    ttl_seconds: float

    async def load(self, name: str) -> Session | None:
        """The session, which counts as used now; None where there is none (any more)."""
        ...

    async def store(self, name: str, session: Session) -> bool:
        """Replace the version that `session.version` names (0: there must be none). False where another one is there.

        Raises FailureError where no further session fits.
        """
        ...

    async def drop(self, name: str) -> None:
        """Forget a session; no error where there is none."""
        ...

    async def reap(self) -> int:
        """Drop the sessions that were idle for too long; how many."""
        ...


class MemorySessions:
    """Sessions of one process. The order is that of last use, so the idle ones are found without a search."""

    def __init__(self, ttl_seconds: float = TTL_SECONDS, limit: int = MAX_SESSIONS) -> None:
        self.ttl_seconds, self.limit = ttl_seconds, limit
        self._sessions: OrderedDict[str, tuple[float, Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def _find(self, name: str) -> Session | None:
        found = self._sessions.get(name)
        if found is None or found[0] < time.monotonic() - self.ttl_seconds:
            self._sessions.pop(name, None)
            return None
        return found[1]

    async def load(self, name: str) -> Session | None:
        found = self._find(name)
        if found is not None:
            self._touch(name, found)
        return found

    async def store(self, name: str, session: Session) -> bool:
        found = self._find(name)
        if (found.version if found is not None else 0) != session.version:
            return False
        if found is None and len(self._sessions) >= self.limit:
            await self.reap()
            if len(self._sessions) >= self.limit:
                raise too_many(self.limit)
        self._touch(name, Session(session.state, session.replies, session.version + 1))
        return True

    async def drop(self, name: str) -> None:
        self._sessions.pop(name, None)

    async def reap(self) -> int:
        limit, dropped = time.monotonic() - self.ttl_seconds, 0
        while self._sessions and next(iter(self._sessions.values()))[0] < limit:
            self._sessions.popitem(last=False)
            dropped += 1
        return dropped

    def _touch(self, name: str, session: Session) -> None:
        self._sessions[name] = (time.monotonic(), session)
        self._sessions.move_to_end(name)


async def reap_for_ever(store: SessionStore, seconds: float) -> None:
    """Reap every `seconds`."""
    while True:
        await asyncio.sleep(seconds)
        with contextlib.suppress(FailureError):  # a store that is away may be back next time
            await store.reap()


def too_many(limit: int) -> FailureError:
    """What a session that does not fit gets."""
    message = f"{limit} sessions are open: verify or abandon some, or raise the limit"
    return FailureError(Failure(kind="environment_down", message=message))


def new_session(environment: str, secret: str) -> tuple[str, str]:
    """(name in the store, signed id for the client) of a new session of `environment`."""
    name = f"{environment}/{secrets.token_hex(16)}"
    return name, sign_session_id(name, secret)


def session_name(signed: str, environment: str, secret: str) -> str:
    """The name in the store. Raises FailureError for an id that this deployment did not give out for `environment`."""
    try:
        name = check_session_id(signed, secret)
    except SignatureError as error:
        raise FailureError(Failure(kind="environment_down", message=str(error), retryable=False)) from None
    if name.rpartition("/")[0] != environment:
        message = f"the session is not one of environment '{environment}': seed_session again"
        raise FailureError(Failure(kind="environment_down", message=message, retryable=False))
    return name


def lost(environment: str) -> FailureError:
    """What a request for a session that is gone gets. Never a verdict: the state that it is about is not known."""
    message = f"environment '{environment}': the session has ended or expired: seed_session again"
    return FailureError(Failure(kind="environment_down", message=message, retryable=False))
