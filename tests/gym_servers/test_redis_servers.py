"""Servers that share a Redis, over real HTTP: a session is wherever it is asked for, a verdict is given once, and a Redis that is lost is a
failure, never a reward and never the server's end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest
from kit_toys import Shortest, TillEnvironment, installed, message, serving
from redis_server import RedisServer, redis_server

from gym_servers.commands.serve import check_processes
from gym_servers.protocol import OmnigymError
from gym_servers.redis_link import RedisLink
from gym_servers.resources import build_resources

__all__ = ["redis_server"]
Row = dict[str, object]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


@contextlib.contextmanager
def replicas(server: RedisServer, count: int = 2, secret: str = "shared") -> Iterator[list[httpx.Client]]:
    """Clients of servers that share nothing but Redis and the secret."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            redis = RedisLink(server.url, server.password)
            app = build_resources([TillEnvironment(), Shortest()], workers=1, secret=secret, redis=redis)
            url = stack.enter_context(serving(app))
            clients.append(stack.enter_context(httpx.Client(base_url=url, timeout=250, trust_env=False)))
        yield clients


def row(target: int, **fields: int) -> Row:
    return {"responses_create_params": {"input": "?"}, "target": target, **fields}


def verify_body(target: int) -> Row:
    return {**row(target), "response": {"output": message("done")}}


def seed(client: httpx.Client, target: int = 3) -> dict[str, str]:
    """The header of a new session."""
    client.cookies.clear()
    return {"X-Session-Id": client.post("/kit_till/seed_session", json=row(target)).json()["session_id"]}


def deposit(client: httpx.Client, session: dict[str, str], amount: int = 1, key: str | None = None) -> httpx.Response:
    headers = {**session, **({"Idempotency-Key": key} if key else {})}
    return client.post("/kit_till/deposit", json={"amount": amount}, headers=headers)


def test_a_session_is_wherever_it_is_asked_for(redis_server: RedisServer) -> None:
    redis_server.client.flushall()
    with replicas(redis_server, 3) as (first, second, third):
        session = seed(first)
        assert deposit(second, session, 1, "a").json() == {"amount": 1}
        assert deposit(third, session, 1, "a").json() == {"amount": 1}  # the same call, whose answer was lost
        assert deposit(first, session, 2, "b").json() == {"amount": 3}
        headers = {**session, "Idempotency-Key": "v"}
        verdict = second.post("/kit_till/verify", json=verify_body(3), headers=headers)
        assert (verdict.json()["reward"], verdict.json()["parts"]["amount"]) == (1.0, 3)
        for client in (first, second, third):
            again = client.post("/kit_till/verify", json=verify_body(3), headers=headers)
            assert again.json() == verdict.json()
            gone = deposit(client, session)
            assert (gone.status_code, gone.json()["retryable"]) == (503, False)
            assert "ended or expired" in gone.json()["error"]["message"]
    assert redis_server.client.zcard("omnigym:sessions") == 0
    assert len(redis_server.client.keys("*")) == 1  # the verdict


def test_a_verdict_on_a_group_is_given_once(redis_server: RedisServer) -> None:
    rollouts = [{"response": {"output": message(text)}} for text in ("it is 4", "4", "5")]
    body = {"task": {"responses_create_params": {}, "answer": "4"}, "rollouts": rollouts}
    with replicas(redis_server) as (first, second):
        verdict = first.post("/kit_shortest/verify_group", json=body, headers={"Idempotency-Key": "group"}).json()
        assert verdict["rewards"] == [0.0, 1.0, 0.0]
        other = {**body, "rollouts": rollouts[::-1]}
        for client in (first, second):
            again = client.post("/kit_shortest/verify_group", json=other, headers={"Idempotency-Key": "group"}).json()
            assert again == verdict
        assert second.post("/kit_shortest/verify_group", json=other).json()["rewards"] == [0.0, 1.0, 0.0]


def test_a_session_of_another_secret_is_refused_unread(redis_server: RedisServer) -> None:
    with replicas(redis_server, 1, "one") as (first,):
        session = seed(first)
    with replicas(redis_server, 1, "two") as (second,):
        refused = deposit(second, session)
        assert (refused.status_code, refused.json()["retryable"]) == (503, False)
        name = session["X-Session-Id"]
        assert "not signed by this deployment" in refused.json()["error"]["message"] and name not in refused.text


