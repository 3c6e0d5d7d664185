"""pitfall 26: every leaf of the configuration is read in a run. Access is tracked on the real objects, not in the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loop_world import without_servers
from pydantic import BaseModel
from typer.testing import CliRunner

from curriculum.options import CurriculumConfig, ReplanConfig
from gym_servers.cli import build
from rl_trainer import commands
from rl_trainer.config import PolicyConfig, RunConfig, TasksConfig
from rl_trainer.options import Options, PolicyOptions
from rl_trainer.tiny_model import make_tiny_model

COMMON: dict[str, Any] = {
    "steps": 2,
    "tasks_per_step": 2,
    "group_size": 3,
    "mixture": {"competition_math": 1},
    "tasks": {"competition_math": {"n": 6}},
    "policy": {"dtype": "float32", "device": "cpu", "threads": 1},
    "engine": {"dtype": "float32", "max_model_len": 600},
    "optimizer": {"lr": 1e-6},
    "val": {"tasks": 1, "samples": 1, "every": 1},
    "checkpoint": {"every": 1},
}
# Two runs, since some options are read only where another one asks for them.
RUNS: list[dict[str, Any]] = [
    {
        "ray": {"enabled": True},
        "sampler": "gaussian",
        "steps": 4,
        "curriculum": {"profile": "profile.parquet", "samples": 1, "replan": {"patience": 1, "min_improvement": 1}},
        "dynamic_sampling": {"max_attempts": 1},
    },
    {
        "algorithm": {"ratio": "sequence", "kl_beta": 0.1, "optimizer_steps_per_batch": 2, "overlong_filtering": False},
        "ray": {"enabled": False},
    },
]


def leaves(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(class, field) of everything that a user may set. Fields of PolicyConfig travel to the worker in PolicyOptions."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation)
        else:
            worker = model is PolicyConfig and name in PolicyOptions.model_fields
            yield (PolicyOptions if worker else model).__name__, name
    if model is RunConfig:
        yield from leaves(TasksConfig)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Filled with what is read of any options, once they are validated."""
    found: set[tuple[str, str]] = set()
    plain = BaseModel.__getattribute__

    def tracked(self: BaseModel, name: str) -> Any:
        value = plain(self, name)
        if name in type(self).model_fields and not isinstance(value, BaseModel):
            found.add((type(self).__name__, name))
        return value

    for kind in (Options, CurriculumConfig, ReplanConfig):
        monkeypatch.setattr(kind, "__getattribute__", tracked, raising=False)
    return found


def test_every_leaf_is_read_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: set[tuple[str, str]]
) -> None:
    model = make_tiny_model(tmp_path / "model")
    load = commands.load_config

    def loaded(path: Path, overrides: Any) -> RunConfig:
        config = load(path, overrides)
        read.clear()  # what the validators read does not count
        return config

    monkeypatch.setattr(commands, "load_config", loaded)
    without_servers(monkeypatch)
    seen: set[tuple[str, str]] = set()
    for number, values in enumerate(RUNS):
        tree = {**COMMON, "name": "x", "runs_folder": str(tmp_path / "runs"), "model": str(model), **values}
        path = tmp_path / f"{number}.yaml"
        if "curriculum" in values:
            tree["curriculum"]["profile"] = str(tmp_path / "profile.parquet")
            path.write_text(yaml.safe_dump(tree))
            made = CliRunner().invoke(build(), ["profile", "--config", str(path), "--n", "4"], catch_exceptions=False)
            assert made.exit_code == 0, made.output
            read.clear()
        path.write_text(yaml.safe_dump(tree))
        result = CliRunner().invoke(build(), ["train", str(path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        seen |= read
    assert set(leaves(RunConfig)) - seen == set()
