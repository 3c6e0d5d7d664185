"""`omnigym profile --again RUN`: a profile with the run's best checkpoint, and the resumed run's new plan of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from loop_world import without_servers, write_config
from typer.testing import CliRunner

from curriculum.profile import read_profile
from gym_servers.cli import build
from gym_servers.protocol import OmnigymError
from rl_trainer.checkpoint import best_step
from rl_trainer.store import RunStore, step_label
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import export_checkpoint_weights


def omnigym(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_stopped_run_is_profiled_again_and_goes_on_with_a_new_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_servers(monkeypatch)
    model = make_tiny_model(tmp_path / "model")
    val = {"tasks": 1, "samples": 1, "every": 1}
    config = write_config(tmp_path, model, steps=2, val=val, checkpoint={"every": 1})
    profile = tmp_path / "start.parquet"
    gaussian = ["sampler=gaussian", f"curriculum={{profile: {profile}, samples: 4}}"]
    omnigym("profile", "--config", str(config), *gaussian)
    omnigym("train", str(config), *gaussian)
    profile.unlink()  # the run has its own copy
    (folder,) = (tmp_path / "runs").iterdir()
    store = RunStore.open(folder)
    with pytest.raises(OmnigymError, match="has done all its 2 steps: no plan is left to be made"):
        omnigym("profile", "--again", str(folder))
    with pytest.raises(OmnigymError, match="steps was 2 and is 4: the plan cannot go on"):
        omnigym("train", "--resume", str(folder), "steps=4")
    with pytest.raises(OmnigymError, match="--again writes into the run folder"):
        omnigym("profile", "--again", str(folder), "--out", "x.parquet")
    assert store.profiles() == {}

    said = omnigym("profile", "--again", str(folder), "steps=4")
    best = best_step(store.checkpoints)
    assert best == 1 and "the checkpoint of 1 steps, for a new plan from step 2" in said
    made = read_profile(store.profile_path(2))
    sent = export_checkpoint_weights(store.checkpoints / "step_000001", tmp_path / "sent.safetensors", "float32")
    assert made.weights == sent and len(made) == 20 and set(made.pass_rate) == {0.25}
    before = store.profile_path(2).read_bytes()
    omnigym("profile", "--again", str(folder), "steps=4")  # finished: nothing is sampled again
    assert store.profile_path(2).read_bytes() == before

    with pytest.raises(OmnigymError, match="a run keeps the profile that it began with"):
        omnigym("train", "--resume", str(folder), "curriculum.profile=other.parquet")
    omnigym("train", "--resume", str(folder), "steps=4")
    records = {row["step"]: row for row in store.metrics() if "evaluation" not in row}
    assert sorted(records) == [0, 1, 2, 3]
    assert ["profile_pass_rate" in records[step] for step in range(4)] == [True] * 4
    assert records[2]["profile_pass_rate"] == 0.25
    # Space was made: the best checkpoint is gone, and the last stands in for it.
    shutil.rmtree(store.checkpoints / "step_000001")
    assert "the checkpoint of 4 steps" in omnigym("profile", "--again", str(folder), "steps=5")
    assert all(store.committed(step_label(step)) for step in range(4))
