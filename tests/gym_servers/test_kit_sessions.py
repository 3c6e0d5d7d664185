"""Sessions: signed, versioned, bounded, never leaked; over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit_toys import TillEnvironment, installed, message, serving

from gym_servers.base import ServerSettings
from gym_servers.protocol import FailureError
from gym_servers.resources import build_resources
from gym_servers.sessions import MAX_REPLIES, MemorySessions, Session, new_session, session_name
from gym_servers.signing import SignatureError, check_rollout_id, check_session_id, sign_rollout_id


class Clock:
    """Stands for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gym_servers.sessions.time", made)
    return made


async def held(store: MemorySessions, name: str) -> bytes | None:
    session = await store.load(name)
    return None if session is None else session.state


def test_only_the_version_that_was_loaded_is_replaced() -> None:
    async def run() -> None:
        store = MemorySessions()
        assert await store.store("a", Session(b"1"))
        assert not await store.store("a", Session(b"again"))  # version 0: there must be none
        mine, yours = await store.load("a"), await store.load("a")
        assert mine is not None and yours is not None and mine.version == 1
        assert await store.store("a", mine.after(b"mine", None, ("", b"")))
        assert not await store.store("a", yours.after(b"yours", None, ("", b"")))
        assert await held(store, "a") == b"mine"
        await store.drop("a")
        await store.drop("a")
        assert await store.load("a") is None
        assert not await store.store("a", mine)  # what was dropped does not come back

    asyncio.run(run())


def test_idle_sessions_are_reaped_and_used_ones_stay(clock: Clock) -> None:
    async def run() -> None:
        store = MemorySessions(ttl_seconds=10)
        for name in "abc":
            await store.store(name, Session(b""))
        clock.now += 8
        await store.load("a")
        clock.now += 4
        assert await store.load("b") is None  # too late, whether the reaper came by or not
        assert (await store.reap(), len(store)) == (1, 1)
        assert await store.load("a") is not None
        clock.now += 11
        assert (await store.reap(), len(store)) == (1, 0)

    asyncio.run(run())


def test_the_number_is_bounded_and_live_sessions_are_not_thrown_out(clock: Clock) -> None:
    async def run() -> None:
        store = MemorySessions(ttl_seconds=10, limit=2)
        await store.store("a", Session(b"1"))
        await store.store("b", Session(b"2"))
        with pytest.raises(FailureError, match="2 sessions are open") as full:
            await store.store("c", Session(b"3"))
        assert full.value.failure.retryable
        session = await store.load("a")
        assert session is not None and await store.store("a", session)  # the one that is there may change
        clock.now += 9
        await store.load("b")
        clock.now += 2
        assert await store.store("c", Session(b"3"))  # idle ones make room
        assert (await held(store, "a"), await held(store, "b"), await held(store, "c")) == (None, b"2", b"3")

    asyncio.run(run())


def test_the_latest_replies_are_kept_and_no_more() -> None:
    session = Session(b"")
    for number in range(MAX_REPLIES + 3):
        session = session.after(b"", f"k{number}", ("", str(number).encode()))
    assert list(session.replies) == [f"k{number}" for number in range(3, MAX_REPLIES + 3)]
    assert session.after(b"x", None, ("", b"")).replies == session.replies


def test_an_id_is_for_its_deployment_and_environment_only() -> None:
    name, signed = new_session("kit_till", "s")
    assert session_name(signed, "kit_till", "s") == name
    assert new_session("kit_till", "s")[0] != name
    for given_id, environment, secret in (
        (signed, "kit_till", "t"),
        (signed, "kit", "s"),
        (signed[:-1], "kit_till", "s"),
    ):
        with pytest.raises(FailureError) as refused:
            session_name(given_id, environment, secret)
        assert not refused.value.failure.retryable
    with pytest.raises(SignatureError):
        check_rollout_id(signed, "s")
    with pytest.raises(SignatureError):
        check_session_id(sign_rollout_id(name, "s"), "s")


@given(st.text(max_size=80))
def test_no_text_is_an_id_by_chance(text: str) -> None:
    with pytest.raises(FailureError):
        session_name(text, "kit_till", "s")


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


Served = tuple[httpx.Client, MemorySessions]


@pytest.fixture
def server(toys: None) -> Iterator[Served]:
    store = MemorySessions(limit=50)
    with serving(build_resources([TillEnvironment()], workers=1, sessions=store)) as url:
        with httpx.Client(base_url=f"{url}/kit_till", timeout=60, trust_env=False) as client:
            yield client, store


def row(target: int, **fields: int) -> dict[str, object]:
    return {"responses_create_params": {"input": "?"}, "target": target, **fields}


