"""Configuration: what is wrong is named with its whole key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl_trainer.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"model": "m", "steps": 3, "mixture": {"a": 1, "b": 3}}


def write(folder: Path, tree: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    config = load_config(path, ["optimizer.lr=1e-5", "mixture.b=0", "sampling.temperature=0.7", "policy.dtype=float32"])
    assert config.optimizer.lr == 1e-5 and config.environments == ["a"]
    again = load_config(write(tmp_path, yaml.safe_load(config.to_yaml())))
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    options = config.policy_options(Path("folder"), None)
    assert options.algorithm.temperature == 0.7 and options.optimizer.lr == 1e-5 and options.dtype == "float32"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.leanring_rate=1", "unknown key 'optimizer.leanring_rate'"),
        ("optimiser.lr=1", "unknown key 'optimiser'; did you mean 'optimizer'"),
        ("samplign.temperature=1", "did you mean 'sampling'"),
        ("algorithm.clip_hihg=1", "did you mean 'algorithm.clip_high'"),
        ("steps=many", "key 'steps': Input should be a valid integer.*found 'many'"),
        ("algorithm.importance.low=x", "key 'algorithm.importance.low'.*found 'x'"),
        ("group_size=1", "rollouts per task is 1"),
        ("mixture.a=-1", "must not be negative"),
        ("tasks.c.n=3", r"tasks names \['c'\]"),
        ("algorithm.temperature=0.5", "differs from sampling.temperature"),
        ("sampling.max_tokens=5000", "no room for a prompt"),
        ("steps", "must be key=value"),
        ("steps.more=1", "has no keys inside"),
        ("name=a/b", "must be letters"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL), [override])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"no configuration file .*runs\.yaml.*did you mean 'run\.yaml'"):
        load_config(tmp_path / "runs.yaml")
    with pytest.raises(ConfigError, match="expected keys and values, found list"):
        load_config(write(tmp_path, [1]))
    (tmp_path / "run.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="'steps' is required"):
        load_config(write(tmp_path, {"model": "m", "mixture": {"a": 1}}))


def test_the_demo_configuration_is_valid() -> None:
    config = load_config(ROOT / "rl_trainer" / "configs" / "demo.yaml")
    assert config.policy.dtype == "bf16" and config.sampling.temperature == 1.0
