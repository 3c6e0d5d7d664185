"""kill -9 at any write: a run that is killed again and again, and resumed, ends as one that nobody killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from loop_world import easy_profile, make_run, small_config
from safetensors.torch import load_file

from rl_trainer.observed import Observed
from rl_trainer.store import RunStore, step_label
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import weights_digest

STEPS = 4
TIMES = ("phase_seconds", "seconds", "tokens_per_second")
CURRICULUM = {
    "sampler": "gaussian",
    "curriculum": {"profile": "p.parquet", "samples": 1, "replan": {"patience": 1}},
    "dynamic_sampling": {"max_attempts": 1},
}
"""No validation of the tiny model improves, so there are new plans from steps 2 and 3."""
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def attempt(model: Path, folder: Path, kill_at: int, count: Any, values: dict[str, Any]) -> None:
    """Go on with the run in `folder`; this process kills itself before the `kill_at`-th write of a file in it."""
    writes = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal writes
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in WRITES:
            return
        if str(folder) in str(arguments[0]):
            writes += 1
            count.value = writes
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    val = {"every": 1, "tasks": 1, "samples": 1}
    config = small_config(model, folder.parent, steps=STEPS, val=val, checkpoint={"every": 2, "keep_last": 1}, **values)
    profile = easy_profile() if values else None
    run, _ = make_run(config, model, RunStore.open(folder), heldout=True, profile=profile)
    run.train()
    run.log.close()


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves, times apart."""
    store = RunStore.open(folder)
    checkpoints = {path.name for path in store.checkpoints.iterdir()}
    labels = [*map(step_label, range(STEPS)), "eval_before", *(f"eval_{s:06d}" for s in range(1, STEPS)), "eval_after"]
    return {
        "weights": weights_digest(load_file(store.checkpoints / f"step_{STEPS:06d}" / "model.safetensors")),
        "checkpoints": checkpoints,
        "best": json.loads((store.checkpoints / "best.json").read_text()),
        "observed": list(Observed(folder).rows()),
        "profiles": {step: path.read_bytes() for step, path in store.profiles().items()},
        "metrics": [{key: value for key, value in row.items() if key not in TIMES} for row in store.metrics()],
        "rollouts": {
            label: sorted((r.group, r.attempt, r.seed, r.text) for r in store.read(label)) for label in labels
        },
    }


def start(model: Path, folder: Path, kill_at: int, values: dict[str, Any]) -> tuple[int | None, int]:
    """(exit code, writes) of one attempt."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loop_world", "rl_trainer.policy", "transformers", "torch.utils.tensorboard"])
    count = context.Value("i", 0)
    process = context.Process(target=attempt, args=(model, folder, kill_at, count, values))
    process.start()
    process.join(240)
    return process.exitcode, count.value


def new_run(parent: Path) -> Path:
    parent.mkdir()
    return RunStore.create(parent, "tiny", "name: tiny\n").folder


Whole = Callable[[str], tuple[dict[str, Any], int]]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What an uninterrupted run of a kind leaves, and its number of writes."""

    @cache
    def made(kind: str) -> tuple[dict[str, Any], int]:
        folder = new_run(tmp_path_factory.mktemp("whole") / "runs")
        code, writes = start(model, folder, -1, KINDS[kind])
        assert code == 0
        return outcome(folder), writes

    return made


KINDS: dict[str, dict[str, Any]] = {"plain": {}, "curriculum": CURRICULUM}
CASES = [("plain", k) for k in range(1, 10)] + [("curriculum", k) for k in range(2)]


@pytest.mark.parametrize(
    ("kind", "seed"), [("plain", 0), *(pytest.param(kind, k, marks=pytest.mark.slow) for kind, k in CASES)]
)
def test_a_run_killed_at_any_write_and_resumed_equals_an_uninterrupted_one(
    model: Path, tmp_path: Path, whole: Whole, kind: str, seed: int
) -> None:
    expected, writes = whole(kind)
    assert list(expected["profiles"]) == ([2, 3] if kind == "curriculum" else [])
    draw = random.Random(seed)
    folder, kills = new_run(tmp_path / "runs"), 0
    for _ in range(4):
        code, _ = start(model, folder, draw.randrange(1, writes // 2), KINDS[kind])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills > 1
    assert start(model, folder, -1, KINDS[kind])[0] == 0
    found = outcome(folder)
    for key, value in expected.items():
        assert found[key] == value, key
