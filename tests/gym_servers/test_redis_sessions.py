"""Sessions in a real Redis: they behave as those in memory, one writer wins, and nothing is unpickled that others wrote."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis_server import PASSWORD as REDIS_PASSWORD
from redis_server import RedisServer, redis_server

from gym_servers.protocol import FailureError, OmnigymError
from gym_servers.redis_link import RedisLink, from_variables
from gym_servers.redis_sessions import INDEX, RedisSessions
from gym_servers.sessions import MemorySessions, Session, SessionStore
from gym_servers.signing import SignatureError, seal, unseal

__all__ = ["redis_server"]
TTL = 100_000.0
LIMIT = 3
Result = TypeVar("Result")


class Clock:
    """Stands for the module `time`."""

    now = 1e9

    def monotonic(self) -> float:
        return self.now


class Agreement(RuleBasedStateMachine):
    """The same operations on both stores. Time passes by moving memory's clock, and every end that Redis has noted."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server, self.clock = server, Clock()
        server.client.flushall()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("gym_servers.sessions.time", self.clock)
        self.runner = asyncio.Runner()
        self.link = RedisLink(server.url, server.password)
        self.memory = MemorySessions(TTL, LIMIT)
        self.redis = RedisSessions(self.link, "secret", TTL, LIMIT)
        self.loaded: list[tuple[str, Session]] = []

    def teardown(self) -> None:
        self.runner.run(self.link.close())
        self.runner.close()
        self.patch.undo()

    def both(self, act: Callable[[SessionStore], Awaitable[Result]]) -> Result | str:
        """What both answer, or the message of the failure that both raise."""

        async def answer(store: SessionStore) -> Result | str:
            try:
                return await act(store)
            except FailureError as error:
                return str(error)

        ours, theirs = self.runner.run(answer(self.memory)), self.runner.run(answer(self.redis))
        assert ours == theirs
        return ours

    names = st.sampled_from("abcde")

    @rule(name=names)
    def load(self, name: str) -> None:
        session = self.both(lambda store: store.load(name))
        if isinstance(session, Session):
            self.loaded.append((name, session))

    @rule(name=names, state=st.binary(max_size=4))
    def open(self, name: str, state: bytes) -> None:
        self.both(lambda store: store.store(name, Session(state)))

    @precondition(lambda self: self.loaded)
    @rule(which=st.integers(0, 1000), state=st.binary(max_size=4), key=st.none() | st.sampled_from("xy"))
    def change(self, which: int, state: bytes, key: str | None) -> None:
        name, session = self.loaded[-1 - which % len(self.loaded)]  # of any age: most are stale
        self.both(lambda store: store.store(name, session.after(state, key, ("text/plain", state))))

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.both(lambda store: store.drop(name))

    @rule()
    def reap(self) -> None:
        self.both(lambda store: store.reap())

    @rule(seconds=st.sampled_from([40_000, 70_000]))  # sums that are far from the TTL, however slow the machine
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        client = self.server.client
        for name in client.zrange(INDEX, 0, -1):
            client.zincrby(INDEX, -1000 * seconds, name)
            key = b"omnigym:session:" + name
            if client.exists(key):
                client.pexpire(key, client.pttl(key) - 1000 * seconds)

    @invariant()
    def as_many(self) -> None:
        client = self.server.client
        assert client.zcard(INDEX) == len(self.memory) <= LIMIT
        seconds, microseconds = client.time()
        now = 1000 * seconds + microseconds // 1000
        ends = {name: end - now for name, end in client.zrange(INDEX, 0, -1, withscores=True) if end > now}
        left = {key.partition(b":session:")[2]: client.pttl(key) for key in client.keys("omnigym:session:*")}
        assert set(left) == set(ends)  # the index knows when each ends
        assert all(abs(left[name] - ends[name]) < 1e6 for name in ends)  # far less than the shortest wait


