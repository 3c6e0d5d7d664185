"""`omnigym train` with its environments on each host but the local one, which every other test of whole runs is on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need
from loop_world import write_config

from gym_servers.hosts.local import environment_server
from gym_servers.hosts.servers import Environments
from rl_trainer.tiny_model import make_tiny_model

BUILT = os.environ.get("OMNIGYM_IMAGE", "omnigym-environments:0.1.0")
TOKEN = "the-token-of-somebody-else"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def has_image() -> bool:
    """Whether the engine is there, and the image."""
    try:
        found = subprocess.run(["docker", "image", "inspect", BUILT], capture_output=True)
    except FileNotFoundError:
        return False
    return found.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("host", ["ray", "docker", "url"])
def test_a_step_is_trained(host: str, model: Path, tmp_path: Path) -> None:
    if host == "docker":
        need("docker", has_image(), f"no Docker engine, or no image {BUILT}")
    placement: dict[str, str] = {"environments": host, **({"image": BUILT} if host == "docker" else {})}
    behind = None
    if host == "url":
        behind = environment_server(Environments(["competition_math", "mcqa"], TOKEN))
        placement["url"] = behind.wait_ready(600)
    values = {"ray": {"enabled": True, "num_cpus": 2}} if host == "ray" else {}
    config = write_config(tmp_path, model, steps=1, placement=placement, sampling={"max_tokens": 16}, **values)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from gym_servers.cli import main; main()", "train", str(config)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMNIGYM_ENVIRONMENTS_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=1500,
        )
    finally:
        if behind is not None:
            behind.stop()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    (step,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = step["environments"]["competition_math"]
    assert (figures["rollouts"], figures["failures"], step["server_restarts"]) == (8, 0, 0)
    written = "".join(
        path.read_text(errors="replace") for path in folder.rglob("*") if path.suffix in (".yaml", ".log")
    )
    assert TOKEN not in written + done.stdout + done.stderr
