"""The comparison's figures, from the folders of four finished runs written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RATES = {("gaussian", 1): (0.2, 0.5), ("random", 1): (0.2, 0.4), ("gaussian", 2): (0.3, 0.8), ("random", 2): (0.3, 0.5)}
"""Pass rates before and after: gains 0.3 and 0.5 against 0.2 and 0.2."""


def write_run(out: Path, arm: str, seed: int) -> Path:
    folder = out / f"{arm}-{seed}" / f"{arm}-{seed}-20260101-000000"
    folder.mkdir(parents=True)
    before, after = RATES[arm, seed]
    entry = {"before": {"pass_rate": before}, "after": {"pass_rate": after}}
    summary = {"environments": {"maths": entry}, "all": {"before": before, "after": after}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("steps: 2\ngroup_size: 4\n")
    rows: list[dict[str, Any]] = [
        {"step": 0, "evaluation": "eval_before", "environments": {"maths": {"reward_mean": before, "n": 8}}}
    ]
    for step in range(2):
        figures = {"reward_mean": 0.1 * seed + step / 4, "rollouts": 4, "n": 99}
        other = {"reward_mean": 1.0, "rollouts": 12, "n": 1}
        rows.append({"step": step, "profile_pass_rate": 0.5, "environments": {"maths": figures, "other": other}})
    rows.append({"step": 2, "evaluation": "eval_after", "environments": {"maths": {"reward_mean": after, "n": 8}}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def compare(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/curriculum_against_random.py"), "--table-only", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=env)


def test_gains_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """gaussian: 0.4, its standard error |0.5 - 0.3| / 2 = 0.1; random: 0.2 ± 0. The differences are 0.1 and 0.3: 0.2 ± 0.1. Seed 3 has one
    arm only, and counts for neither."""
    for arm, seed in RATES:
        write_run(tmp_path, arm, seed)
    write_run(tmp_path / "more", "gaussian", 1).parent.rename(tmp_path / "gaussian-3")
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    row = "| maths | 25.0 | 65.0 | +40.0 ± 10.0 | 25.0 | 45.0 | +20.0 ± 0.0 | +20.0 ± 10.0 |"
    assert row in text and row.replace("maths", "all") in text and "over 2 seeds (1, 2)" in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seeds"] == [1, 2] and result["environments"]["all"]["difference"] == pytest.approx(0.2)
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<polyline") == 6 and drawn.count("<polygon") == 6
    empty = compare(tmp_path / "none")
    assert empty.returncode == 1 and "no seed that both arms have finished" in empty.stderr
