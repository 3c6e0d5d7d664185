"""The base install alone, as an environment's container has it: small, without the trainer's packages, and enough to grade."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MB = 300
PARTS = ("gym_servers", "environments", "curriculum", "genrm", "rl_trainer", "pyproject.toml", "README.md", "LICENSE")


def size_mb(folder: Path) -> float:
    files = {(stat.st_dev, stat.st_ino): stat.st_blocks for p in folder.rglob("*") if (stat := p.lstat())}
    return sum(files.values()) * 512 / 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_base_install_is_small_and_grades_without_the_trainer_s_packages(tmp_path: Path) -> None:
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in PARTS:  # a build leaves files beside what it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin/pip", "install", "-q", source)
    omnigym = venv / "bin/omnigym"
    assert size_mb(venv) < LIMIT_MB
    heavy = "import importlib.util as u; print([n for n in ('torch', 'ray', 'vllm', 'transformers') if u.find_spec(n)])"
    assert run(venv / "bin/python", "-c", heavy).strip() == "[]"

    names = {entry["name"] for entry in json.loads(run(omnigym, "env", "list", "--json"))}
    assert names >= {"competition_math", "instruction_following", "structured_outputs"}
    without = subprocess.run(
        [omnigym, "env", "generate", "reasoning_gym"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert without.returncode == 1 and b"pip install 'omnigym[reasoning-gym]'" in without.stderr + without.stdout
    config = tmp_path / "run.yaml"
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    config.write_text("{model: model, steps: 1, mixture: {mcqa: 1}}")
    trains = subprocess.run([omnigym, "train", config], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert trains.returncode == 1 and "pip install 'omnigym[train]'" in trains.stderr, trains.stderr
    assert "Traceback" not in trains.stderr
    for name in sorted(names - {"reasoning_gym"}):  # its tasks are made by an optional package
        rows = [json.loads(line) for line in run(omnigym, "env", "generate", name, "--n", 2).splitlines()]
        assert [row["agent_ref"]["name"] for row in rows] == [name, name]
    # The second needs math-verify in a worker: a polynomial is nothing for the quick path.
    cases = [("quick", "4", "4", 1.0), ("worker", "x^2-1", "(x-1)(x+1)", 1.0), ("wrong", "4", "5", 0.0)]
    lines = [
        {
            "id": name,
            "request": {
                "expected_answer": expected,
                "response": {"output": [{"type": "message", "role": "assistant", "content": f"\\boxed{{{given}}}"}]},
            },
        }
        for name, expected, given, _ in cases
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(omnigym, "verify", "competition_math", "--cases", "in.jsonl", "--out", "out.jsonl")
    verdicts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {v["id"]: v["reward"] for v in verdicts} == {name: reward for name, _, _, reward in cases}
