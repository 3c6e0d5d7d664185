"""Whole runs with their real processes (vLLM, environment server, Ray): killed at any moment, resumed, interrupted, exported."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from loop_world import write_config

from rl_trainer.store import RunStore, step_label
from rl_trainer.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OMNIGYM = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
TIMES = ("phase_seconds", "seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def run_command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*OMNIGYM, "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    )


def finished(process: subprocess.Popen[str], seconds: float = 700) -> str:
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 700) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.parent.parent.parent.glob(f"*/rollouts/{path.name}")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process], seconds: float = 120) -> list[str]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def result_of(folder: Path) -> dict[str, Any]:
    """What a run leaves, times apart. The canary is a difference of rounding: it is compared by its size."""
    from safetensors.torch import load_file

    from rl_trainer.weights import weights_digest

    store = RunStore.open(folder)
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in store.metrics()]
    assert all(row.pop("canary") < 1e-3 for row in rows)
    steps = len(rows)
    rollouts = [
        sorted((r.group, r.attempt, r.task_id, r.text, r.reward) for r in store.read(step_label(s)))
        for s in range(steps)
    ]
    last = store.checkpoints / step_label(steps)
    return {"metrics": rows, "rollouts": rollouts, "weights": weights_digest(load_file(last / "model.safetensors"))}


def reached(folder: Path, phase: str, step: int) -> bool:
    """Whether the run in `folder` is in `phase` of `step`, or past that step."""
    label = step_label(step)
    committed = (folder / "rollouts" / f"{label}.done").exists()
    if any(row["step"] >= step for row in RunStore(folder).metrics()):
        return True
    return {
        "generation": (folder / "rollouts" / f"{label}.tokens").exists(),
        "training": committed,
        "checkpoint": committed and any((folder / "checkpoints").glob(".step_*")),
        "sync": committed and Path(f"/dev/shm/omnigym-{folder.name}-{step + 1}.safetensors").exists(),
    }[phase]


def test_a_run_killed_in_every_phase_and_resumed_equals_an_uninterrupted_one(model: Path, tmp_path: Path) -> None:
    """kill -9 in generation (under Ray), training, checkpoint and sync, each followed by a resume; seeded delays within."""
    values = {"steps": 5, "group_size": 3, "sampling": {"max_tokens": 16}}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    finished(run_command(str(write_config(tmp_path / "whole", model, **values))))
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    draw, runs = random.Random(4), tmp_path / "killed" / "runs"
    arguments = [str(write_config(tmp_path / "killed", model, **values)), "ray.enabled=true", "ray.num_cpus=2"]
    for phase, step in (("generation", 0), ("training", 1), ("checkpoint", 1), ("sync", 3)):
        process = run_command(*arguments)
        deadline = time.monotonic() + 700
        while not (runs.exists() and any(reached(folder, phase, step) for folder in runs.iterdir())):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        children = family(process)
        assert len(children) >= 3
        process.kill()
        process.wait()
        assert all_gone(children) == []
        (killed,) = runs.iterdir()
        arguments = ["--resume", str(killed), "ray.enabled=false"]
    finished(run_command(*arguments))
    expected, found = result_of(whole), result_of(killed)
    for key in expected:
        assert found[key] == expected[key], key
    assert not list(Path("/dev/shm").glob(f"*{killed.name}*"))
    assert {path.name for path in (killed / "checkpoints").iterdir()} == {"step_000004", "step_000005"}


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "start"), (signal.SIGINT, "step"), (signal.SIGTERM, "step")]
)
def test_an_interrupted_run_leaves_no_process_and_says_how_to_go_on(
    model: Path, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    """With Ray: its head, workers, vLLM's worker and the environments' workers are all gone. Also while they start."""
    path = write_config(tmp_path, model, ray={"enabled": True, "num_cpus": 2}, steps=200)
    process = run_command(str(path))
    if moment == "start":
        deadline = time.monotonic() + 180
        while not any("gym_servers.models.vllm" in " ".join(p.cmdline()) for p in family(process)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    else:
        wait_for(tmp_path / "runs" / "x" / "rollouts" / "step_000001.done", process)
    children = family(process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "omnigym train --resume" in out.replace("\n", " ")
    assert all_gone(children) == []


@pytest.mark.parametrize("victim", ["gym_servers.models.vllm", "VLLM::Worker", "env serve", "ray::_RayMember"])
def test_a_killed_process_is_named_and_the_run_stops(model: Path, tmp_path: Path, victim: str) -> None:
    """pitfall 20: kill -9 of each process in turn is a named error within seconds, never a wait for ever."""
    ray = {"enabled": victim.startswith("ray"), "num_cpus": 2}
    process = run_command(str(write_config(tmp_path, model, ray=ray, steps=500, placement={"restarts": 0})))
    wait_for(tmp_path / "runs" / "x" / "rollouts" / "step_000001.done", process)
    children = family(process)
    chosen = [p for p in children if victim in " ".join(p.cmdline())]
    assert chosen, [" ".join(p.cmdline()) for p in children]
    chosen[0].kill()
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    named = {
        "gym_servers.models.vllm": ("the model server was killed by signal 9",),
        "VLLM::Worker": ("model server", "model_error"),
        "env serve": ("the environment server was killed by signal 9",),
        "ray::_RayMember": ("policy worker rank 0 died",),
    }[victim]
    assert any(name in out.replace("\n", " ") for name in named), out
    assert all_gone(children) == []


def test_a_killed_environment_server_is_started_again_and_counted(model: Path, tmp_path: Path) -> None:
    process = run_command(str(write_config(tmp_path, model, ray={"enabled": False}, steps=12)))
    wait_for(tmp_path / "runs" / "x" / "rollouts" / "step_000001.done", process)
    (server,) = [p for p in family(process) if "env serve" in " ".join(p.cmdline())]
    server.kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "the environment server was killed by signal 9" in out.replace("\n", " ")
    (run,) = (tmp_path / "runs").iterdir()
    counts = [json.loads(line).get("server_restarts") for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [count for count in counts if count is not None]
    assert len(steps) == 12 and (steps[0], steps[-1]) == (0, 1)


def test_what_is_exported_is_what_vllm_serves(model: Path, tmp_path: Path) -> None:
    """`omnigym export` of a trained checkpoint: vLLM scores as the trainer's weights do, not as the starting ones."""
    from loop_world import make_run, small_config

    from gym_servers.models.vllm import VllmEngine, VllmSettings
    from rl_trainer.weights import mean_difference

    run, _ = make_run(small_config(model, tmp_path, steps=2), model)
    run.train()
    subprocess.run([*OMNIGYM, "export", str(run.store.folder), "--dtype", "float32"], check=True)
    sequences = run.policy.canary()
    start, _ = make_run(small_config(model, tmp_path / "other"), model)

    async def scores() -> list[list[float]]:
        folder = str(run.store.folder / "export")
        engine = await VllmEngine.start(
            VllmSettings(model=folder, dtype="float32", max_model_len=256, threads=1, kv_gib=1)
        )
        try:
            return await engine.score(sequences)
        finally:
            await engine.close()

    found = asyncio.run(scores())
    assert mean_difference(run.policy.score(sequences), found) < 1e-4
    assert mean_difference(start.policy.score(sequences), found) > 1e-2
