"""`omnigym train | export | report` as a user calls them; slow: whole runs with vLLM, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from loop_world import make_run, small_config
from typer.testing import CliRunner

from gym_servers.cli import build
from gym_servers.protocol import OmnigymError
from rl_trainer import commands
from rl_trainer.store import RunStore, step_label
from rl_trainer.tiny_model import make_tiny_model

OMNIGYM = [sys.executable, "-c", "from gym_servers.cli import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def write(folder: Path, model: Path, **values: Any) -> Path:
    tree: dict[str, Any] = {
        "name": "tiny",
        "runs_folder": str(folder / "runs"),
        "model": str(model),
        "steps": 3,
        "tasks_per_step": 2,
        "group_size": 4,
        "mixture": {"competition_math": 1},
        "tasks": {"competition_math": {"n": 20}},
        "sampling": {"max_tokens": 24},
        "algorithm": {"overlong_filtering": False},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "policy": {"dtype": "float32", "device": "cpu", "threads": 1},
        "engine": {"dtype": "float32", "threads": 1, "kv_gib": 1, "max_model_len": 1500},
        "checkpoint": {"every": 2},
        "val": {"tasks": 0},
        "ray": {"enabled": False},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**tree, **values}))
    return path


def call(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "no configuration file 'nothing.yaml'"),
        ([], "give a configuration file, or --resume RUN"),
        (["FILE", "stepz=3"], "unknown key 'stepz'; did you mean 'steps'"),
        (["FILE", "model=smollm2-136m"], "did you mean 'smollm2-135m'"),
        (["FILE", "mixture={competition_maths: 1}", "tasks={}"], "did you mean 'competition_math'"),
        (["FILE", "--rollouts-only", "--from-rollouts", "x"], "exclude each other"),
        (["FILE", "--from-rollouts", "x"], "'x' is no run folder"),
        (["--resume", "x"], "'x' is no run folder"),
        (["FILE", "policy.workers=2"], "policy.workers above 1 needs ray.enabled=true"),
        (["FILE", "engine.max_model_len=30"], "every prompt is longer than 6 tokens"),
    ],
)
def test_errors_name_the_fix(model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    path = str(write(tmp_path, model))
    with pytest.raises(OmnigymError, match=message):
        call("train", *[path if a == "FILE" else a for a in arguments])


def test_dry_run_prints_the_plan_and_starts_nothing(model: Path, tmp_path: Path) -> None:
    out = call("train", str(write(tmp_path, model)), "steps=5", "--dry-run")
    assert "environment competition_math: 20 training tasks" in out
    assert "5 steps of 2 tasks x 4 rollouts = 8 a step, 40 in all" in out
    assert "step 0: competition_math/" in out
    assert not (tmp_path / "runs").exists()


def test_from_rollouts_then_export_and_report(model: Path, tmp_path: Path) -> None:
    """Training from another run's rollouts needs no server; what it exports is a model that transformers loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = small_config(model, tmp_path / "source", steps=2)
    source, _ = make_run(config, model)
    source.rollouts_only()
    call("train", str(write(tmp_path, model)), "--from-rollouts", str(source.store.folder))
    (folder,) = (tmp_path / "runs").iterdir()
    assert "<svg" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert call("report", str(folder)).strip() == str(folder / "report.html")
    out = Path(call("export", str(folder), "--dtype", "float32").strip())
    trained = AutoModelForCausalLM.from_pretrained(out).state_dict()
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert any(not trained[name].equal(start[name]) for name in start)
    assert AutoTokenizer.from_pretrained(out).chat_template
    with pytest.raises(OmnigymError, match="no checkpoint of 9 steps; there are: 2"):
        call("export", str(folder), "--step", "9")
    with pytest.raises(OmnigymError, match="no validation on record"):
        call("export", str(folder), "--best")


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


def finished(process: subprocess.Popen[str], seconds: float = 240) -> str:
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.parent.parent.parent.glob(f"*/rollouts/{path.name}")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process], seconds: float = 30) -> list[str]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def result_of(folder: Path) -> tuple[Any, ...]:
    from safetensors.torch import load_file

    from rl_trainer.weights import weights_digest

    store = RunStore.open(folder)
    steps = [r for r in store.metrics() if "loss" in r]
    texts = [sorted((r.group, r.attempt, r.text, r.reward) for r in store.read(step_label(step))) for step in range(3)]
    return (
        weights_digest(load_file(folder / "checkpoints" / "step_000003" / "model.safetensors")),
        [r["step"] for r in steps],
        texts,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_with_kill_9_and_resumed_equals_an_uninterrupted_one(model: Path, tmp_path: Path) -> None:
    """vLLM in float32: the text of the step in flight is the same again. The servers of the killed run end with it."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finished(run_command(str(write(tmp_path / "whole", model))))
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    process = run_command(str(write(tmp_path / "killed", model)))
    wait_for(tmp_path / "killed" / "runs" / "x" / "rollouts" / "step_000002.tokens", process)
    children = family(process)
    assert len(children) >= 3
    process.kill()
    process.wait()
    assert all_gone(children) == []
    (killed,) = (tmp_path / "killed" / "runs").iterdir()
    finished(run_command("--resume", str(killed)))
    assert result_of(killed) == result_of(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_says_how_to_go_on(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """With Ray: its head, workers, vLLM's worker and the environments' workers are all gone."""
    path = write(tmp_path, model, ray={"enabled": True, "num_cpus": 2}, steps=200)
    process = run_command(str(path))
    wait_for(tmp_path / "runs" / "x" / "rollouts" / "step_000001.done", process)
    children = family(process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "omnigym train --resume" in out.replace("\n", " ")
    assert all_gone(children) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["VLLM::Worker", "serve competition_math", "ray::_RayMember"])
def test_a_killed_process_is_named_and_the_run_stops(model: Path, tmp_path: Path, victim: str) -> None:
    """pitfall 20: kill -9 of each process in turn is a named error within seconds, never a wait for ever."""
    process = run_command(str(write(tmp_path, model, ray={"enabled": True, "num_cpus": 2}, steps=500)))
    wait_for(tmp_path / "runs" / "x" / "rollouts" / "step_000001.done", process)
    children = family(process)
    chosen = [p for p in children if victim in " ".join(p.cmdline())]
    assert chosen, [" ".join(p.cmdline()) for p in children]
    chosen[0].kill()
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    named = {
        "VLLM::Worker": ("model server", "model_error"),
        "serve competition_math": ("the environment server was killed by signal 9",),
        "ray::_RayMember": ("policy worker rank 0 died",),
    }[victim]
    assert any(name in out.replace("\n", " ") for name in named), out
    assert all_gone(children) == []


def test_commands_are_registered() -> None:
    assert {"train", "export", "report"} <= {command.name for command in build().registered_commands}
    assert commands.train.__doc__
