"""The processes of a run and rollouts over real HTTP: what dies is named, what is started is ended, verdicts are nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import EngineState, Generation, Sampling
from gym_servers.protocol import OmnigymError, Rollout
from rl_trainer.config import RunConfig
from rl_trainer.loop import RunStopped, plan_rollouts
from rl_trainer.sampler import LoadedTask, PlannedTask
from rl_trainer.services import HttpGeneration, ServerDied, ServerProcess, Services

READY = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
print(f"http://127.0.0.1:{s.server_port}", flush=True)
s.serve_forever()
"""


def start(folder: Path, code: str, name: str = "the toy server") -> ServerProcess:
    return ServerProcess(name, [sys.executable, "-c", code], folder / "logs" / "toy.log", {"TOY": "1"})


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    process = start(tmp_path, "import sys; sys.exit('the port is taken')")
    with pytest.raises(ServerDied, match=r"the toy server ended with status 1; .*toy\.log ends: the port is taken"):
        process.wait_ready(20)


def test_a_server_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(ServerDied, match=r"the toy server was not ready within 0\.5 s"):
        process.wait_ready(0.5)
    process.stop()
    assert gone(process.process.pid)


def test_a_killed_server_is_noticed(tmp_path: Path) -> None:
    process = start(tmp_path, READY)
    process.wait_ready(20)
    process.check()
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    with pytest.raises(ServerDied, match="was killed by signal 9"):
        process.check()


def test_stop_ends_what_the_server_started_too(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, file=sys.stderr, flush=True)\n"
    process = start(tmp_path, child + READY)
    process.wait_ready(20)
    pid = int(process.log.read_text().split()[0])
    process.stop()
    assert gone(pid) and gone(process.process.pid)


def test_servers_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from rl_trainer.services import ServerProcess\n"
        f"p = ServerProcess('toy', [sys.executable, '-c', {READY!r}], Path({str(tmp_path)!r}) / 'x.log', {{}})\n"
        "p.wait_ready(20); print(p.process.pid, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    run.kill()
    run.wait()
    assert gone(pid)


