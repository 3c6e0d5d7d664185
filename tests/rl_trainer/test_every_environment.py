"""One step of training on all twelve environments at once, agentic ones among them, with a tiny model through vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import has_reasoning_gym

from gym_servers.registry import environment_names
from rl_trainer.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "rl_trainer" / "configs" / "everything.yaml"
OVERRIDES = (
    *("steps=1", "group_size=2", "ray.enabled=false", "sampling.max_tokens=24", "algorithm.overlong_filtering=false"),
    *(
        "engine.dtype=float32",
        "engine.threads=1",
        "engine.kv_gib=1",
        "engine.max_model_len=16384",
        "engine.start_seconds=600",
    ),
    *("policy.dtype=float32", "policy.threads=1", "policy.micro_batch_tokens=16384"),
)


def test_the_configuration_names_every_environment() -> None:
    assert sorted(yaml.safe_load(CONFIG.read_text())["mixture"]) == environment_names()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_step_on_every_environment_at_once(tmp_path: Path) -> None:
    tree = yaml.safe_load(CONFIG.read_text())
    if not has_reasoning_gym():
        del tree["mixture"]["reasoning_gym"], tree["tasks"]["reasoning_gym"]
        tree["tasks_per_step"] -= 1
    for source in tree["tasks"].values():
        source["n"] = 24
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    model = make_tiny_model(tmp_path / "model", positions=16384)
    command = [sys.executable, "-c", "from gym_servers.cli import main; main()", "train", str(file)]
    given = (f"model={model}", f"runs_folder={tmp_path / 'runs'}", *OVERRIDES)
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=1500, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (step,) = [json.loads(line) for line in next((tmp_path / "runs").glob("*/metrics.jsonl")).read_text().splitlines()]
    assert sorted(step["environments"]) == sorted(tree["mixture"])
    for name, figures in step["environments"].items():
        assert (figures["rollouts"], figures["failures"]) == (2, 0), name
        assert figures["segments_per_rollout"] >= 1.0, name
