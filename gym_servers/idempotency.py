"""Answers by idempotency key: a request that comes a second time gets the stored answer, or waits for the one under way."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gym_servers.protocol import Failure, FailureError

Answer = TypeVar("Answer")


class Once(Generic[Answer]):
    """The latest `limit` answers, the oldest forgotten first, and those under way. A failure is not stored: the next request
    tries again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._stored: OrderedDict[str, asyncio.Future[Answer]] = OrderedDict()

    def forget(self, key: str) -> None:
        """The next request with `key` is a new one; those that wait for the present answer still get it."""
        self._stored.pop(key, None)

    async def __call__(self, key: str | None, make: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer stored under `key`, else what `make()` gives. Without a key nothing is stored."""
        if key is None:
            return await make()
        stored = self._stored.get(key)
        if stored is not None:
            return await asyncio.shield(stored)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._stored[key] = future
        while len(self._stored) > self.limit and next(iter(self._stored.values())).done():
            self._stored.popitem(last=False)
        try:
            answer = await make()
        except BaseException as error:
            if self._stored.get(key) is future:
                del self._stored[key]
            if not isinstance(
                error, Exception
            ):  # this request ran out of time or was given up: those that wait may try
                message = "the request that was answering this key was given up: send it again"
                future.set_exception(FailureError(Failure(kind="cancelled", message=message)))
            else:
                future.set_exception(error)
            future.exception()  # nobody else may be waiting
            raise
        future.set_result(answer)
        return answer