class Letters:
    """A tokenizer of single characters."""

    end_token = "\x03"

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Answers:
    """An engine that answers the same text; it can be slow, and its first calls can fail."""

    max_context = 4000
    chat_template = None

    def __init__(self) -> None:
        self.state = EngineState("letters", "float32")
        self.tokenizer = Letters()
        self.text, self.seconds, self.failures = "\\boxed{4}", 0.0, 0
        self.seeds: list[int] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        self.seeds.append(seed)
        self.samplings.append(sampling)
        await asyncio.sleep(self.seconds)
        ids = [ord(c) for c in self.text] + [3]
        if self.failures:
            self.failures -= 1
            return Generation(ids, [-1.0] * len(ids), "abort", (self.state.weight_version,))
        return Generation(ids, [-1.0] * len(ids), "stop", (self.state.weight_version,))

    async def abort(self, request_ids: Sequence[str]) -> None: ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[-1.0] * (len(ids) - 1) for ids in sequences]

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        self.state.weight_version, self.state.digest = version, f"got {digest}"

    async def check(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    code = "from gym_servers.cli import main; main()"
    process = ServerProcess(
        "the environment server",
        [sys.executable, "-c", code, "env", "serve", "competition_math", "--port", "0", "--workers", "1"],
        tmp_path_factory.mktemp("logs") / "env.log",
        {"OMNIGYM_TOKEN": "t"},
    )
    process.wait_ready(60)
    yield process
    process.stop()


@contextlib.contextmanager
def world(environments: ServerProcess, **values: Any) -> Iterator[tuple[Answers, HttpGeneration]]:
    engine = Answers()
    from gym_servers.base import ServerSettings

    guard = build_model_server(engine, ModelSettings(secret="s"), ServerSettings(token="t"))
    server = uvicorn.Server(uvicorn.Config(guard, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    config = RunConfig.model_validate({"model": "m", "steps": 1, "mixture": {"competition_math": 1}, **values})
    urls = {"competition_math": f"{environments.url}/competition_math"}
    yield engine, HttpGeneration(config, "run", urls, url, "t", "s", [environments])
    server.should_exit = server.force_exit = True
    thread.join()


def plans(count: int = 2, attempts: int = 3) -> list[Any]:
    row = {"responses_create_params": {"input": "What is 2 + 2?"}, "expected_answer": "4"}
    tasks = [PlannedTask(LoadedTask("competition_math", f"t{k}", row), f"s000000-g{k:04d}") for k in range(count)]
    return plan_rollouts(0, "run", "step_000000", tasks, attempts)


def collect(generation: HttpGeneration, wanted: list[Any]) -> list[Rollout]:
    done: list[Rollout] = []
    generation.collect(wanted, done.append)
    return sorted(done, key=lambda r: (r.group, r.attempt))


def test_rollouts_come_back_as_planned_with_their_tokens(environments: ServerProcess) -> None:
    with world(environments, sampling={"temperature": 0.7, "max_tokens": 33}) as (engine, generation):
        wanted = plans()
        done = collect(generation, wanted)
        assert [(r.group, r.attempt, r.seed, r.task_id) for r in done] == [
            (p.group, p.attempt, p.seed, p.task.task_id) for p in wanted
        ]
        assert sorted(engine.seeds) == sorted(p.seed for p in wanted)
        assert {(s.temperature, s.top_p, s.max_tokens) for s in engine.samplings} == {(0.7, 1.0, 33)}
        assert [r.reward for r in done] == [1.0] * 6
        assert done[0].segments[0].sampled == 10 == done[0].usage["sampled_tokens"]
        assert done[0].usage["dropped_tokens"] == 0


def test_the_verdict_is_on_this_output_never_on_an_earlier_one(environments: ServerProcess) -> None:
    """A step that is sampled again at the same servers has the same groups, attempts and seeds, but may have other texts."""
    with world(environments) as (engine, generation):
        assert [r.reward for r in collect(generation, plans())] == [1.0] * 6
        engine.text = "\\boxed{5}"
        assert [r.reward for r in collect(generation, plans())] == [0.0] * 6


def test_tokens_of_abandoned_attempts_are_dropped_not_lost(environments: ServerProcess) -> None:
    with world(environments) as (engine, generation):
        engine.failures = 1
        (rollout,) = collect(generation, plans(1, 1))
        assert rollout.reward == 1.0
        held = sum(segment.sampled for segment in rollout.segments)
        assert rollout.usage["dropped_tokens"] == 10
        assert rollout.usage["sampled_tokens"] == held + 10


def test_weights_and_scores(environments: ServerProcess, tmp_path: Path) -> None:
    with world(environments) as (engine, generation):
        assert generation.update_weights(tmp_path / "w", "abc", 3) == "got abc"
        assert engine.state.weight_version == 3
        assert generation.score([[1, 2, 3]]) == [[-1.0, -1.0]]
        with pytest.raises(RunStopped, match=r"refused /admin/score: 422 .*at least two tokens"):
            generation.score([[1]])
        (rollout,) = collect(generation, plans(1, 1))
        assert rollout.segments[0].weight_version == 3


def test_an_environment_server_that_is_killed_is_named_within_seconds(tmp_path: Path) -> None:
    code = "from gym_servers.cli import main; main()"
    process = ServerProcess(
        "the environment server",
        [sys.executable, "-c", code, "env", "serve", "competition_math", "--port", "0", "--workers", "1"],
        tmp_path / "env.log",
        {"OMNIGYM_TOKEN": "t"},
    )
    process.wait_ready(60)
    with world(process) as (engine, generation):
        engine.seconds = 60.0
        done: list[Rollout] = []
        threading.Timer(1.0, lambda: os.kill(process.process.pid, signal.SIGKILL)).start()
        began = time.monotonic()
        with pytest.raises(ServerDied, match="the environment server was killed by signal 9"):
            generation.collect(plans(), done.append)
        assert time.monotonic() - began < 10
        assert done == []  # no reward is invented
    process.stop()


def test_a_wait_without_progress_says_on_whom(environments: ServerProcess) -> None:
    with world(environments, no_progress_seconds=0.5) as (engine, generation):
        engine.seconds = 5.0
        with pytest.raises(OmnigymError, match=r"no rollout ended for 0\.5 s; waiting on 6 x generation"):
            collect(generation, plans())


def test_services_end_what_they_started_when_the_start_fails(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": "m", "steps": 1, "mixture": {"competition_math": 1}})
    with pytest.raises(OmnigymError), Services(config, tmp_path) as services:
        services.start_servers(tmp_path / "nothing")
        pids = [process.process.pid for process in services.processes]
        services.generation()
    assert len(pids) == 2 and all(gone(pid) for pid in pids)
