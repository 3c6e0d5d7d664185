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
SCRIPTS = ("rollout_cpu", "verify_cpu", "server_start", "grpo_step_vs_trl", "workplace")


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


def test_the_workplace_s_sessions_have_time_and_size() -> None:
    found = result("workplace", "--sessions", "200", "--requests", "20")
    assert found["sessions"] == 200
    assert 0 < found["seed_ms"] and 0 < found["verify_ms"] and found["fresh_bytes"] <= found["busy_bytes"]


def test_a_server_s_start_has_wall_and_cpu_seconds() -> None:
    found = result("server_start", "--repeats", "1")
    assert found["wall"] > 0 and found["cpu"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_it_measures(script: str) -> None:
    assert "CPU time" in run(script, "--help")
