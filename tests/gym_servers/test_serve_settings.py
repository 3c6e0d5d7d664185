"""Settings of environments given to a server, and when it says that it is ready."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from kit_toys import Shortest, serving
from typer.testing import CliRunner

from gym_servers import cli
from gym_servers.hosts.local import LocalHost
from gym_servers.resources import build_resources
from gym_servers.workers import WorkerPool


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("competition_maths.require_box=true", "no environment 'competition_maths'; did you mean 'competition_math'"),
        ("structured_outputs.require_box=true", "no environment 'structured_outputs'; it serves competition_math"),
        ("competition_math.require_boxes=true", "setting 'require_boxes'.*did you mean 'require_box'"),
        ("competition_math.require_box=maybe", "setting 'require_box': Input should be a valid boolean"),
        ("require_box=true", "must be NAME.key=value, with one of competition_math as NAME"),
        ("competition_math.require_box", "must be key=value"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_anything_is_served(pair: str, message: str) -> None:
    result = CliRunner().invoke(cli.build(), ["env", "serve", "competition_math", "--set", pair])
    with pytest.raises(Exception, match=message):
        raise result.exception or AssertionError("it was taken")


def test_a_host_passes_settings_of_every_type_on_to_the_server() -> None:
    content = [{"type": "output_text", "text": "The answer is 4"}]
    output = [{"type": "message", "role": "assistant", "content": content}]
    row = {"expected_answer": "4", "response": {"output": output}}
    chosen = {"competition_math": {"require_box": True, "verify_cpu_seconds": 1e-05, "judge_model": ""}}
    with LocalHost() as host:
        url = host.start_environments(["competition_math"], "t", chosen).wait_ready()
        reply = httpx.post(f"{url}/verify", json=row, headers={"Authorization": "Bearer t"}, trust_env=False)
        assert (reply.status_code, reply.json()["reward"]) == (200, 0.0)
        plain = host.start_environments(["competition_math"], "t").wait_ready()
        reply = httpx.post(f"{plain}/verify", json=row, headers={"Authorization": "Bearer t"}, trust_env=False)
        assert reply.json()["reward"] == 1.0


def test_a_server_is_ready_once_a_worker_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    may_start, start = threading.Event(), WorkerPool.start
    pools: list[WorkerPool] = []

    def held(self: WorkerPool) -> None:
        assert may_start.wait(60)
        start(self)
        pools.append(self)

    monkeypatch.setattr(WorkerPool, "start", held)

    def readiness(url: str) -> tuple[int, Any]:
        reply = httpx.get(f"{url}/readyz", trust_env=False)
        return reply.status_code, reply.json()["status"]

    with serving(build_resources([Shortest()], workers=1)) as url:
        try:
            assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
            assert readiness(url) == (503, "not ready")
        finally:
            may_start.set()
        while readiness(url) != (200, "ready"):
            time.sleep(0.02)
        assert len(pools[0].pids()) == 1


def test_a_server_whose_workers_cannot_start_is_never_ready_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: WorkerPool) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(WorkerPool, "start", broken)
    with serving(build_resources([Shortest()], workers=1)) as url:
        while "no more processes" not in caplog.text:
            time.sleep(0.02)
        reply = httpx.get(f"{url}/readyz", trust_env=False)
        assert reply.status_code == 503 and "no more processes" in reply.json()["reason"]
