"""The benchmarks run and report figures that can be true. How fast anything is, is not tested: that is what they are run for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("rollout_cpu", "verify_cpu", "server_start", "grpo_step_vs_trl", "sandbox")


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def result(script: str, *arguments: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run(script, *arguments).splitlines()[-1])
    assert value["benchmark"] == script
    return value


def test_a_rollout_s_cpu_time_is_that_of_all_three_processes() -> None:
    best = result("rollout_cpu", "--rollouts", "200", "--rounds", "1", "--concurrency", "16")["best"]
    parts = [best[name] for name in ("collector", "environment server", "model server")]
    assert all(part > 0 for part in parts)
    assert best["all"] == pytest.approx(sum(parts))


def test_verify_is_measured_beside_an_echo_in_every_environment() -> None:
    found = result("verify_cpu", "--requests", "400", "--rounds", "1")["environments"]
    assert set(found) == {"competition_math", "instruction_following", "structured_outputs"}
    for figures in found.values():
        assert figures["ratio"] == pytest.approx(figures["best_ms"] / figures["echo_best_ms"])


def test_a_server_s_start_has_wall_and_cpu_seconds() -> None:
    found = result("server_start", "--repeats", "1")
    assert found["wall"] > 0 and found["cpu"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_it_measures(script: str) -> None:
    assert "CPU time" in run(script, "--help")


def test_a_run_of_the_sandbox_beside_a_fresh_interpreter() -> None:
    told = result("sandbox", "--runs", "80", "--rounds", "1")
    assert 0 < told["cpu_ms"] < told["fresh_cpu_ms"]
    assert told["times_as_many"] == pytest.approx(told["runs_per_second"] / told["fresh_runs_per_second"], rel=0.02)
