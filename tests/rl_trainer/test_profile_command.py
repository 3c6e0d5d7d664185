"""`omnigym profile` as a user runs it: a process, task files, servers over HTTP, kill -9 in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from live_server import SECRET, World, eventually, model_world
from typer.testing import CliRunner

from curriculum.profile import read_profile
from gym_servers.cli import build
from gym_servers.hosts.local import LocalHost
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import OmnigymError
from rl_trainer.profile_command import served_digest

COMMAND = [sys.executable, "-c", "from gym_servers.cli import main; main()", "profile"]
TASKS, N, TOKEN = 8, 4, "t"


class Sums(ScriptedEngine):
    """Answers sums: rightly with a chance that grows with the sum, drawn from the seed. Counts its calls by question."""

    def __init__(self) -> None:
        super().__init__(self.answered)
        self.calls: Counter[str] = Counter()

    def answered(self, asked: Asked) -> str:
        question = asked.prompt.rsplit("<|im_start|>user\n", 1)[1].split("<|im_end|>")[0]
        self.calls[question] += 1
        total = sum(int(part) for part in question.split("+"))
        wrong = random.Random(asked.seed).random() > total / (2 * TASKS - 2)
        return f"\\boxed{{{total + wrong}}}"


@pytest.fixture
def world() -> Iterator[World]:
    with model_world(Sums()) as made:
        yield made


@pytest.fixture(scope="module")
def environment() -> Iterator[str]:
    with LocalHost() as host:
        yield f"{host.start_environments(['competition_math'], TOKEN).wait_ready()}/competition_math"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    rows: list[dict[str, Any]] = []
    for k in range(TASKS):
        question = f"{k}+{k}"
        message = {"role": "user", "content": question}
        rows.append(
            {"responses_create_params": {"input": [message]}, "task_id": f"q{k}", "expected_answer": str(2 * k)}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(tasks: Path, environment: str, url: str, out: Path, *more: str) -> list[str]:
    fixed = ["--env", f"competition_math={environment}", "--tasks", str(tasks), "--model", url, "--out", str(out)]
    return [*COMMAND, *fixed, "--n", str(N), "--concurrency", "4", *more]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMNIGYM_TOKEN": TOKEN, "OMNIGYM_SECRET": SECRET, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


def finished(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True)[1:] if line.endswith(b"\n")]


def test_a_profile_killed_at_any_moment_ends_as_an_undisturbed_one(
    world: World, environment: str, tasks: Path, tmp_path: Path
) -> None:
    world.engine.state.digest = "w1"
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    done = run(command(tasks, environment, world.url, whole))
    assert done.returncode == 0, done.stderr
    profile = read_profile(whole)
    assert profile.weights == "w1" and profile.task_id.tolist() == [f"q{k}" for k in range(TASKS)]
    assert profile.pass_rate[0] == 0.0 and profile.pass_rate[-1] == 1.0 and len(set(profile.pass_rate)) > 2
    assert (
        set(profile.n) == {N} and profile.mean_tokens[-1] == len("\\boxed{14}") + 1
    )  # every character is a token, and the end
    assert "competition_math: 8 tasks, mean pass rate" in done.stderr

    world.engine.calls.clear()  # type: ignore[attr-defined]
    world.engine.seconds = 0.3
    journal = tmp_path / "out.parquet.journal"
    env = {**os.environ, "OMNIGYM_TOKEN": TOKEN, "OMNIGYM_SECRET": SECRET}
    process = subprocess.Popen(command(tasks, environment, world.url, out), stderr=subprocess.DEVNULL, env=env)
    eventually(lambda: journal.exists() and len(finished(journal)) >= 2, 250)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # calls that were under way
    kept = {row["task_id"] for row in finished(journal)}
    assert 2 <= len(kept) < TASKS and not out.exists()
    world.engine.seconds = 0.0
    world.engine.calls.clear()  # type: ignore[attr-defined]
    done = run(command(tasks, environment, world.url, out))
    assert done.returncode == 0, done.stderr
    expected = {f"{k}+{k}": N for k in range(TASKS) if f"q{k}" not in kept}
    assert world.engine.calls == expected  # type: ignore[attr-defined]
    assert out.read_bytes() == whole.read_bytes()

    world.engine.state.digest = "w2"
    other = run(command(tasks, environment, world.url, out))
    assert other.returncode == 1 and "another model's profile" in other.stderr
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("code", "said"),
    [(404, ""), (401, "answers 401 to what its weights are: is OMNIGYM_TOKEN its token"), (500, "answers 500 to what")],
)
def test_only_a_server_that_knows_no_digests_is_taken_for_one(code: int, said: str) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        if not said:
            assert served_digest(url, "t") == ""
            return
        with pytest.raises(OmnigymError, match=said):
            served_digest(url, "t")


def test_what_cannot_be_profiled_is_said_before_anything_starts(
    world: World, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIGYM_TOKEN", TOKEN)
    out = tmp_path / "p.parquet"

    def refused(*arguments: str) -> str:
        with pytest.raises(OmnigymError) as caught:
            CliRunner().invoke(build(), ["profile", *arguments], catch_exceptions=False)
        return str(caught.value)

    given = ["--model", world.url, "--out", str(out)]
    known = ["--env", "competition_math=http://127.0.0.1:9", "--tasks", str(tasks), *given]
    assert "unknown environment 'competition_maths'" in refused("--tasks", f"competition_maths={tasks}", *given)
    assert "does not say which weights it has: name them with --weights" in refused(*known)
    assert "tasks.jsonl:1: no environment" in refused("--tasks", str(tasks), *given)
    whole = tasks.read_text()
    tasks.write_text(whole + whole.splitlines()[2] + "\n")
    assert "tasks.jsonl:9: task_id 'q2' is also that of" in refused(*known, "--weights", "w")
    tasks.write_text(whole)
    assert "give one of --config" in refused("--tasks", str(tasks), "--config", "run.yaml")
    assert "--model, --env and --weights go with --tasks" in refused("--config", "run.yaml", "--model", "m")
    assert "'seed=1': no such task file, and key=value goes with --config" in refused(*known, "seed=1")
    assert "nothing.jsonl': no such task file" in refused(*known, str(tasks), str(tmp_path / "nothing.jsonl"))
    assert "task_id 'q0' is also that of" in refused(*known, str(tasks), "--weights", "w")  # a second file of --tasks
    nowhere = ["--weights", "w", "--out", "/proc/nothing/p.parquet"]
    assert "cannot write '/proc/nothing/p.parquet.journal'" in refused(*known[:-2], *nowhere)
    assert "--tasks needs --model and --out" in refused("--tasks", str(tasks), "--model", "m")
    assert not out.exists() and not world.engine.calls  # type: ignore[attr-defined]
