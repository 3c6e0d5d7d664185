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
SCRIPTS = ("rollout_cpu", "verify_cpu", "server_start", "grpo_step_vs_trl", "sandbox", "workplace", "curriculum")


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


@pytest.mark.slow
def test_verify_is_measured_beside_an_echo_in_every_environment() -> None:
    found = result("verify_cpu", "--requests", "400", "--rounds", "1")["environments"]
    assert set(found) == {"competition_math", "instruction_following", "structured_outputs"}
    for figures in found.values():
        assert figures["ratio"] == pytest.approx(figures["best_ms"] / figures["echo_best_ms"])


@pytest.mark.slow
def test_the_workplace_s_sessions_have_time_and_size() -> None:
    found = result("workplace", "--sessions", "200", "--requests", "20")
    assert found["sessions"] == 200
    assert 0 < found["seed_ms"] and 0 < found["verify_ms"] and found["fresh_bytes"] <= found["busy_bytes"]


@pytest.mark.slow
def test_a_server_s_start_has_wall_and_cpu_seconds() -> None:
    found = result("server_start", "--repeats", "1")
    assert found["wall"] > 0 and found["cpu"] > 0


@pytest.mark.slow
def test_verifiers_are_measured_on_cases_and_on_gold_answers() -> None:
    found = result("verifiers", "mcqa", "structured_outputs", "--seconds", "0.1", "--tasks", "20")
    assert set(found["environments"]) == {"mcqa", "structured_outputs"} and found["left_out"] == {}
    for kinds in found["environments"].values():
        assert set(kinds) == {"cases", "gold"}
        for figures in kinds.values():
            assert 0 < figures["p50_ms"] <= figures["p99_ms"] and figures["per_second"] > 0
    cases = (ROOT / "environments/mcqa/cases.jsonl").read_text().splitlines()
    assert found["environments"]["mcqa"]["cases"]["verdicts"] % len(cases) == 0  # whole passes
    assert found["environments"]["mcqa"]["gold"]["in_process"] == 1.0
    assert 0 < found["environments"]["structured_outputs"]["gold"]["in_process"] < 1.0


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_it_measures(script: str) -> None:
    assert "CPU time" in run(script, "--help")


@pytest.mark.slow
def test_a_run_of_the_sandbox_beside_a_fresh_interpreter() -> None:
    told = result("sandbox", "--runs", "80", "--rounds", "1")
    assert 0 < told["cpu_ms"] < told["fresh_cpu_ms"]
    assert told["times_as_many"] == pytest.approx(told["runs_per_second"] / told["fresh_runs_per_second"], rel=0.02)


def test_a_small_plan_is_measured() -> None:
    found = result("curriculum", "--tasks", "5000", "--steps", "20")
    assert set(found["seconds"]) == {"read", "plan", "page", "resume in the middle", "replacements"}
    assert found["seconds"]["plan"] > 0 and found["page_bytes"] > 10_000