def test_memory_and_redis_agree(redis_server: RedisServer) -> None:
    run = settings(max_examples=20, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(lambda: Agreement(redis_server), settings=run)


def use(
    server: RedisServer, act: Callable[[RedisSessions], Awaitable[Result]], secret: str = "secret", **options: Any
) -> Result:
    """`act` on a store of its own."""

    async def run() -> Result:
        link = RedisLink(server.url, server.password)
        try:
            return await act(RedisSessions(link, secret, **options))
        finally:
            await link.close()

    return asyncio.run(run())


def test_of_many_writers_one_wins(redis_server: RedisServer) -> None:
    async def run(store: RedisSessions) -> None:
        others = [RedisSessions(RedisLink(redis_server.url, redis_server.password), "secret") for _ in range(4)]
        for number in range(30):
            name = f"race{number}"
            opened = await asyncio.gather(*(one.store(name, Session(b"new")) for one in others))
            assert sum(opened) == 1
            read = await asyncio.gather(*(one.load(name) for one in others))
            assert {session.version for session in read if session is not None} == {1}
            written = await asyncio.gather(
                *(
                    one.store(name, session.after(bytes([k]), None, ("", b"")))
                    for k, (one, session) in enumerate(zip(others, read, strict=True))
                    if session is not None
                )
            )
            assert sum(written) == 1
            now = await store.load(name)
            assert now is not None and now.state == bytes([written.index(True)]) and now.version == 2
        for one in others:
            await one.link.close()

    use(redis_server, run)


def test_redis_itself_drops_what_is_idle(redis_server: RedisServer) -> None:
    async def run(store: RedisSessions) -> None:
        await store.store("idle", Session(b"1"))
        while redis_server.client.exists("omnigym:session:idle"):
            await asyncio.sleep(0.05)
        assert await store.load("idle") is None
        assert redis_server.client.zscore(INDEX, "idle") is None

    use(redis_server, run, ttl_seconds=0.2)


def test_use_postpones_the_end(redis_server: RedisServer) -> None:
    async def run(store: RedisSessions) -> None:
        client, key = redis_server.client, "omnigym:session:used"
        await store.store("used", Session(b"1"))
        session = await store.load("used")
        assert session is not None
        for use_it in (lambda: store.load("used"), lambda: store.store("used", session)):
            client.pexpire(key, 1000 * 100)
            assert await use_it()
            assert client.pttl(key) > 1000 * 1000

    use(redis_server, run, ttl_seconds=TTL)


class Planted:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "kind", ["planted", "other secret", "of another session", "other version", "one bit", "short", "empty tag"]
)
def test_what_others_wrote_is_never_unpickled(redis_server: RedisServer, tmp_path: Any, kind: str) -> None:
    victim, other = b"omnigym:session:victim", b"omnigym:session:other"
    client = redis_server.client
    client.flushall()

    async def open_two(store: RedisSessions) -> None:
        await store.store("victim", Session(b"v"))
        await store.store("other", Session(b"o"))

    use(redis_server, open_two)
    value = client.get(victim)
    assert isinstance(value, bytes)
    planted = pickle.dumps((Planted(str(tmp_path / "planted")), {}))
    forged = {
        "planted": value[:40] + planted,
        "other secret": value[:8] + seal(planted, "session victim 1", "not the secret"),
        "of another session": client.get(other),
        "other version": (7).to_bytes(8, "big") + value[8:],
        "one bit": value[:-1] + bytes([value[-1] ^ 1]),
        "short": value[:3],
        "empty tag": value[:8],
    }[kind]
    assert isinstance(forged, bytes)
    client.set(victim, forged)
    with pytest.raises(FailureError, match="not one that this deployment wrote") as refused:
        use(redis_server, lambda store: store.load("victim"))
    assert not refused.value.failure.retryable
    assert not (tmp_path / "planted").exists()
    session = use(redis_server, lambda store: store.load("other"))
    assert session is not None and session.state == b"o"


def test_a_value_of_another_type_is_a_failure_that_no_retry_mends(redis_server: RedisServer) -> None:
    redis_server.client.rpush("omnigym:session:list", "x")
    with pytest.raises(FailureError, match="WRONGTYPE") as refused:
        use(redis_server, lambda store: store.load("list"))
    assert not refused.value.failure.retryable


def test_a_seal_is_for_its_name_and_secret() -> None:
    sealed = seal(b"content", "a", "s")
    assert unseal(sealed, "a", "s") == b"content"
    for what, secret in (("b", "s"), ("a", "t")):
        with pytest.raises(SignatureError):
            unseal(sealed, what, secret)
    with pytest.raises(SignatureError):
        unseal(b"", "a", "s")


def test_requests_that_are_given_up_leave_no_answer_to_others(redis_server: RedisServer) -> None:
    """A command that is cancelled while its reply is on the way must not lend that reply to the next user of its connection."""

    async def run(store: RedisSessions) -> None:
        for name in "pq":
            await store.store(name, Session(name.encode() * 2000))
        for turn in range(60):
            given_up = [asyncio.create_task(store.load("p")) for _ in range(4)]
            for _ in range(turn % 12):
                await asyncio.sleep(0)
            for task in given_up:
                task.cancel()
            await asyncio.gather(*given_up, return_exceptions=True)
            session = await store.load("q")
            assert session is not None and session.state == b"q" * 2000

    use(redis_server, run)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:pass@127.0.0.1:6379/0", "put it into OMNIGYM_REDIS_PASSWORD"),
        ("redis://user@127.0.0.1", "put it into OMNIGYM_REDIS_PASSWORD"),
        ("127.0.0.1:6379", "must be redis://host:port/db"),
        ("http://127.0.0.1:6379", "must be redis://host:port/db"),
        ("redis://127.0.0.1:port", "must be redis://host:port/db"),
        ("redis://127.0.0.1/sessions", "must be redis://host:port/db"),
        ("redis://127.0.0.1/0?db=1", "must be redis://host:port/db"),
        ("redis:///0", "must be redis://host:port/db"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(OmnigymError, match=said) as refused:
        RedisLink(url)
    assert "pass@" not in str(refused.value)


def test_the_password_is_a_variable_or_a_file_and_in_no_message(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert from_variables() is None
    monkeypatch.setenv("OMNIGYM_REDIS_URL", redis_server.url)
    for content, right in ((REDIS_PASSWORD, True), ("another password", False)):
        (tmp_path / "password").write_text(content + "\n")
        monkeypatch.setenv("OMNIGYM_REDIS_PASSWORD_FILE", str(tmp_path / "password"))
        link = from_variables()
        assert link is not None

        async def check(link: RedisLink = link) -> str:
            try:
                await link.check()
            except FailureError as error:
                return str(error)
            finally:
                await link.close()
            return ""

        message = asyncio.run(check())
        assert (message == "") is right
        assert content not in message and (right or f"127.0.0.1:{redis_server.port}" in message)
