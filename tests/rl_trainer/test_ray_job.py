"""The same configuration file on a Ray cluster: `ray job submit -- omnigym train FILE`, with a head of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from rl_trainer.commands import lasting_folder
from rl_trainer.store import RunStore
from rl_trainer.tiny_model import make_tiny_model

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def test_runs_of_a_job_do_not_lie_in_the_folder_that_ray_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert lasting_folder(Path("runs")) == Path("runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert lasting_folder(Path("runs")) == Path.home() / "runs"
    assert lasting_folder(Path("/data/runs")) == Path("/data/runs")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def head() -> Iterator[str]:
    """A Ray head on free ports, ended by its own processes (never `ray stop`, which ends everybody's)."""
    folder = Path(f"/tmp/og{os.getpid()}")  # short: Ray puts sockets into it, whose paths are limited
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    fixed = ["--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    small = ["--num-cpus=4", "--object-store-memory=100000000", "--include-dashboard=true"]
    process = subprocess.Popen(
        [BIN / "ray", "start", *fixed, *small],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                DIRECT.open(f"{address}/api/version", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the Ray head did not start"
                time.sleep(0.5)
        yield address
    finally:
        members = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(members, timeout=15)
        for member in left:
            member.kill()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_submitted_job_trains(head: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    work = tmp_path / "work"
    work.mkdir()
    tree = {
        "name": "job",
        "runs_folder": str(tmp_path / "runs"),
        "model": str(model),
        "steps": 2,
        "tasks_per_step": 2,
        "group_size": 4,
        "mixture": {"competition_math": 1},
        "tasks": {"competition_math": {"n": 20}},
        "sampling": {"max_tokens": 16},
        "algorithm": {"overlong_filtering": False},
        "policy": {"dtype": "float32", "device": "cpu", "threads": 1},
        "engine": {"dtype": "float32", "threads": 1, "max_model_len": 1500},
        "val": {"tasks": 0},
    }
    (work / "run.yaml").write_text(yaml.safe_dump(tree))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head, "--working-dir", work, "--", "omnigym", "train", "run.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    store = RunStore.open(folder)
    assert [record["step"] for record in store.metrics()] == [0, 1]
    assert (folder / "report.html").is_file()
    assert str(folder) in done.stdout
