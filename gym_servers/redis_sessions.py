"""Sessions in Redis, for servers of several processes or replicas (sessions.py has them in memory; both agree, tests hold it).

`omnigym:session:<name>` is a string: the version (8 bytes, big-endian), a tag, and what was pickled. The tag signs name, version and
content with the deployment's secret: nothing is unpickled that this deployment did not write. `omnigym:sessions` is a sorted set of
the open sessions' names by the moment (ms, Redis's clock) when they end: it counts them exactly, at about 120 bytes a session, and is
what the bound is held against. One script a request changes both together. Redis drops by itself what nobody used for the TTL.
"""

from __future__ import annotations

import pickle
import struct

from gym_servers.protocol import Failure, FailureError
from gym_servers.redis_link import PREFIX, RedisLink
from gym_servers.sessions import MAX_SESSIONS, TTL_SECONDS, Session, too_many
from gym_servers.signing import SignatureError, seal, unseal

INDEX = f"{PREFIX}sessions"
_VERSION = struct.Struct(">Q")
_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000);"

# KEYS: session, index. ARGV: name, TTL in ms.
_LOAD = f"""{_NOW}
local value = redis.call('GET', KEYS[1])
if not value then redis.call('ZREM', KEYS[2], ARGV[1]); return false end
redis.call('PEXPIREAT', KEYS[1], now + ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return value"""

# ARGV: name, TTL in ms, the version that is replaced ('' for none), the value, most sessions.
_STORE = f"""{_NOW}
local found = redis.call('GETRANGE', KEYS[1], 0, {_VERSION.size - 1})
if found == '' then redis.call('ZREM', KEYS[2], ARGV[1]) end
if found ~= ARGV[3] then return 0 end
if found == '' and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return -1 end
end
redis.call('SET', KEYS[1], ARGV[4])
redis.call('PEXPIREAT', KEYS[1], now + ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return 1"""

_DROP = "redis.call('UNLINK', KEYS[1]); redis.call('ZREM', KEYS[2], ARGV[1])"
_REAP = f"{_NOW} return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)"


class RedisSessions:
    """A SessionStore. All of its methods raise FailureError where Redis cannot be reached."""

    def __init__(
        self, link: RedisLink, secret: str, ttl_seconds: float = TTL_SECONDS, limit: int = MAX_SESSIONS
    ) -> None:
        self.link, self.secret = link, secret
        self.ttl_seconds, self.limit = ttl_seconds, limit
        self._ttl_ms = max(1, round(1000 * ttl_seconds))

    def _keys(self, name: str) -> tuple[str, str]:
        return f"{PREFIX}session:{name}", INDEX

    async def load(self, name: str) -> Session | None:
        """Raises FailureError, not to be retried, for a value that this deployment did not write."""
        value: bytes | None = await self.link.run(_LOAD, self._keys(name), (name, self._ttl_ms))
        if value is None:
            return None
        try:
            (version,) = _VERSION.unpack_from(value)
            state, replies = pickle.loads(unseal(value[_VERSION.size :], self._what(name, version), self.secret))
        except (SignatureError, struct.error) as error:
            message = f"session '{name}' in Redis is not one that this deployment wrote ({error}): seed_session again"
            raise FailureError(Failure(kind="environment_down", message=message, retryable=False)) from None
        return Session(state, replies, version)

    async def store(self, name: str, session: Session) -> bool:
        version = session.version + 1
        content = pickle.dumps((session.state, session.replies), pickle.HIGHEST_PROTOCOL)
        value = _VERSION.pack(version) + seal(content, self._what(name, version), self.secret)
        replaced = _VERSION.pack(session.version) if session.version else b""
        stored: int = await self.link.run(_STORE, self._keys(name), (name, self._ttl_ms, replaced, value, self.limit))
        if stored == -1:
            raise too_many(self.limit)
        return stored == 1

    async def drop(self, name: str) -> None:
        await self.link.run(_DROP, self._keys(name), (name,))

    async def reap(self) -> int:
        """Redis has dropped the sessions: what goes is their place in the index."""
        dropped: int = await self.link.run(_REAP, (INDEX,), ())
        return dropped

    def _what(self, name: str, version: int) -> str:
        return f"session {name} {version}"
