"""`omnigym train` with its environments on each host but the local one, which every other test of whole runs is on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_world import write_config

from gym_servers.hosts.local import LocalHost, environment_server
from gym_servers.hosts.servers import Environments
from gym_servers.protocol import Rollout
from rl_trainer.config import RunConfig
from rl_trainer.loop import plan_rollouts
from rl_trainer.sampler import LoadedTask, PlannedTask
from rl_trainer.services import Services
from rl_trainer.tiny_model import make_tiny_model

TOKEN = "the-token-of-somebody-else"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def placement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The `placement` of a host, with what it needs there."""
    host = request.param
    if host == "docker":
        yield {"environments": host, "image": request.getfixturevalue("environments_image")}
    elif host == "url":
        monkeypatch.setenv("OMNIGYM_ENVIRONMENTS_TOKEN", TOKEN)
        behind = environment_server(Environments(["competition_math", "mcqa"], TOKEN))
        try:
            yield {"environments": host, "url": behind.wait_ready(600)}
        finally:
            behind.stop()
    else:
        yield {"environments": host}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "placement",
    ["url", pytest.param("docker", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_run_s_services_stand_on_it(
    placement: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a run but the engine and the policy: a scripted model answers."""

    def scripted(self: LocalHost, settings: dict[str, Any], threads: int) -> Any:
        chosen = json.dumps({"texts": ["\\boxed{4}"]})
        keys = {"OMNIGYM_TOKEN": settings["token"], "OMNIGYM_SECRET": settings["secret"]}
        command = [sys.executable, "-m", "gym_servers.models.scripted", "--settings", chosen]
        return self.start("the model server", command, keys)

    monkeypatch.setattr(LocalHost, "start_model", scripted)
    tree = {"model": "m", "steps": 1, "mixture": {"competition_math": 1}, "placement": placement}
    config = RunConfig.model_validate({**tree, "ray": {"num_cpus": 1}, "engine": {"start_seconds": 900}})
    row = {"responses_create_params": {"input": "What is 2 + 2?"}}
    tasks = [
        PlannedTask(LoadedTask("competition_math", answer, {**row, "expected_answer": answer}), answer)
        for answer in ("4", "5")
    ]
    done: list[Rollout] = []
    with Services(config, tmp_path) as services:
        services.start_model(tmp_path)
        if placement["environments"] == "ray":
            services.start_ray()
        services.start_environments()
        services.generation().collect(plan_rollouts(0, "run", "step", tasks, 2), done.append)
    assert sorted((r.task_id, r.attempt, r.reward, r.failure) for r in done) == [
        ("4", 0, 1.0, None),
        ("4", 1, 1.0, None),
        ("5", 0, 0.0, None),
        ("5", 1, 0.0, None),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("placement", ["ray", "docker", "url"], indirect=True)
def test_a_step_is_trained(placement: dict[str, Any], model: Path, tmp_path: Path) -> None:
    values = {"ray": {"enabled": True, "num_cpus": 2}} if placement["environments"] == "ray" else {}
    config = write_config(tmp_path, model, steps=1, placement=placement, sampling={"max_tokens": 16}, **values)
    done = subprocess.run(
        [sys.executable, "-c", "from gym_servers.cli import main; main()", "train", str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    (step,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = step["environments"]["competition_math"]
    assert (figures["rollouts"], figures["failures"], step["server_restarts"]) == (8, 0, 0)
    written = "".join(
        path.read_text(errors="replace") for path in folder.rglob("*") if path.suffix in (".yaml", ".log")
    )
    assert TOKEN not in written + done.stdout + done.stderr
