"""The Redis that the processes and replicas of a deployment share: sessions and idempotency keys, nothing else.

`OMNIGYM_REDIS_URL` says where (`redis://host:port/db`; `rediss` for TLS), `OMNIGYM_REDIS_PASSWORD` (or a file) is its password, which
so stands in no URL, log or list of processes. What goes wrong with it is a failure that is worth a retry. Nothing is sent twice from
here: whether a write that was cut off took place, only the one who repeats its request can find out. Not for Redis Cluster: the scripts
touch a session and the index of all sessions together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from gym_servers.protocol import Failure, FailureError, OmnigymError
from gym_servers.variables import variable

PREFIX = "omnigym:"
"""Every key begins so."""
URL, PASSWORD = "OMNIGYM_REDIS_URL", "OMNIGYM_REDIS_PASSWORD"
CONNECT_SECONDS, REPLY_SECONDS = 2.0, 5.0
CONNECTIONS = 64
"""Of one server process; further commands wait for one of them, REPLY_SECONDS at most."""


class RedisLink:
    """Connections to one Redis, made when they are needed. Raises OmnigymError for a URL that is none."""

    def __init__(self, url: str, password: str | None = None) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise OmnigymError(
                f"{URL} has a user or password in it, which logs would show: put it into {PASSWORD}(_FILE)"
            )
        try:
            host, port = parts.hostname, parts.port or 6379
            database = int(parts.path.strip("/") or 0)
        except ValueError:
            host = None
        if parts.scheme not in ("redis", "rediss") or not host or parts.query or parts.fragment:
            raise OmnigymError(f"{URL} '{url}': must be redis://host:port/db, such as redis://127.0.0.1:6379/0")
        self.address = f"{host}:{port}"
        pool = BlockingConnectionPool.from_url(
            f"{parts.scheme}://{parts.netloc}/{database}",
            password=password,
            max_connections=CONNECTIONS,
            timeout=REPLY_SECONDS,
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._redis: Redis = Redis(connection_pool=pool)

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """What a Lua script answers (bytes for a string). Raises FailureError."""
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            try:
                return await self._redis.evalsha(digest, len(keys), *keys, *arguments)
            except NoScriptError:  # the first time, and after a restart
                return await self._redis.eval(script, len(keys), *keys, *arguments)
        except (RedisError, OSError) as error:
            raise self._failure(error) from None

    async def check(self) -> None:
        """Raises FailureError where Redis does not answer."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise self._failure(error) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _failure(self, error: Exception) -> FailureError:
        wrong = str(error).startswith("WRONGTYPE")  # others write under our prefix
        message = f"Redis at {self.address} does not answer as it should: {type(error).__name__}: {error}"
        return FailureError(Failure(kind="environment_down", message=message, retryable=not wrong))


def from_variables() -> RedisLink | None:
    """The Redis that the environment variables name; None where they name none. Raises OmnigymError."""
    url = variable(URL)
    return RedisLink(url, variable(PASSWORD)) if url else None