def test_a_session_is_a_cookie_or_a_header(server: Served) -> None:
    client, store = server
    seeded = client.post("/seed_session", json=row(0, start=5))
    signed = seeded.json()["session_id"]
    assert seeded.headers["x-session-id"] == signed == seeded.cookies["omnigym_session"]
    assert "HttpOnly" in seeded.headers["set-cookie"]
    assert client.post("/deposit", json={"amount": 2}).json() == {"amount": 7}  # by cookie
    client.cookies.clear()
    assert client.post("/deposit", json={"amount": 1}, headers={"X-Session-Id": signed}).json() == {"amount": 8}
    other = client.post("/seed_session", json=row(0)).json()["session_id"]
    assert other != signed
    assert client.post("/deposit", json={"amount": 1}).json() == {"amount": 1}  # a state of its own
    assert client.post("/deposit", json={"amount": 1}, headers={"X-Session-Id": signed}).json() == {"amount": 9}
    assert len(store) == 2


def test_the_verdict_is_on_the_state_and_ends_the_session(server: Served) -> None:
    client, store = server
    client.post("/seed_session", json=row(12, start=10))
    client.post("/deposit", json={"amount": 2, "note": "tip"})
    body = {**row(12, start=10), "response": {"output": message("done")}}
    verdict = client.post("/verify", json=body, headers={"Idempotency-Key": "k"})
    assert (verdict.json()["reward"], verdict.json()["parts"]) == (1.0, {"amount": 12, "notes": ["tip"]})
    assert len(store) == 0
    again = client.post("/verify", json=body, headers={"Idempotency-Key": "k"})  # its first answer may have been lost
    assert again.json() == verdict.json()
    for path, sent in (("/verify", body), ("/deposit", {"amount": 1})):
        gone = client.post(path, json=sent)
        assert gone.status_code == 503
        assert gone.json()["retryable"] is False
        assert "reward" not in gone.json()
        assert "ended or expired" in gone.json()["error"]["message"]


def test_an_output_that_breaks_the_grader_scores_zero_with_a_session_too(server: Served) -> None:
    client, _ = server
    client.post("/seed_session", json=row(5, start=5))
    verdict = client.post("/verify", json={**row(5), "response": {"output": message("burn")}}).json()
    assert (verdict["reward"], verdict["parts"]) == (0.0, {"unverifiable_output": True})


def test_without_a_session_a_tool_says_what_to_do(server: Served) -> None:
    client, _ = server
    reply = client.post("/deposit", json={"amount": 2})
    assert reply.status_code == 503
    assert "POST /kit_till/seed_session" in reply.json()["error"]["message"]
    forged = client.post("/deposit", json={"amount": 2}, headers={"X-Session-Id": "YQ.YQ"})
    assert (forged.status_code, forged.json()["retryable"]) == (503, False)
    reply = client.post("/verify", json={**row(1), "response": {"output": message("x")}})
    assert reply.status_code == 422  # this environment cannot grade without one, and says so


def test_a_bad_row_opens_no_session(server: Served) -> None:
    client, store = server
    reply = client.post("/seed_session", json={"responses_create_params": {}})
    assert reply.status_code == 422
    assert "field 'target'" in reply.json()["error"]["message"]
    assert len(store) == 0


def test_too_many_sessions_are_told_to_come_again(server: Served) -> None:
    client, store = server
    store.limit = 3
    codes = [client.post("/seed_session", json=row(1)).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 503]


def eventually(condition: object, seconds: float = 20.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def test_clients_that_go_away_leave_nothing_behind(toys: None) -> None:
    """Some seed and vanish, some stop in the middle of a body: sessions, requests in flight, all is gone without a request."""
    store = MemorySessions(ttl_seconds=1.0)
    guard = build_resources([TillEnvironment()], ServerSettings(request_seconds=1.5), workers=1, sessions=store)
    with serving(guard) as url:
        host, port = url.removeprefix("http://").split(":")
        body = b'{"target": 1}'
        for _ in range(20):
            with socket.create_connection((host, int(port))) as gone:
                head = f"POST /kit_till/seed_session HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                gone.sendall(head.encode() + body)
                assert gone.recv(12) == b"HTTP/1.1 200"
        assert len(store) == 20
        half = [socket.create_connection((host, int(port))) for _ in range(20)]
        for sock in half:
            sock.sendall(b"POST /kit_till/seed_session HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert eventually(lambda: guard.in_flight == 20)
        assert eventually(lambda: guard.in_flight == 0)
        assert eventually(lambda: len(store) == 0)
        assert httpx.post(f"{url}/kit_till/seed_session", json={"target": 1}, trust_env=False).status_code == 200
        for sock in half:
            sock.close()


def test_a_secret_of_the_deployment_makes_ids_good_in_all_its_servers(toys: None, tmp_path: Path) -> None:
    store = MemorySessions()
    with serving(build_resources([TillEnvironment()], sessions=store, secret="one", workers=1)) as first:
        signed = httpx.post(f"{first}/seed_session", json={"target": 1}, trust_env=False).json()["session_id"]
    headers = {"X-Session-Id": signed}
    for secret, status in (("one", 200), ("two", 503)):
        with serving(build_resources([TillEnvironment()], sessions=store, secret=secret, workers=1)) as url:
            reply = httpx.post(f"{url}/deposit", json={"amount": 1}, headers=headers, trust_env=False)
            assert reply.status_code == status
