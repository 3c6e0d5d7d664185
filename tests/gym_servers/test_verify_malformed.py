"""`omnigym verify` on what a user may get wrong: each error names the file, the row, the field and what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from gym_servers import cli
from gym_servers.protocol import OmnigymError
from gym_servers.rows import whole_file


def line(**request: Any) -> bytes:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "\\boxed{4}"}]}]
    return orjson.dumps({"id": "a", "request": {"response": {"output": output}, **request}}) + b"\n"


GOOD = line(expected_answer="4")


def verify(environment: str, cases: Path, out: Path, *options: str) -> Any:
    command = ["verify", environment, "--cases", str(cases), "--out", str(out), *options]
    return CliRunner().invoke(cli.build(), command)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD[:60], ["not valid JSON", "is it cut off?"]),
        (line(answer="4"), ["environment 'competition_math'", "field 'expected_answer'", "Field required", "'answer'"]),
        (line(expected_answer="1/0"), ["field 'expected_answer'", "no answer can equal '1/0'", "undefined"]),
        (line(expected_answer=["4"]), ["field 'expected_answer'", "valid string"]),
        (b'{"id": "a", "requests": {}}\n', ["field 'request' must be the body of POST /verify, not 'requests'"]),
        (line(expected_answer="4", response={"output": "4"}), ["field 'response.output' must be a list"]),
        (line(expected_answer="4", response=None), ["field 'response' must be an object"]),
        (b"[1]\n", ["expected a JSON object, found list"]),
        (b'{"id": "\xff"}\n', ["not valid JSON"]),
    ],
)
def test_a_bad_row_is_a_failure_that_names_it_and_the_others_are_graded(
    bad: bytes, said: list[str], tmp_path: Path
) -> None:
    cases, out = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    cases.write_bytes(GOOD + b"\n" + bad.rstrip(b"\n") + b"\n" + GOOD)
    assert verify("competition_math", cases, out).exit_code == 0
    first, wrong, last = [orjson.loads(found) for found in out.read_bytes().splitlines()]
    assert first["reward"] == last["reward"] == 1.0
    assert "reward" not in wrong
    assert wrong["failure"]["kind"] == "bad_row"
    assert wrong["failure"]["message"].startswith(f"{cases}:3: ")
    for part in said:
        assert part in wrong["failure"]["message"]


@pytest.mark.parametrize(
    ("environment", "options", "said"),
    [
        ("competition_maths", (), "unknown environment 'competition_maths'; did you mean 'competition_math'?"),
        ("competition_math", ("--set", "require_bocks=true"), "'require_bocks'.*did you mean 'require_box'"),
        ("competition_math", ("--set", "verify_cpu_seconds=fast"), "setting 'verify_cpu_seconds'.*number"),
        ("competition_math", ("--set", "require_box"), "--set 'require_box': must be key=value"),
        ("competition_math", ("--set", "judge_url=[http"), r"--set 'judge_url=\[http': the value is not YAML"),
    ],
)
def test_a_wrong_option_names_the_right_one(
    environment: str, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "cases.jsonl").write_bytes(GOOD)
    result = verify(environment, tmp_path / "cases.jsonl", tmp_path / "out.jsonl", *options)
    assert isinstance(result.exception, OmnigymError)
    with pytest.raises(OmnigymError, match=said):
        raise result.exception
    assert [path.name for path in tmp_path.iterdir()] == ["cases.jsonl"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = verify("competition_math", tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert isinstance(result.exception, OmnigymError)
    assert str(tmp_path / "none.jsonl") in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    cases, folder = tmp_path / "cases.jsonl", tmp_path / "folder"
    cases.write_bytes(GOOD)
    folder.mkdir()
    for out, said in ((cases / "x" / "out.jsonl", "choose a folder"), (folder, "name a file in it")):
        result = verify("competition_math", cases, out)
        assert isinstance(result.exception, OmnigymError)
        assert f"cannot write '{out}'" in str(result.exception) and said in str(result.exception)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_bytes(GOOD)
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    result = verify("competition_math", tmp_path / "cases.jsonl", folder / "out.jsonl")
    assert "Permission denied; choose a folder" in str(result.exception)


def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(OmnigymError, match="No space left on device; free some space"), whole_file(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ConnectionRefusedError), whole_file(tmp_path / "out"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "not ours to explain")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_shows_one_line_and_no_traceback(tmp_path: Path) -> None:
    program = "from gym_servers.cli import main; main()"
    options = ["--cases", str(tmp_path / "no[ne].jsonl"), "--out", str(tmp_path / "out.jsonl")]
    command = [sys.executable, "-c", program, "verify", "competition_math", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == f"error: no file '{tmp_path}/no[ne].jsonl'"
