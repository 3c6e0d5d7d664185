"""Answers by idempotency key that several processes share: `Once` (idempotency.py) with Redis behind it.

Who answers a key first claims it, for a lease that it renews; the others wait until the answer is there, or the claim is gone (its process
died, or failed) and then try themselves. Whoever has an answer settles it: the one that is stored first is the answer, and any other is
thrown away, so that no two callers of a key get different ones. Values are a claim, or an answer sealed with the deployment's secret, and
are forgotten after the TTL. Keys are digests: callers choose how long theirs are, and may keep them to themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from gym_servers.idempotency import Once
from gym_servers.protocol import Failure, FailureError
from gym_servers.redis_link import PREFIX, RedisLink
from gym_servers.sessions import TTL_SECONDS
from gym_servers.signing import SignatureError, seal, unseal

LEASE_SECONDS = 6.0
"""How long a claim outlives its process."""
POLL_SECONDS = 0.1
_CLAIM, _ANSWER = b"c", b"a"

# KEYS: place. ARGV: our claim, a time in ms[, the answer].
# What is there; ours where nothing was.
_TAKE = """local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]"""
_SETTLE = """local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return ARGV[3]"""
_LEAVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class SharedOnce(Once[dict[str, Any]]):
    """Answers are JSON objects. name: of whom they are; limit: of those that this process keeps by itself."""

    def __init__(
        self,
        limit: int,
        link: RedisLink,
        secret: str,
        name: str,
        ttl_seconds: float = TTL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        super().__init__(limit)
        self.link, self.secret, self.name = link, secret, name
        self._ttl_ms, self._lease_ms = round(1000 * ttl_seconds), round(1000 * lease_seconds)

    async def __call__(self, key: str | None, make: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Raises FailureError where Redis cannot be reached: an answer that nobody could repeat is not given."""
        if key is None:
            return await make()
        return await super().__call__(key, lambda: self._shared(key, make))

    async def _shared(self, key: str, make: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        digest = hmac.digest(self.secret.encode(), key.encode(errors="surrogatepass"), "sha256").hex()
        place = f"{PREFIX}once:{self.name}:{digest}"
        claim = _CLAIM + secrets.token_bytes(16)
        while True:
            held: bytes = await self.link.run(_TAKE, (place,), (claim, self._lease_ms))
            if held == claim:
                held = await self._answer(place, claim, make)
            if not held.startswith(_CLAIM):
                return self._read(place, held)
            await asyncio.sleep(POLL_SECONDS)

    async def _answer(self, place: str, claim: bytes, make: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
        """What stands at `place` once `make` has answered: its answer, unless another was there."""
        renewing = asyncio.create_task(self._renew(place, claim))
        try:
            content = orjson.dumps(await make(), option=orjson.OPT_NON_STR_KEYS)
        except BaseException:
            with contextlib.suppress(FailureError):  # then the lease runs out
                await self.link.run(_LEAVE, (place,), (claim,))
            raise
        finally:
            renewing.cancel()
        answer = _ANSWER + seal(content, place, self.secret)
        settled: bytes = await self.link.run(_SETTLE, (place,), (claim, self._ttl_ms, answer))
        return settled

    async def _renew(self, place: str, claim: bytes) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            with contextlib.suppress(FailureError):  # it may be back next time
                await self.link.run(_TAKE, (place,), (claim, self._lease_ms))

    def _read(self, place: str, held: bytes) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = orjson.loads(unseal(held[1:], place, self.secret))
        except SignatureError as error:
            message = f"the answer stored for this idempotency key is not one that this deployment wrote ({error})"
            raise FailureError(Failure(kind="environment_down", message=message, retryable=False)) from None
        return answer
