"""Model servers as processes: what they announce, what they refuse, that they end; and 2,048 rollouts at once through one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gym_servers.hosts.local import LocalHost, LocalServer
from gym_servers.hosts.servers import ServerDied
from gym_servers.protocol import Rollout
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest

KEYS = {"OMNIGYM_TOKEN": "t", "OMNIGYM_SECRET": "s"}


def command(settings: object, module: str = "scripted") -> list[str]:
    given = settings if isinstance(settings, str) else json.dumps(settings)
    return [sys.executable, "-m", f"gym_servers.models.{module}", "--settings", given]


def collect(collector: Collector, requests: list[RolloutRequest]) -> list[Rollout]:
    async def run() -> list[Rollout]:
        return [rollout async for rollout in collector.collect(requests)]

    return asyncio.run(run())


def test_a_scripted_process_serves_with_the_keys_of_its_environment() -> None:
    with LocalHost() as host:
        environments = host.start_environments(["instruction_following"], "t")
        model = host.start("the model server", command({"texts": ["first"], "seconds": 0.01}), KEYS)
        assert not set(KEYS.values()) & set(" ".join(psutil.Process(model.process.pid).cmdline()).split('"'))
        urls = {"instruction_following": f"{environments.wait_ready()}/instruction_following"}
        address = model.wait_ready()
        assert address.startswith("http://127.0.0.1:")
        rows = list(load_environment("instruction_following").generate(3, 0, "train"))
        requests = [RolloutRequest(row, f"t{k}", "instruction_following", f"g{k}", 0, k) for k, row in enumerate(rows)]
        rollouts = collect(Collector(urls, address, secret="s", token="t"), requests)
        assert [rollout.failure for rollout in rollouts] == [None] * 3
        assert {rollout.text for rollout in rollouts} == {"first"}
        assert [rollout.usage["sampled_tokens"] for rollout in rollouts] == [6] * 3
        forged = collect(Collector(urls, address, secret="another", token="t"), requests[:1])
        assert forged[0].failure is not None
        stranger = collect(Collector(urls, address, secret="s", token="another"), requests[:1])
        assert stranger[0].failure is not None


@pytest.mark.parametrize(
    ("settings", "module", "said"),
    [
        ({"texts": ["x"], "txets": 1}, "scripted", "field 'txets': Extra inputs are not permitted; there are: .*texts"),
        ({"texts": "x"}, "scripted", "field 'texts': Input should be a valid list"),
        ({}, "scripted", "field 'texts': Field required"),
        ("{", "scripted", "--settings is not valid JSON"),
        ({"texts": ["x"], "host": "0.0.0.0", "token": None}, "scripted", "host 0.0.0.0 without a token"),
        ({"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "NO_SUCH"}, "openai_url", "NO_SUCH is not set"),
    ],
)
def test_bad_settings_end_the_process_with_their_name(settings: object, module: str, said: str) -> None:
    server = LocalServer("the model server", command(settings, module), KEYS)
    with pytest.raises(ServerDied, match=said):
        server.wait_ready(60)
    server.stop()


def test_a_busy_port_is_named() -> None:
    with LocalHost() as host:
        first = host.start("the first", command({"texts": ["x"]}), KEYS)
        port = int(first.wait_ready().rpartition(":")[2])
        second = host.start("the second", command({"texts": ["x"], "port": port}), KEYS)
        with pytest.raises(ServerDied, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            second.wait_ready(60)


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen({command({'texts': ['x']})!r}, stdout=open({str(tmp_path / 'out')!r}, 'w'))\n"
        "print(p.pid, flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **KEYS}
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").read_text().startswith("http://"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    psutil.wait_procs([child], 30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_2048_rollouts_in_flight_finish_without_error() -> None:
    """Must hold 6, for correctness: all wait in the model at once (it answers only after seconds), none fails, none is lost, and
    each has its own tokens. benchmarks/concurrency.py has the speed and the memory.
    """
    many = 2048
    with LocalHost() as host:
        environments = host.start_environments(["instruction_following"], "t")
        settings = {"texts": ["The answer of a model that takes its time."], "seconds": 30.0}
        model = host.start("the model server", command(settings), KEYS)
        urls = {"instruction_following": f"{environments.wait_ready()}/instruction_following"}
        rows = list(load_environment("instruction_following").generate(64, 0, "train"))
        requests = [
            RolloutRequest(rows[k % 64], f"t{k}", "instruction_following", f"g{k // 16}", k % 16, seed=k)
            for k in range(many)
        ]
        collector = Collector(urls, model.wait_ready(), secret="s", token="t", concurrency=many)
        most = 0

        async def run() -> list[Rollout]:
            nonlocal most
            ended = []
            async for rollout in collector.collect(requests):
                most = max(most, len(collector.waiting))
                ended.append(rollout)
            return ended

        rollouts = asyncio.run(run())
    assert [rollout.failure for rollout in rollouts] == [None] * many
    assert {rollout.task_id for rollout in rollouts} == {f"t{k}" for k in range(many)}
    assert all(rollout.reward is not None for rollout in rollouts)
    assert [sum(s.sampled for s in rollout.segments) for rollout in rollouts] == [43] * many
    firsts = {rollout.task_id: rollout.segments[0].lp_gen[-43] for rollout in rollouts}
    assert len(set(firsts.values())) == many  # seeds, and so log-probabilities, are each rollout's own
    assert most > many // 2
