"""Environments in folders of their own: found by name wherever environments are, and what is wrong with a folder is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from gym_servers import cli, registry
from gym_servers.commands.env_new import write
from gym_servers.protocol import OmnigymError
from rl_trainer.config import ConfigError, load_config
from rl_trainer.tasks import load_rows

GROUP = registry.GROUP
PROGRAM = "from gym_servers.cli import main; main()"


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PATH_VARIABLE, "")


def project(folder: Path, value: str, name: str = "thing", **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project.entry-points."{GROUP}"]\n{name} = "{value}"\n')
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    return folder


def failure(folder: Path, name: str = "thing") -> str:
    registry.add_folder(folder)
    with pytest.raises(OmnigymError) as caught:
        registry.environment_class(name)
    return str(caught.value)


def test_a_folder_that_is_none_of_an_environment_is_named(tmp_path: Path) -> None:
    for folder, text, said in (
        ("absent", None, "no folder"),
        ("empty", "", "it has no pyproject.toml"),
        ("cut", "[project", "cannot be read"),
        ("list", "project = []", "cannot be read"),
        ("plain", "[project]\nname = 'x'\n", "declares no environment"),
        ("number", f'[project.entry-points."{GROUP}"]\nx = 1\n', 'must be "module:Class"'),
        ("no_class", f'[project.entry-points."{GROUP}"]\nx = "module"\n', 'must be "module:Class"'),
    ):
        path = tmp_path / folder
        if text is not None:
            path.mkdir()
        if text:
            (path / "pyproject.toml").write_text(text)
        with pytest.raises(OmnigymError, match=said) as caught:
            registry.add_folder(path)
        assert str(path) in str(caught.value)
    assert os.environ[registry.PATH_VARIABLE] == ""


def test_an_import_error_names_the_line_of_the_author(tmp_path: Path) -> None:
    one = project(tmp_path / "one", "broken_one:Thing", broken_one="import os\nimport nothing_of_that_name\n")
    assert f"{one}/broken_one.py:2: ModuleNotFoundError" in failure(one)
    two = project(tmp_path / "two", "broken_two:Thing", "two", broken_two="x = 1\ndef f(:\n")
    assert f"{two}/broken_two.py:2: SyntaxError" in failure(two, "two")
    three = project(tmp_path / "three", "empty_three:Thing", "three", empty_three="")
    assert "has no 'Thing'" in failure(three, "three")
    four = project(tmp_path / "four", "no_class_four:Thing", "four", no_class_four="Thing = 1\n")
    assert "is not an Environment class" in failure(four, "four")
    five = project(tmp_path / "five", "json:JSONDecoder", "five")
    assert "module 'json' is another one" in failure(five, "five")


def test_two_of_one_name_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    taken = project(tmp_path / "taken", "mine:Mine", "competition_math", mine="")
    registry.add_folder(taken)
    with pytest.raises(OmnigymError, match="two environments are called 'competition_math'"):
        registry.environment_names()
    os.environ[registry.PATH_VARIABLE] = ""
    for folder in ("a", "b"):
        registry.add_folder(project(tmp_path / folder, "twice:Twice", "twice", twice=""))
    with pytest.raises(OmnigymError, match=f"two environments are called 'twice'.*{tmp_path}/b.*{tmp_path}/a"):
        registry.environment_names()


def test_a_class_of_another_name_is_refused(tmp_path: Path) -> None:
    write("right_name", "single_turn", tmp_path / "right_name")
    file = tmp_path / "right_name" / "pyproject.toml"
    file.write_text(file.read_text().replace("right_name = ", "wrong_name = "))
    assert "the class calls itself 'right_name'" in failure(tmp_path / "right_name", "wrong_name")


def test_commands_find_it_by_path(tmp_path: Path) -> None:
    write("by_path", "single_turn", folder := tmp_path / "by_path")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.build(), [*arguments, "--path", str(folder)])

    assert "by_path" in {one["name"] for one in json.loads(run("env", "list", "--json").stdout)}
    rows = [json.loads(line) for line in run("env", "generate", "by_path", "--n", "3").stdout.splitlines()]
    assert [row["agent_ref"]["name"] for row in rows] == ["by_path"] * 3
    out = tmp_path / "out.jsonl"
    result = run("verify", "by_path", "--cases", str(folder / "by_path" / "cases.jsonl"), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert [json.loads(line).get("reward") for line in out.read_text().splitlines()][:4] == [1.0, 1.0, 1.0, 0.0]


def test_a_server_and_its_workers_find_it(tmp_path: Path) -> None:
    """Its verdicts without `quick` are those of a worker: a process of its own, two away from the command."""
    write("in_worker", "single_turn", folder := tmp_path / "in_worker")
    server = folder / "in_worker" / "server.py"
    server.write_text(server.read_text().replace("return self.verify(row, output)", "return None"))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "env", "serve", "in_worker", "--port", "0", "--auth", "none"],
        env={**os.environ, registry.PATH_VARIABLE: str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        lines = (folder / "in_worker" / "cases.jsonl").read_text().splitlines()
        for line in lines:
            case = json.loads(line)
            reply = httpx.post(f"{url}/verify", json=case["request"], timeout=120)
            if "reward" in case["expected"]:
                assert reply.json()["reward"] == case["expected"]["reward"]
            else:
                assert reply.status_code == 422
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_training_configuration_names_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("to_train", "single_turn", tmp_path / "to_train")
    monkeypatch.chdir(tmp_path)
    tree = {"model": "m", "steps": 1, "mixture": {"to_train": 1}, "tasks": {"to_train": {"n": 4}}}
    tree |= {"settings": {"to_train": {"max_answer_chars": 100}}, "environment_paths": ["to_train"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "run.yaml")
    assert config.environment_paths == [tmp_path / "to_train"]
    assert len(load_rows(config, "to_train")) == 4
    assert registry.path_folders() == [tmp_path / "to_train"]  # processes that this one starts find it
    with pytest.raises(ConfigError, match="environment_paths: no folder .*absent"):
        load_config(tmp_path / "run.yaml", ["environment_paths=[absent]"])
