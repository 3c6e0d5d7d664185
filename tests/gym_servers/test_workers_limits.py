"""Workers: each limit holds, and a broken worker is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from gym_servers.workers import WorkerError, WorkerPool

LIMITS = {"cpu_seconds": 0.5, "wall_seconds": 20.0, "memory_mb": 256}
HERE = "worker_targets"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


def test_a_result_comes_back(pool: WorkerPool) -> None:
    assert pool.run_sync(f"{HERE}:add", (2, 3), **LIMITS) == 5


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("burn", "cpu"),
        ("burn_in_c", "cpu"),
        ("eat", "memory"),
        ("die", "crash"),
        ("fail", "exception"),
        ("recurse", "exception"),
    ],
)
def test_each_way_to_break_is_named_and_the_next_call_works(pool: WorkerPool, target: str, kind: str) -> None:
    with pytest.raises(WorkerError) as caught:
        pool.run_sync(f"{HERE}:{target}", (), **LIMITS)
    assert caught.value.kind == kind
    assert pool.run_sync(f"{HERE}:add", (1, 1), **LIMITS) == 2


def test_sleeping_ends_at_the_wall_limit(pool: WorkerPool) -> None:
    with pytest.raises(WorkerError) as caught:
        pool.run_sync(f"{HERE}:sleep", (), cpu_seconds=5, wall_seconds=0.5, memory_mb=64)
    assert caught.value.kind == "wall"


def test_cpu_time_of_earlier_calls_does_not_count(pool: WorkerPool) -> None:
    for _ in range(4):
        pool.run_sync(f"{HERE}:burn_for", (0.2,), **LIMITS)


def test_a_worker_killed_from_outside_is_a_crash_not_a_hang(pool: WorkerPool) -> None:
    pid = pool.run_sync(f"{HERE}:pid", (), **LIMITS)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerError) as caught:
        pool.run_sync(f"{HERE}:sleep", (), **LIMITS)
    assert caught.value.kind == "crash"


def test_secrets_of_the_server_are_not_in_the_worker(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGYM_TOKEN", "secret")
    assert "OMNIGYM_TOKEN" not in pool.run_sync(f"{HERE}:environment_names", (), **LIMITS)


def test_close_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    pool = WorkerPool(2)
    pid = pool.run_sync(f"{HERE}:pid", (), **LIMITS)
    pool.close()
    time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_a_fresh_worker_has_served_no_call(pool: WorkerPool) -> None:
    """A second try must not meet what the first left in the worker's memory."""

    first, again, fresh = (pool.run_sync("os:getpid", (), fresh=fresh, **LIMITS) for fresh in (False, False, True))
    assert first == again != fresh
