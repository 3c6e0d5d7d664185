"""`omnigym verify` and `omnigym env` as a user calls them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import toy_environment
from typer.testing import CliRunner

from gym_servers import cli, registry
from gym_servers.commands import env as env_command
from gym_servers.commands import verify as verify_command
from gym_servers.environment import Row, Split
from gym_servers.protocol import Item, OmnigymError, Verdict


class QuickToy(toy_environment.Toy):
    """Decides in process, so that no worker needs to find it."""

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        return self.verify(row, output)

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        for k in range(n):
            yield {"answer": f"{split}-{seed}-{k}"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_command, "load_environment", lambda name, overrides=None: QuickToy())
    monkeypatch.setattr(env_command, "load_environment", lambda name, overrides=None: QuickToy())


def case(name: str, text: str, **row: Any) -> bytes:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
    return orjson.dumps({"id": name, "request": {**row, "response": {"output": output}}}) + b"\n"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.build(), list(arguments))


def test_verdicts_come_in_order_and_bad_lines_are_named(tmp_path: Path) -> None:
    cases, out = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    cases.write_bytes(
        case("right", "4", answer="4") + case("wrong", "5", answer="4") + case("no-field", "4") + b'{"id": "cut", "requ'
    )
    result = run("verify", "toy", "--cases", str(cases), "--out", str(out))
    assert result.exit_code == 0, result.output
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [line.get("reward") for line in lines] == [1.0, 0.0, None, None]
    assert "field 'answer'" in lines[2]["failure"]["message"]
    assert "cases.jsonl:4: not valid JSON" in lines[3]["failure"]["message"]
    assert lines[3]["failure"]["kind"] == "bad_row"


def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    result = run("verify", "toy", "--cases", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert isinstance(result.exception, OmnigymError)
    assert "none.jsonl" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_generate_is_a_pure_function_of_its_options(tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    assert (
        run("env", "generate", "toy", "--n", "2", "--seed", "7", "--split", "heldout", "--out", str(out)).exit_code == 0
    )
    assert out.read_bytes() == b'{"answer":"heldout-7-0"}\n{"answer":"heldout-7-1"}\n'


def test_an_unknown_split_is_refused() -> None:
    assert "must be train or heldout" in str(run("env", "generate", "toy", "--split", "test").exception)


def test_an_unknown_environment_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "environment_names", lambda: ["competition_math"])
    with pytest.raises(registry.UnknownEnvironment, match="did you mean 'competition_math'"):
        registry.environment_class.__wrapped__("competition_maths")
    with pytest.raises(registry.UnknownEnvironment, match=r"unknown environment 'zzz'\. Installed: competition_math$"):
        registry.environment_class.__wrapped__("zzz")
