"""`omnigym env serve --processes 4` with Redis: every environment with a state gives the verdicts that it gives in one process, and
processes that are killed under load cost no rollout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from kit_toys import message, serving
from redis_server import RedisServer, redis_server

from gym_servers.commands.serve import serve
from gym_servers.environment import Environment, StatefulEnvironment
from gym_servers.hosts.local import LocalHost, LocalServer
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import ScriptedEngine, by_seed, turns_of
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.registry import environment_class, environment_names, load_environment
from gym_servers.rollouts import Collector, RolloutRequest

__all__ = ["redis_server"]
TESTS = Path(__file__).resolve().parents[1]
STATEFUL = [name for name in environment_names() if issubclass(environment_class(name), StatefulEnvironment)]
COMMAND = [sys.executable, "-c", "from gym_servers.cli import main; main()", "env", "serve"]
READY_SECONDS = 280.0
Row = dict[str, Any]


@contextlib.contextmanager
def served(
    names: list[str], processes: int, redis: RedisServer | None, variables: dict[str, str] | None = None
) -> Iterator[LocalServer]:
    """Environments without authentication, ready in all processes."""
    command = [*COMMAND, *names, "--processes", str(processes), "--workers", "1", "--port", "0", "--auth", "none"]
    shared = {**redis.variables, "OMNIGYM_SECRET": "of the tests"} if redis is not None else {}
    with LocalHost() as host:
        server = host.start("the environments", command, {**shared, **(variables or {}), "OMP_NUM_THREADS": "1"})
        server.wait_ready(READY_SECONDS)
        yield server


def get(url: str) -> httpx.Response:
    """Over a connection of its own, so that any process may answer."""
    return httpx.get(url, trust_env=False, timeout=200)


def post(url: str, body: Row, **headers: str) -> httpx.Response:
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=200)


def collect(
    url: str,
    environment: Environment,
    rows: list[Row],
    scripts: list[list[str]],
    after_each: Callable[[int], None] = lambda done: None,
    seconds: float = 0.0,
) -> list[Rollout]:
    """One rollout a row, over HTTP. after_each: is told how many have ended. seconds: that the model takes for a turn."""
    engine = ScriptedEngine(by_seed(scripts), seconds=seconds)

    async def run(model: str) -> list[Rollout]:
        collector = Collector({environment.name: f"{url}/{environment.name}"}, f"{model}/v1", secret="s", concurrency=8)
        requests = [RolloutRequest(row, f"t{k}", environment.name, f"t{k}", 0, k) for k, row in enumerate(rows)]
        done: list[Rollout] = []
        async for rollout in collector.collect(requests):
            done.append(rollout)
            after_each(len(done))
        return sorted(done, key=lambda rollout: rollout.seed)

    with serving(build_model_server(engine, ModelSettings(secret="s"))) as model:
        return asyncio.run(run(model))


def perfect(environment: Environment, rows: list[Row]) -> list[list[str]]:
    return [turns_of(environment.gold(environment.check_row(row)) or []) for row in rows]


def essence(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    """What may not depend on where a rollout was served."""
    return [(r.failure, r.reward, r.parts, r.explanation, [c.output for c in r.tool_calls]) for r in rollouts]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_processes_give_the_verdicts_of_one(redis_server: RedisServer) -> None:
    assert {"workplace_assistant", "banking"} <= set(STATEFUL)

    def verdicts(server: LocalServer) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for name in STATEFUL:
            environment = load_environment(name)
            rows = list(environment.generate(12, 5, "heldout"))
            right = collect(server.url, environment, rows, perfect(environment, rows))
            assert [(r.failure, r.reward) for r in right] == [(None, environment.reward_range[1])] * len(rows)
            wrong = collect(server.url, environment, rows, [turns[:-2] for turns in perfect(environment, rows)])
            found += essence(right) + essence(wrong)
        return found

    with served(STATEFUL, 1, None) as one:
        expected = verdicts(one)
    with served(STATEFUL, 4, redis_server) as four:
        assert verdicts(four) == expected
        requests = [
            line for line in get(f"{four.url}/metrics").text.splitlines() if line.startswith("omnigym_requests")
        ]
        counts = {line.split('"')[1]: float(line.split()[-1]) for line in requests}
        assert counts["200"] >= 2 * len(expected) and "500" not in counts
    assert redis_server.client.zcard("omnigym:sessions") == 0  # each ended with its verdict


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_processes_that_are_killed_under_load_cost_no_rollout(redis_server: RedisServer) -> None:
    environment = load_environment("workplace_assistant")
    rows = list(environment.generate(40, 6, "heldout"))
    with served(["workplace_assistant"], 4, redis_server) as server:
        first = psutil.Process(server.process.pid).children()
        assert len(first) == 4
        left = list(first)

        def kill(done: int) -> None:
            if done % 8 == 0 and left:
                left.pop().kill()

        rollouts = collect(server.url, environment, rows, perfect(environment, rows), kill, seconds=0.1)
        assert left == []
        assert [(r.failure, r.reward) for r in rollouts] == [(None, environment.reward_range[1])] * len(rows)
        now = psutil.Process(server.process.pid).children()
        assert len(now) == 4 and not {p.pid for p in now} & {p.pid for p in first}
        everyone = psutil.Process(server.process.pid).children(recursive=True)
    _, alive = psutil.wait_procs(everyone, timeout=60)
    assert alive == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_verdict_for_a_key_and_a_request_in_flight_is_answered(redis_server: RedisServer, tmp_path: Path) -> None:
    """Of requests with one key that all processes get at once; and of one that is being judged when the server is told to stop."""
    record = tmp_path / "toys-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    (record / "entry_points.txt").write_text("[omnigym.environments]\nkit_till = kit_toys:TillEnvironment\n")
    paths = [str(tmp_path), str(TESTS / "gym_servers"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    body = {"responses_create_params": {}, "target": 5, "start": 5, "response": {"output": message("done")}}
    with (
        served(["kit_till"], 4, redis_server, {"PYTHONPATH": os.pathsep.join(paths)}) as server,
        concurrent.futures.ThreadPoolExecutor(16) as threads,
    ):
        url = f"{server.url}/kit_till"

        def seed() -> str:
            return str(post(f"{url}/seed_session", body).json()["session_id"])

        session = seed()
        deposits = [
            threads.submit(
                post, f"{url}/deposit", {"amount": 1}, **{"X-Session-Id": session, "Idempotency-Key": f"d{k % 4}"}
            )
            for k in range(16)
        ]
        assert {one.result().status_code for one in deposits} <= {200, 503}
        amount = post(f"{url}/balance", {}, **{"X-Session-Id": session}).json()["amount"]
        done = {k % 4 for k, one in enumerate(deposits) if one.result().status_code == 200}
        assert len(done) <= amount - 5 <= 4  # each key once, however often it came
        right = {**body, "target": amount}
        verdicts = [
            threads.submit(post, f"{url}/verify", right, **{"X-Session-Id": session, "Idempotency-Key": "once"})
            for _ in range(16)
        ]
        assert {(one.result().status_code, one.result().json()["reward"]) for one in verdicts} == {(200, 1.0)}

        burning = {**body, "response": {"output": message("burn")}}
        places = set(redis_server.client.keys("omnigym:once:*"))
        last = threads.submit(post, f"{url}/verify", burning, **{"X-Session-Id": seed(), "Idempotency-Key": "burns"})
        while not set(redis_server.client.keys("omnigym:once:*")) - places:  # until it is being judged
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        reply = last.result()  # finished, or handed back where the machine is too busy for that
        if reply.status_code == 200:
            assert reply.json()["reward"] == 0.0
        else:
            assert (reply.status_code, reply.json()["retryable"]) == (503, True) and "reward" not in reply.json()
        assert server.process.wait(120) == 0
        with pytest.raises(httpx.ConnectError):
            get(f"{server.url}/healthz")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "sessions of workplace_assistant must be where all processes find them"),
        ({"OMNIGYM_REDIS_URL": "redis://127.0.0.1:1"}, "set OMNIGYM_SECRET"),
        ({"OMNIGYM_REDIS_URL": "redis://:pw@127.0.0.1:1"}, "put it into OMNIGYM_REDIS_PASSWORD"),
    ],
)
def test_a_command_that_cannot_work_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], said: str
) -> None:
    for name in [name for name in os.environ if name.startswith("OMNIGYM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OmnigymError, match=said) as refused:
        serve(["workplace_assistant"], port=0, processes=2)
    assert "pw@" not in str(refused.value)
    assert "http://" not in capsys.readouterr().out