def eventually_ready(client: httpx.Client) -> bool:
    end = time.monotonic() + 200
    while client.get("/readyz").status_code != 200 and time.monotonic() < end:
        time.sleep(0.05)
    return client.get("/readyz").status_code == 200


def test_a_redis_that_is_lost_is_a_failure_and_no_more() -> None:
    server = RedisServer()
    try:
        with replicas(server) as (first, second):
            assert eventually_ready(first)
            session, group = seed(first), {"responses_create_params": {}, "answer": "4"}
            assert deposit(first, session, 3).json() == {"amount": 3}
            server.kill()
            unready = first.get("/readyz")
            assert unready.status_code == 503
            assert f"Redis at 127.0.0.1:{server.port}" in unready.json()["reason"]
            assert server.password not in unready.text
            body = {"task": group, "rollouts": [{"response": {"output": message("4")}}]}
            for client in (first, second):
                for path, sent in (
                    ("kit_till/seed_session", row(3)),
                    ("kit_till/deposit", {"amount": 1}),
                    ("kit_till/balance", {}),
                    ("kit_till/verify", verify_body(3)),
                    ("kit_shortest/verify_group", body),
                ):
                    lost = client.post(f"/{path}", json=sent, headers={**session, "Idempotency-Key": path})
                    assert (lost.status_code, lost.json()["retryable"]) == (503, True), path
                    assert lost.json()["error"]["type"] == "environment_down" and "reward" not in lost.json()
                assert client.get("/healthz").status_code == 200
            server.start()  # and what it held is gone
            for client in (first, second):
                assert eventually_ready(client)
                gone = client.post("/kit_till/verify", json=verify_body(3), headers={**session, "Idempotency-Key": "x"})
                assert (gone.status_code, gone.json()["retryable"]) == (503, False) and "reward" not in gone.json()
            session = seed(second)
            assert deposit(first, session, 3).json() == {"amount": 3}
            assert second.post("/kit_till/verify", json=verify_body(3), headers=session).json()["reward"] == 1.0
            again = first.post("/kit_shortest/verify_group", json=body, headers={"Idempotency-Key": "y"})
            assert again.json()["rewards"] == [1.0]
    finally:
        server.close()


def test_a_verdict_stands_though_its_session_cannot_be_dropped(redis_server: RedisServer) -> None:
    """Redis goes between the verdict and the end of its session: a read-only one refuses the second write only."""
    with replicas(redis_server, 1) as (client,):
        session = seed(client, 1)
        deposit(client, session, 1)
        redis_server.client.execute_command("ACL", "SETUSER", "default", "-unlink")
        try:
            verdict = client.post("/kit_till/verify", json=verify_body(1), headers=session)
            assert (verdict.status_code, verdict.json()["reward"]) == (200, 1.0)
        finally:
            redis_server.client.execute_command("ACL", "SETUSER", "default", "+unlink")


def test_redis_without_a_secret_is_an_error() -> None:
    with pytest.raises(OmnigymError, match="set OMNIGYM_SECRET"):
        build_resources([TillEnvironment()], redis=RedisLink("redis://127.0.0.1:1/0"))


def test_what_several_processes_cannot_serve_is_an_error() -> None:
    check_processes([TillEnvironment(), Shortest()], 4, has_redis=True)
    check_processes([Shortest()], 4, has_redis=False)
    check_processes([TillEnvironment()], 1, has_redis=False)
    with pytest.raises(OmnigymError, match="sessions of kit_till .* OMNIGYM_REDIS_URL=redis://host:port/db"):
        check_processes([Shortest(), TillEnvironment()], 4, has_redis=False)
    blocking = Shortest(Shortest.settings_type(num_rollouts_per_prompt=2))
    check_processes([blocking], 1, has_redis=False)
    with pytest.raises(OmnigymError, match="'kit_shortest' has num_rollouts_per_prompt"):
        check_processes([blocking], 2, has_redis=True)
