"""The cluster of compose/docker-compose.yaml for real: a job submitted from outside trains on environments in containers, a judge is
asked, and both are closed to whoever has no token.

The model is tiny and random: it is right about nothing. The image is built from the checkout (minutes, and 4.4 GB, the first time).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from compose_stack import ROOT, base_image, build, compose_command, free_port, run
from conftest import need

from rl_trainer.store import RunStore

TRAIN_IMAGE = "omnigym-train:test"
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


@dataclass
class Cluster:
    """A running project."""

    command: list[str]
    variables: dict[str, str]
    ray: str

    def compose(self, *arguments: str) -> str:
        return run(*self.command, *arguments, **self.variables)

    def token(self, name: str) -> str:
        return self.compose("exec", "-T", "ray-head", "cat", TOKENS[name]).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *self.compose("ps", "-q", service).split()))
        return found[0]


@pytest.fixture(scope="module")
def cluster(environments_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need("vllm", find_spec("ray") is not None, "Ray, which submits the job, is not installed")
    command = compose_command(tmp_path_factory.mktemp("compose_command"))
    base, redis = base_image("train", "TRAIN_BASE_IMAGE"), base_image("redis", "REDIS_IMAGE")
    # A stand-in brings torch's wheel; on another base the Dockerfile's own index has it.
    index = ["TORCH_INDEX="] if base == "omnigym-base-train" else []
    build("train.Dockerfile", TRAIN_IMAGE, f"BASE_IMAGE={base}", *index, seconds=2400)
    ports = {f"OMNIGYM_{name}": str(free_port()) for name in ("PORT", "RAY_PORT", "MODEL_PORT")}
    override = tmp_path_factory.mktemp("compose") / "tiny.yaml"
    override.write_text(OVERRIDE)
    files = ["-f", str(ROOT / "compose" / "docker-compose.yaml"), "-f", str(override)]
    project = ["-p", f"omnigym-cluster-test-{os.getpid()}", "--profile", "cluster", "--profile", "judge"]
    running = Cluster(
        [*command, *files, *project],
        {
            **ports,
            "OMNIGYM_IMAGE": environments_image,
            "OMNIGYM_TRAIN_IMAGE": TRAIN_IMAGE,
            "REDIS_IMAGE": redis,
            "OMNIGYM_JUDGE_URL": JUDGE,
            "OMNIGYM_JUDGE_MODEL": "tiny",
            "OMNIGYM_CPUS": str(min(2, os.cpu_count() or 1)),
        },
        f"http://127.0.0.1:{ports['OMNIGYM_RAY_PORT']}",
    )
    try:
        running.compose("up", "-d", "--no-build", "--wait", "gateway", "ray-head", "ray-worker", "judge")
        yield running
    finally:
        running.compose("down", "-v", "--remove-orphans", "-t", "10")


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
@pytest.mark.timeout(1000)
def test_a_job_from_outside_trains_on_environments_in_containers(cluster: Cluster, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "rl_trainer" / "configs" / "demo.yaml", work)
    said = run(
        *(str(BIN / "ray"), "job", "submit", "--address", cluster.ray, "--working-dir", str(work), "--"),
        *("omnigym", "train", "demo.yaml", *OVERRIDES),
        seconds=900,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=cluster.token("ray"),
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )
    assert "succeeded" in said
    run_folder = next(line for line in said.splitlines() if line.startswith("run folder ")).split()[-1]
    # What the head wrote, seen by the worker, which wrote the checkpoint.
    worker = cluster.compose("ps", "-q", "ray-worker").strip()
    run("docker", "cp", f"{worker}:{run_folder}", str(tmp_path / "run"))
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
