"""`omnigym rollout` and `omnigym eval` as a user runs them: a process, a task file, a model server over HTTP, kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gym_servers.passk import pass_at_k
from gym_servers.protocol import Rollout
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest

COMMAND = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
TASKS, N = 12, 3


class Model:
    """An OpenAI-compatible server that answers sums: rightly where the request's seed is even."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.refuse: Callable[[str], bool] = lambda question: False
        self.app = FastAPI()
        self.app.post("/v1/responses")(self.responses)

    async def responses(self, request: Request) -> Any:
        body = await request.json()
        question, seed = body["input"][-1]["content"], int(body["seed"])
        self.calls[question, seed] += 1
        await asyncio.sleep(self.seconds)
        if self.refuse(question):
            return JSONResponse({"error": {"message": "overloaded"}}, 400)
        total = sum(int(part) for part in question.split("+"))
        text = f"\\boxed{{{total + seed % 2}}}"
        return {
            "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
            ],
            "status": "completed",
        }


@pytest.fixture
def model() -> Iterator[tuple[Model, str]]:
    made = Model()
    server = uvicorn.Server(uvicorn.Config(made.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield made, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    rows = []
    for k in range(TASKS):
        question = f"{k} + {k}"
        rows.append(
            {
                "responses_create_params": {"input": [{"role": "user", "content": question}]},
                "question": question,
                "expected_answer": str(2 * k),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(tasks: Path, url: str, out: Path, *more: str) -> list[str]:
    fixed = ["--env", "competition_math", "--tasks", str(tasks), "--model", url, "--n", str(N), "--out", str(out)]
    return [*COMMAND, "rollout", *fixed, "--concurrency", "4", "--max-failures", "1", *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(rows: list[dict[str, Any]]) -> list[tuple[str, int, int, float]]:
    return sorted((row["task_id"], row["attempt"], row["seed"], row["reward"]) for row in rows)


def test_every_attempt_of_every_task_is_one_line_with_its_reward(
    model: tuple[Model, str], tasks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = run(arguments(tasks, model[1], out))
    assert done.returncode == 0, done.stderr
    rows = lines(out)
    assert len({(row["task_id"], row["attempt"]) for row in rows}) == len(rows) == TASKS * N
    assert all(row["reward"] == float(row["seed"] % 2 == 0) and row["failure"] is None for row in rows)
    assert {0.0, 1.0} == {row["reward"] for row in rows}
    assert f"{TASKS * N} rollouts" in done.stderr

    again = run(arguments(tasks, model[1], out))
    assert again.returncode == 1 and "give --resume" in again.stderr
    other = run(arguments(tasks, model[1], out, "--resume", "--seed", "9"))
    assert other.returncode == 1 and "another --seed" in other.stderr
    assert keys(lines(out)) == keys(rows)


def test_kill_9_loses_nothing_and_repeats_nothing(model: tuple[Model, str], tasks: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run(arguments(tasks, model[1], whole)).returncode == 0
    model[0].seconds = 0.15
    process = subprocess.Popen(arguments(tasks, model[1], out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 7):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = out.read_bytes()
    assert 7 <= kept.count(b"\n") < TASKS * N
    out.write_bytes(kept + b'{"task_id": "cut o')  # what a kill in the middle of a write leaves
    model[0].seconds = 0.0
    before = sum(model[0].calls.values())
    done = run(arguments(tasks, model[1], out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(kept)
    assert keys(lines(out)) == keys(lines(whole))
    assert sum(model[0].calls.values()) - before == TASKS * N - kept.count(b"\n")


def test_failures_are_written_as_failures_and_tried_again_only_when_asked(
    model: tuple[Model, str], tasks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    model[0].refuse = lambda question: question == "3 + 3"
    done = run(arguments(tasks, model[1], out))
    assert done.returncode == 0
    failed = [row for row in lines(out) if row["failure"]]
    assert len(failed) == N
    assert all(row["reward"] is None and row["failure"]["kind"] == "model_error" for row in failed)
    assert f"{N} x model_error in 'competition_math'" in done.stderr
    model[0].refuse = lambda question: False
    run(arguments(tasks, model[1], out, "--resume"))
    assert len(lines(out)) == TASKS * N and sum(bool(row["failure"]) for row in lines(out)) == N
    run(arguments(tasks, model[1], out, "--retry-failures"))
    assert len(lines(out)) == TASKS * N and not any(row["failure"] for row in lines(out))


def test_past_the_failure_budget_the_command_stops_and_says_why(
    model: tuple[Model, str], tasks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    model[0].refuse = lambda question: True
    done = run(arguments(tasks, model[1], out, "--max-failures", "0.05"))
    assert done.returncode == 1
    assert "rollouts failed, more than 5%" in done.stderr and "overloaded" in done.stderr
    assert all(row["reward"] is None for row in lines(out))


def test_bad_task_files_are_named(model: tuple[Model, str], tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(tasks.read_bytes()[:-30])
    done = run(arguments(cut, model[1], out))
    assert done.returncode == 1 and f"cut.jsonl:{TASKS}: not valid JSON" in " ".join(done.stderr.split())
    done = run(arguments(tmp_path / "none.jsonl", model[1], out))
    assert done.returncode == 1 and "no file" in done.stderr
    done = run([*COMMAND, "rollout", "--env", "competiton_math", *arguments(tasks, model[1], out)[6:]])
    assert done.returncode == 1 and "did you mean 'competition_math'?" in done.stderr
    done = run(arguments(tasks, "no-such-model", out))
    assert done.returncode == 1 and "omnigym model get" in done.stderr


@pytest.mark.parametrize("command", ["rollout", "eval"])
def test_a_bad_row_is_named_before_anything_is_sampled(
    model: tuple[Model, str], tasks: Path, tmp_path: Path, command: str
) -> None:
    """The environment that would be started here checks the file first, whichever line it is."""
    rows = lines(tasks)
    del rows[-1]["expected_answer"]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [*COMMAND, "eval", model[1], "--env", "competition_math", "--tasks", f"competition_math={tasks}"]
    done = run(arguments(tasks, model[1], tmp_path / "out.jsonl") if command == "rollout" else given)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1 and f"tasks.jsonl:{TASKS}: environment 'competition_math'" in said, said
    assert "expected_answer" in said and not model[0].calls


def test_tasks_are_read_only_as_there_is_room() -> None:
    read = 0

    def endless() -> Iterator[RolloutRequest]:
        nonlocal read
        while True:
            read += 1
            yield RolloutRequest({}, f"t{read}", "nowhere", f"g{read}")

    async def some() -> list[Rollout]:
        found: list[Rollout] = []
        async for rollout in Collector({}, "http://127.0.0.1:9", concurrency=8).collect(endless()):
            found.append(rollout)
            if len(found) == 100:
                break
        return found

    assert len(asyncio.run(some())) == 100
    assert read <= 100 + 2 * 8


def test_eval_reports_pass_at_k_by_hand(model: tuple[Model, str], tasks: Path, tmp_path: Path) -> None:
    out, collected = tmp_path / "figures.json", tmp_path / "rollouts.jsonl"
    fixed = ["--env", "competition_math", "--n", "4", "--out", str(out), "--json"]
    done = run([*COMMAND, "eval", model[1], *fixed, "--tasks", f"competition_math={tasks}"])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["environments"]["competition_math"]
    assert json.loads(out.read_text())["environments"]["competition_math"] == figures
    run([*arguments(tasks, model[1], collected)[:-2], "--n", "4"])  # the same seeds, so the same answers
    right = Counter(row["task_id"] for row in lines(collected) if row["reward"] == 1.0)
    ids = {row["task_id"] for row in lines(collected)}
    rates = [right[task] / 4 for task in ids]
    mean = sum(rates) / TASKS
    assert figures["pass@1"] == pytest.approx(mean)
    spread = sum((rate - mean) ** 2 for rate in rates) / (TASKS - 1)
    assert figures["stderr"] == pytest.approx((spread / TASKS) ** 0.5)
    assert figures["pass@4"] == pytest.approx(sum(right[task] > 0 for task in ids) / TASKS)
    assert figures["pass@2"] == pytest.approx(sum(pass_at_k(4, right[task], 2) for task in ids) / TASKS)
    assert (figures["tasks"], figures["rollouts"], figures["failures"]) == (TASKS, 4 * TASKS, 0)


def test_eval_takes_held_out_tasks_where_no_file_is_given() -> None:
    from gym_servers.commands.eval import evaluation_tasks

    rows = [row for _, row in evaluation_tasks("competition_math", {}, 5, 3)]
    assert rows == list(load_environment("competition_math").generate(5, 3, "heldout"))
