"""One answer to a key, whichever process is asked, whoever dies, and whatever becomes of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis_server import RedisServer, redis_server

from gym_servers.protocol import Failure, FailureError
from gym_servers.redis_link import RedisLink
from gym_servers.redis_once import SharedOnce

__all__ = ["redis_server"]
Answer = dict[str, Any]
Act = Callable[[list[SharedOnce]], Awaitable[None]]


def with_processes(server: RedisServer, act: Act, lease_seconds: float = 60.0) -> None:
    """`act` on three of them that share nothing but Redis."""
    server.client.flushall()

    async def run() -> None:
        links = [RedisLink(server.url, server.password) for _ in range(3)]
        await act([SharedOnce(100, link, "secret", "toy", lease_seconds=lease_seconds) for link in links])
        for link in links:
            await link.close()

    asyncio.run(run())


class Maker:
    """Answers that differ: the n-th says n. It may wait until it is let go, and fail."""

    def __init__(self, waits: bool = False) -> None:
        self.made = 0
        self.failures: list[Exception] = []
        self.go = asyncio.Event()
        if not waits:
            self.go.set()

    async def __call__(self) -> Answer:
        self.made += 1
        number = self.made
        await self.go.wait()
        if self.failures:
            raise self.failures.pop()
        return {"reward": number / 10, "parts": {"n": number}}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


FIRST = {"reward": 0.1, "parts": {"n": 1}}


def test_a_repeated_key_gets_the_stored_answer_from_every_process(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker()
        assert [await one("k", make) for one in (*processes, *processes)] == [FIRST] * 6
        assert make.made == 1
        assert (await processes[0]("other", make))["parts"] == {"n": 2}
        assert (await processes[1](None, make))["parts"] == {"n": 3}  # without a key nothing is kept

    with_processes(redis_server, act)
    ttls = [redis_server.client.pttl(key) for key in redis_server.client.keys("omnigym:once:*")]
    assert len(ttls) == 2 and all(0 < ttl <= 3_600_000 for ttl in ttls)


def test_keys_are_of_their_environment_and_are_not_shown(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker()
        other = SharedOnce(100, processes[1].link, "secret", "another")
        key = "k\ud800" * 10_000
        assert await processes[0](key, make) == FIRST
        assert (await other(key, make))["parts"] == {"n": 2}
        assert all(len(name) < 120 for name in redis_server.client.keys("*"))

    with_processes(redis_server, act)


def test_those_that_come_meanwhile_wait_for_the_one_answer(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker(waits=True)
        asked = [asyncio.create_task(one("k", make)) for one in processes * 4]
        await until(lambda: make.made == 1)
        await asyncio.sleep(0.3)
        make.go.set()
        assert await asyncio.gather(*asked) == [FIRST] * 12
        assert make.made == 1

    with_processes(redis_server, act)


def test_a_failure_is_not_kept_and_the_next_one_tries(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker(waits=True)
        make.failures.append(FailureError(Failure(kind="judge_failed", message="no label")))
        first = asyncio.create_task(processes[0]("k", make))
        await until(lambda: make.made == 1)
        second = asyncio.create_task(processes[1]("k", make))
        await asyncio.sleep(0.2)
        make.go.set()
        with pytest.raises(FailureError, match="no label"):
            await first
        assert (await second)["parts"] == {"n": 2}
        assert (await processes[0]("k", make))["parts"] == {"n": 2}

    with_processes(redis_server, act)


def test_one_that_is_given_up_leaves_its_place_to_others(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker(waits=True)
        first = asyncio.create_task(processes[0]("k", make))
        await until(lambda: make.made == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        make.go.set()
        assert (await processes[1]("k", make))["parts"] == {"n": 2}

    with_processes(redis_server, act)


def test_the_claim_of_a_process_that_died_runs_out(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker()
        assert await processes[0]("k", make) == FIRST
        (place,) = redis_server.client.keys("omnigym:once:*")
        redis_server.client.set(place, b"c" + b"d" * 16, px=300)
        assert (await processes[1]("k", make))["parts"] == {"n": 2}
        assert (await processes[2]("k", make))["parts"] == {"n": 2}

    with_processes(redis_server, act)


def test_a_claim_lives_as_long_as_its_owner_works(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker(waits=True)
        first = asyncio.create_task(processes[0]("k", make))
        await until(lambda: make.made == 1)
        (place,) = redis_server.client.keys("omnigym:once:*")
        claim = redis_server.client.get(place)
        for _ in range(2):  # renewed, and again where Redis has forgotten it
            redis_server.client.delete(place)
            await until(lambda: redis_server.client.get(place) == claim)
        second = asyncio.create_task(processes[1]("k", make))
        make.go.set()
        assert await first == await second
        assert make.made == 1

    with_processes(redis_server, act, lease_seconds=0.9)


@pytest.mark.parametrize("taken", ["answered", "claimed"])
def test_one_that_lost_its_claim_throws_its_answer_away(redis_server: RedisServer, taken: str) -> None:
    """It was stopped for longer than its lease, and another one has taken over."""

    async def act(processes: list[SharedOnce]) -> None:
        slow, quick = Maker(waits=True), Maker(waits=taken == "claimed")
        quick.made = 7
        first = asyncio.create_task(processes[0]("k", slow))
        await until(lambda: slow.made == 1)
        (place,) = redis_server.client.keys("omnigym:once:*")
        redis_server.client.delete(place)
        second = asyncio.create_task(processes[1]("k", quick))
        await until(lambda: quick.made == 8)
        if taken == "answered":
            await second
        slow.go.set()
        await asyncio.sleep(0.2)
        quick.go.set()
        assert await first == await second == {"reward": 0.8, "parts": {"n": 8}}

    with_processes(redis_server, act)


@pytest.mark.parametrize("forged", [b"a", b"a" + b"x" * 80, b'{"reward": 1.0}', b""])
def test_a_forged_answer_is_a_failure(redis_server: RedisServer, forged: bytes) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker()
        await processes[0]("k", make)
        (place,) = redis_server.client.keys("omnigym:once:*")
        redis_server.client.set(place, forged)
        with pytest.raises(FailureError, match="not one that this deployment wrote") as refused:
            await processes[1]("k", make)
        assert not refused.value.failure.retryable

    with_processes(redis_server, act)


def test_an_answer_of_another_key_is_a_failure(redis_server: RedisServer) -> None:
    async def act(processes: list[SharedOnce]) -> None:
        make = Maker()
        await processes[0]("good", make)
        (good,) = redis_server.client.keys("omnigym:once:*")
        await processes[0]("bad", make)
        (bad,) = set(redis_server.client.keys("omnigym:once:*")) - {good}
        redis_server.client.copy(good, bad, replace=True)
        with pytest.raises(FailureError, match="not one that this deployment wrote"):
            await processes[1]("bad", make)

    with_processes(redis_server, act)


def test_an_answer_that_redis_cannot_keep_is_not_given() -> None:
    server = RedisServer()
    try:

        async def act(processes: list[SharedOnce]) -> None:
            make = Maker(waits=True)
            first = asyncio.create_task(processes[0]("k", make))
            await until(lambda: make.made == 1)
            server.kill()
            make.go.set()
            with pytest.raises(FailureError, match=f"Redis at 127.0.0.1:{server.port}") as lost:
                await first
            assert lost.value.failure.retryable
            server.start()
            assert (await processes[1]("k", make))["parts"] == {"n": 2}
            assert (await processes[0]("k", make))["parts"] == {"n": 2}

        with_processes(server, act)
    finally:
        server.close()
