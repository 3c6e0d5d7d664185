"""`omnigym sandbox doctor` tells what holds, and notices what does not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gym_servers.sandbox.attacks import ATTACKS, judge
from gym_servers.sandbox.pool import Run

LAYERS = {"namespaces": False, "landlock": 7, "seccomp": True, "user": 1000}


def doctor(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-c", "from gym_servers.cli import main; main()", "sandbox", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout


def test_every_attack_is_held_here() -> None:
    code, text = doctor("--json")
    told = json.loads(text)
    assert code == 0 and told["held"] and told["problem"] is None
    assert [row["tried"] for row in told["attacks"]] == [attack.name for attack in ATTACKS]
    assert all(row["held"] and row["happened"] and row["by"] for row in told["attacks"])


def test_where_nothing_isolates_nothing_is_tried() -> None:
    code, text = doctor("--without", "seccomp")
    assert code == 1 and "Nothing was tried" in " ".join(text.split())


def run(status: str, stdout: bytes = b"", stderr: bytes = b"") -> Run:
    return Run(status, 0 if status == "exited" else None, stdout, stderr, 0.1, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "came", "held"),
    [
        ("reading /etc/passwd", run("exited", b"ESCAPED: root:x:0:0\n"), False),
        ("reading /etc/passwd", run("exited", stderr=b"Traceback\nFileNotFoundError: no\n"), True),
        ("10 GB of memory", run("exited"), False),
        ("10 GB of memory", run("memory"), True),
        ("filling the disk", run("exited", stderr=b"ESCAPED: wrote 64 MB"), False),
        ("ignoring SIGTERM", run("exited"), False),
        ("ignoring SIGTERM", run("timed_out"), True),
    ],
)
def test_what_counts_as_held(name: str, came: Run, held: bool) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    assert judge(attack, came, LAYERS).held is held
    assert "files" not in judge(attack, came, LAYERS).by
