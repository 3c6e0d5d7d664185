"""`omnigym model serve`, and settings of environments that `rollout`, `eval` and `env generate` take."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gym_servers import cli
from gym_servers.commands.collection import Stage
from gym_servers.protocol import OmnigymError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def served(monkeypatch: pytest.MonkeyPatch, *command: str) -> tuple[list[str], dict[str, str], str]:
    """(arguments, variables) that the command becomes, and what it said."""
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    result = CliRunner().invoke(cli.build(), ["model", "serve", *command])
    if result.exception is not None:
        raise result.exception
    program, arguments, variables = became
    assert program == arguments[0] == sys.executable
    return arguments, variables, result.output


def test_it_becomes_a_model_server_over_vllm(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGYM_TOKEN", "tok")
    arguments, variables, _ = served(
        monkeypatch, str(checkpoint), "--port", "0", "--engine", "threads=1", "--engine", "dtype=float32"
    )
    assert arguments[1:3] == ["-m", "gym_servers.models.vllm"]
    assert "tok" not in " ".join(arguments)  # no list of processes shows it
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["OMNIGYM_TOKEN"] == "tok" and variables["OMNIGYM_SECRET"]
    settings = json.loads(arguments[-1])
    assert settings.pop("model") == str(checkpoint)
    assert settings == {"max_num_seqs": 32, "threads": 1, "dtype": "float32", "host": "127.0.0.1", "port": 0}


def test_without_a_token_it_makes_one_or_is_told_to_have_none(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNIGYM_TOKEN", raising=False)
    _, variables, said = served(monkeypatch, str(checkpoint))
    assert f"token: {variables['OMNIGYM_TOKEN']}" in said
    monkeypatch.setenv("OMNIGYM_TOKEN", "tok")
    _, variables, said = served(monkeypatch, str(checkpoint), "--auth", "none")
    assert not variables["OMNIGYM_TOKEN"] and "no authentication" in said
    with pytest.raises(OmnigymError, match="loopback only"):
        served(monkeypatch, str(checkpoint), "--auth", "none", "--host", "0.0.0.0")


def test_what_it_cannot_serve_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OmnigymError, match="model 'nosuch' is neither a checkpoint folder nor a known name.*omnigym model get"
    ):
        served(monkeypatch, "nosuch")
    with pytest.raises(OmnigymError, match="--engine 'threads': must be key=value"):
        served(monkeypatch, str(checkpoint), "--engine", "threads")


def test_settings_of_environments_that_are_started_are_checked_first(checkpoint: Path) -> None:
    stage = Stage(["open_qa", "structured_outputs"], str(checkpoint), 1, settings=["open_qa.check_twice_swap=true"])
    assert stage.settings == {"open_qa": {"check_twice_swap": True}}
    for setting, problem in (
        ("open_qa.check_twice=true", "did you mean 'check_twice_swap'"),
        ("open_qas.check_twice_swap=true", "did you mean 'open_qa'"),
        ("check_twice_swap=true", "must be NAME.key=value"),
    ):
        with pytest.raises(OmnigymError, match=problem):
            Stage(["open_qa"], str(checkpoint), 1, settings=[setting])
    with pytest.raises(OmnigymError, match="it serves none"):
        Stage(["open_qa=http://h"], str(checkpoint), 1, settings=["open_qa.check_twice_swap=true"])


def test_generate_takes_settings() -> None:
    def longest(*options: str) -> int:
        command = ["env", "generate", "long_context_qa", "--n", "7", *options]
        result = CliRunner().invoke(cli.build(), command)
        assert result.exit_code == 0, result.output
        return max(json.loads(line)["tokens"] for line in result.output.splitlines())

    assert longest("--set", "generated_tokens=1500") <= 1500 < longest()
