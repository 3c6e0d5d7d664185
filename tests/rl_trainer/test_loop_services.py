"""The processes of a run and rollouts over real HTTP: what dies is named, what is started is ended, verdicts are nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from gym_servers.hosts.local import LocalHost, LocalServer
from gym_servers.hosts.servers import ServerDied
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import EngineState, FinishReason, Generation, Sampling
from gym_servers.protocol import OmnigymError, Rollout
from rl_trainer.config import RunConfig
from rl_trainer.generation import RunStopped, plan_rollouts
from rl_trainer.services import HttpGeneration, Services
from rl_trainer.tasks import LoadedTask, PlannedTask


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
    special: tuple[tuple[str, str], ...] = ()

    def __init__(self) -> None:
        self.state = EngineState("letters", "float32")
        self.tokenizer = Letters()
        self.text, self.seconds, self.failures = "\\boxed{4}", 0.0, 0
        self.reason: FinishReason = "stop"
        self.running: dict[str, asyncio.Event] = {}
        self.seeds: list[int] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        self.seeds.append(seed)
        self.samplings.append(sampling)
        version = self.state.weight_version
        ended = self.running[request_id] = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), self.seconds)
        del self.running[request_id]
        assert version == self.state.weight_version, "the weights changed inside this call"
        ids = [ord(c) for c in self.text] + [3]
        if self.failures or ended.is_set():
            self.failures = max(0, self.failures - 1)
            return Generation(ids, [-1.0] * len(ids), "abort", (self.state.weight_version,))
        return Generation(ids, [-1.0] * len(ids), self.reason, (self.state.weight_version,))

    async def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in set(request_ids) & set(self.running):
            self.running[request_id].set()

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[-1.0] * (len(ids) - 1) for ids in sequences]

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        self.state.weight_version, self.state.digest = version, f"got {digest}"

    async def check(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def environments() -> Iterator[LocalHost]:
    with LocalHost() as host:
        host.start_environments(["competition_math"], "t").wait_ready(60)
        yield host


@contextlib.contextmanager
def world(environments: LocalHost, **values: Any) -> Iterator[tuple[Answers, HttpGeneration]]:
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
    urls = {"competition_math": f"{environments.servers[0].url}/competition_math"}
    yield engine, HttpGeneration(config, "run", urls, url, "t", "s", environments)
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


def test_rollouts_come_back_as_planned_with_their_tokens(environments: LocalHost) -> None:
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


def test_the_verdict_is_on_this_output_never_on_an_earlier_one(environments: LocalHost) -> None:
    """A step that is sampled again at the same servers has the same groups, attempts and seeds, but may have other texts."""
    with world(environments) as (engine, generation):
        assert [r.reward for r in collect(generation, plans())] == [1.0] * 6
        engine.text = "\\boxed{5}"
        assert [r.reward for r in collect(generation, plans())] == [0.0] * 6


def test_tokens_of_abandoned_attempts_are_dropped_not_lost(environments: LocalHost) -> None:
    with world(environments) as (engine, generation):
        engine.failures = 1
        (rollout,) = collect(generation, plans(1, 1))
        assert rollout.reward == 1.0
        held = sum(segment.sampled for segment in rollout.segments)
        assert rollout.usage["dropped_tokens"] == 10
        assert rollout.usage["sampled_tokens"] == held + 10


@pytest.mark.parametrize(("reason", "truncated"), [("stop", False), ("length", True)])
def test_truncation_is_what_the_engine_says_not_a_length(environments: LocalHost, reason: Any, truncated: bool) -> None:
    """pitfall 32: an answer of exactly max_tokens that ends by itself is whole; a cut one is cut at any length."""
    with world(environments, sampling={"max_tokens": 10 if reason == "stop" else 50}) as (engine, generation):
        engine.reason = reason
        (rollout,) = collect(generation, plans(1, 1))
        assert rollout.segments[0].sampled == 10
        assert rollout.truncated == truncated and rollout.reward == 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_never_change_inside_a_call(environments: LocalHost, tmp_path: Path, seed: int) -> None:
    """pitfall 15: updates at random moments of a collection. What they end is sampled anew under one version, and counted."""
    draw = random.Random(seed)
    with world(environments, failure_retries=8) as (engine, generation):
        engine.seconds = 60.0  # no call ends by itself before the last update

        def update() -> None:
            for version in (1, 2, 3):
                wanted = draw.randrange(1, 13)
                while len(engine.running) < wanted:
                    time.sleep(0.002)
                if version == 3:
                    engine.seconds = 0.0
                generation.update_weights(tmp_path / "w", f"v{version}", version)

        thread = threading.Thread(target=update)
        thread.start()
        done = collect(generation, plans(4, 3))
        thread.join()
        assert all(r.failure is None and len(r.segments) == 1 for r in done), done
        ended = sum(r.usage["dropped_tokens"] for r in done)
        assert ended >= 3 * 10
        assert sum(r.usage["sampled_tokens"] for r in done) == 12 * 10 + ended


def test_weights_and_scores(environments: LocalHost, tmp_path: Path) -> None:
    with world(environments) as (engine, generation):
        assert generation.update_weights(tmp_path / "w", "abc", 3) == "got abc"
        assert engine.state.weight_version == 3
        assert generation.score([[1, 2, 3]]) == [[-1.0, -1.0]]
        with pytest.raises(RunStopped, match=r"refused /admin/score: 422 .*at least two tokens"):
            generation.score([[1]])
        (rollout,) = collect(generation, plans(1, 1))
        assert rollout.segments[0].weight_version == 3


def test_an_environment_server_that_is_killed_is_named_within_seconds(tmp_path: Path) -> None:
    with LocalHost(tmp_path) as host:
        server = host.start_environments(["competition_math"], "t")
        server.wait_ready(60)
        with world(host) as (engine, generation):
            engine.seconds = 60.0
            done: list[Rollout] = []
            threading.Timer(1.0, lambda: os.kill(server.process.pid, signal.SIGKILL)).start()
            began = time.monotonic()
            with pytest.raises(
                ServerDied, match=r"environment server was killed by signal 9; .*environment_server\.log"
            ):
                generation.collect(plans(), done.append)
            assert time.monotonic() - began < 30  # a generation would take 60
            assert done == []  # no reward is invented


def test_a_wait_without_progress_says_on_whom(environments: LocalHost) -> None:
    with world(environments, no_progress_seconds=0.5) as (engine, generation):
        engine.seconds = 5.0
        with pytest.raises(OmnigymError, match=r"no rollout ended for 0\.5 s; waiting on 6 x generation"):
            collect(generation, plans())


def test_services_end_what_they_started_when_the_start_fails(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": "m", "steps": 1, "mixture": {"competition_math": 1}})
    with pytest.raises(OmnigymError), Services(config, tmp_path) as services:
        services.start_model(tmp_path / "nothing")
        services.start_environments()
        pids = [server.process.pid for server in services.host.servers if isinstance(server, LocalServer)]
        services.generation()
    assert len(pids) == 2 and all(gone(pid) for pid in pids)
