"""`omnigym env new`: what it writes passes at once, by its own test and by every check; what cannot be written is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gym_servers import cli, registry
from gym_servers.commands.env_new import KINDS
from gym_servers.protocol import OmnigymError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from gym_servers.cli import main; main()"


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PATH_VARIABLE, "")


def run(*command: str, cwd: Path) -> str:
    """A command as a user runs it, anywhere but in the checkout."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_what_is_written_passes_at_once(kind: str, tmp_path: Path) -> None:
    name = f"my_{kind}"
    said = run("-c", PROGRAM, "env", "new", name, "--kind", kind, cwd=tmp_path)
    assert f"omnigym env check {name} --path {name}" in said
    package = tmp_path / name / name
    wanted = {"__init__.py", "verifier.py", "server.py", "generator.py", "environment.yaml", "cases.jsonl", "README.md"}
    assert {path.name for path in package.iterdir()} >= wanted
    assert (tmp_path / name / f"test_{name}.py").is_file()

    run("-m", "pytest", "-q", "-p", "no:cacheprovider", name, cwd=tmp_path)
    findings = json.loads(run("-c", PROGRAM, "env", "check", name, "--path", name, "--json", cwd=tmp_path))
    assert {finding["result"] for finding in findings} == {"ok"} and len(findings) == 13 + (kind == "conversation")
    run("-m", "ruff", "check", "--extend-select", "I,UP,B,RUF", name, cwd=tmp_path)
    run("-m", "ruff", "format", "--check", name, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_typed_and_installs(kind: str, tmp_path: Path) -> None:
    name = f"my_{kind}"
    run("-c", PROGRAM, "env", "new", name, "--kind", kind, cwd=tmp_path)
    found = run("-m", "mypy", "--strict", "-p", name, cwd=tmp_path / name)
    assert "no issues found" in found
    # Installed beside omnigym, its entry point is found without --path.
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"))
    run(*pip, str(tmp_path / name), cwd=tmp_path)
    shutil.rmtree(tmp_path / name)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    listed = subprocess.run(
        [sys.executable, "-c", PROGRAM, "env", "check", name, "--json"],
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.build(), ["env", "new", *arguments])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My_Env", "is no name for an environment"),
        ("my-env", "is no name for an environment"),
        ("_env", "is no name for an environment"),
        ("../env", "is no name for an environment"),
        ("a" * 41, "at most 40"),
        ("class", "is a word of Python's"),
        ("competition_math", "there is an environment 'competition_math' already"),
        ("json", "there is a Python package 'json' already"),
        ("gym_servers", "there is a Python package 'gym_servers' already"),
    ],
)
def test_a_bad_name_is_refused(name: str, said: str, tmp_path: Path) -> None:
    error = invoke(name, "--into", str(tmp_path)).exception
    assert isinstance(error, OmnigymError) and said in str(error)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_an_unknown_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    error = invoke("mine", "--into", str(tmp_path)).exception
    assert f"'{tmp_path}/mine' exists" in str(error) and list((tmp_path / "mine").iterdir()) == []
    error = invoke("other", "--into", str(tmp_path), "--kind", "many_turns").exception
    assert "--kind 'many_turns': must be " in str(error) and "single_turn" in str(error)
    (tmp_path / "file").touch()
    assert "cannot write" in str(invoke("other", "--into", str(tmp_path / "file")).exception)
