"""competition_code over real HTTP: hostile answers beside a neighbour's right one, malformed rows, a broken sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit_toys import message, serving

from environments.competition_code.row import CodeRow
from environments.competition_code.server import CodeSettings, CompetitionCode
from gym_servers.environment import opened
from gym_servers.protocol import Failure, FailureError
from gym_servers.resources import build_resources
from gym_servers.sandbox.pool import Run

LIMITS = CodeSettings(test_cpu_seconds=1.0, test_wall_seconds=60.0, verify_memory_mb=256, test_output_kb=64)
TESTS = {"inputs": ["2\n", "31\n"], "outputs": ["4", "961"]}
ROW = {"responses_create_params": {"input": "?"}, "verifier_metadata": {"unit_tests": TESTS}}
SQUARE = "n = int(input())\nprint(n * n)"

HOSTILE: dict[str, tuple[str, set[str]]] = {
    "spins": ("while True:\n    pass", {"timed_out"}),
    "waits_for_a_child": (
        "import os\nif os.fork():\n    os.wait()\nelse:\n    while True:\n        pass",
        {"timed_out", "crashed", "wrong"},
    ),
    "ignores_signals": (
        "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n    except OSError:\n"
        "        pass\nwhile True:\n    pass",
        {"timed_out"},
    ),
    "eats_memory": ("x = [bytearray(10**7) for _ in range(10**6)]\nprint(4)", {"memory"}),
    "one_large_number": ("print(9 ** 9 ** 9 ** 9)", {"timed_out", "memory", "crashed"}),
    "fork_bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        {"timed_out", "crashed", "wrong"},
    ),
    "thread_bomb": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        {"timed_out", "crashed", "memory"},
    ),
    "endless_output": ("while True:\n    print('x' * 10000)", {"output"}),
    "kills_its_parent": (
        "import os, signal\nfor pid in (os.getppid(), -1, 0):\n    try:\n        os.kill(pid, signal.SIGKILL)\n"
        "    except OSError:\n        pass\nprint('alive')",
        {"crashed", "wrong"},
    ),
    "reads_the_grader_s_memory": (
        "import os\nfor pid in [os.getppid(), *(int(p) for p in os.listdir('/proc') if p.isdigit())]:\n"
        "    for name in ('mem', 'maps', 'environ', 'cmdline'):\n        try:\n"
        "            with open(f'/proc/{pid}/{name}', 'rb') as file:\n                print(b'961' in file.read(10**6))\n"
        "        except (OSError, ValueError):\n            pass",
        {"crashed", "wrong"},
    ),
    "calls_the_grader": (
        "import socket\nfor port in (80, 8000, 8080):\n    with socket.socket() as s:\n"
        "        s.settimeout(1)\n        s.connect(('127.0.0.1', port))",
        {"crashed", "wrong", "timed_out"},
    ),
    "fills_the_disk": (
        "with open('large', 'wb') as file:\n    while True:\n        file.write(b'x' * 10**6)",
        {"crashed", "output", "timed_out", "memory"},
    ),
    "leaves_a_daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(10**6)\n    os._exit(0)\n"
        "print('961')",
        {"crashed", "wrong", "timed_out"},
    ),
}


def answer(code: str) -> dict[str, Any]:
    return {**ROW, "response": {"output": message(f"```python\n{code}\n```")}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(build_resources([CompetitionCode(LIMITS)], workers=1)) as url:
        yield f"{url}/competition_code"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_earns_nothing_and_its_neighbour_its_due(url: str, name: str) -> None:
    code, outcomes = HOSTILE[name]

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=240) as client:
            bodies = [answer(code), answer(SQUARE), answer(SQUARE.replace("*", "+"))]
            return await asyncio.gather(*(client.post(f"{url}/verify", json=body) for body in bodies))

    hostile, right, wrong = asyncio.run(both())
    assert hostile.status_code == 200, hostile.text
    verdict = hostile.json()
    assert verdict["reward"] == 0.0
    assert verdict["parts"]["outcome"] in outcomes, verdict["explanation"]
    assert (right.status_code, right.json()["reward"]) == (200, 1.0), right.text
    assert (wrong.status_code, wrong.json()["reward"]) == (200, 0.0), wrong.text
    assert wrong.json()["parts"]["tests"] == ["passed", "wrong"]


def test_a_killed_fork_server_is_a_failure_and_the_next_verdict_right() -> None:
    async def run() -> None:
        environment = CompetitionCode(CodeSettings(servers=1))
        row = environment.check_row(ROW)
        before = {child.pid for child in psutil.Process().children()}
        async with opened(environment):
            (server,) = [child for child in psutil.Process().children() if child.pid not in before]
            sleeping = message("```\nimport time\ntime.sleep(10**6)\n```")
            verdict = asyncio.create_task(environment.verify_awaited(row, sleeping))
            await asyncio.sleep(1)
            server.kill()
            with pytest.raises(FailureError) as failed:
                await verdict
            assert failed.value.failure.retryable
            again = await environment.verify_awaited(row, message(f"```\n{SQUARE}\n```"))
            assert again.reward == 1.0

    asyncio.run(run())


def test_a_sleeping_answer_is_stopped() -> None:
    """It uses no CPU: the wall limit is for it."""
    short = CodeSettings(test_wall_seconds=2.0)

    async def run() -> None:
        environment = CompetitionCode(short)
        async with opened(environment):
            output = message("```\nimport time\nprint(4, flush=True)\ntime.sleep(10**6)\n```")
            verdict = await environment.verify_awaited(environment.check_row(ROW), output)
            assert verdict.reward == 0.0 and verdict.parts["tests"] == ["timed_out"]

    asyncio.run(run())


def test_nothing_is_left_for_the_next_answer(url: str) -> None:
    """Neither a file nor a global: each test is a run of its own."""
    keeps = (
        "import builtins, os\nprint('kept' not in os.listdir('.') and not hasattr(builtins, 'kept'))\nbuiltins.kept = 1\n"
        "try:\n    open('kept', 'w').close()\nexcept OSError:\n    pass"  # where there are no namespaces, nothing is written at all
    )
    row = {"verifier_metadata": {"unit_tests": {"inputs": ["1", "2", "3"], "outputs": ["True"] * 3}}}
    for _ in range(2):
        verdict = httpx.post(f"{url}/verify", json={**answer(keeps), **row}, timeout=120).json()
        assert verdict["reward"] == 1.0, verdict["explanation"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"verifier_metadata": None}, "verifier_metadata"),
        ({"verifier_metadata": {"unit_tests": {**TESTS, "inputs": None}}}, "verifier_metadata.unit_tests.inputs"),
        (
            {"verifier_metadata": {"unit_tests": {**TESTS, "outputs": [4, 961]}}},
            "verifier_metadata.unit_tests.outputs.0",
        ),
        ({"verifier_metadata": {"unit_tests": {**TESTS, "fn_name": ["f"]}}}, "verifier_metadata.unit_tests.fn_name"),
        ({"verifier_metadata": {"unit_tests": {**TESTS, "fn_name": "f(1)"}}}, "verifier_metadata.unit_tests.fn_name"),
        ({"verifier_metadata": {"unit_tests": "[" * 10_000}}, "verifier_metadata.unit_tests"),
        (
            {"verifier_metadata": {"unit_tests": {"inputs": ["[" * 10_000], "outputs": ["1"], "fn_name": "f"}}},
            "verifier_metadata.unit_tests",
        ),
        ({"task_id": 3}, "task_id"),
    ],
)
def test_a_bad_row_is_422_and_names_its_field(url: str, row: dict[str, Any], field: str) -> None:
    reply = httpx.post(f"{url}/verify", json={"task_id": "t7", **answer(SQUARE), **row}, timeout=60)
    assert reply.status_code == 422, reply.text
    assert f"field '{field}" in reply.text and "environment 'competition_code'" in reply.text
    assert "task_id" in row or "task 't7'" in reply.text
    assert httpx.post(f"{url}/verify", json=answer(SQUARE), timeout=120).json()["reward"] == 1.0


def test_a_broken_sandbox_is_503_and_no_reward() -> None:
    environment = CompetitionCode(LIMITS)

    async def run() -> None:
        async with opened(environment):
            sandbox = environment._sandbox
            assert sandbox is not None

            async def broken(*given: Any, **named: Any) -> Run:
                raise FailureError(Failure(kind="environment_down", message="the fork server is gone"))

            sandbox.run = broken  # type: ignore[method-assign]
            with pytest.raises(FailureError, match="the fork server is gone"):
                await environment.verify_awaited(environment.check_row(ROW), message(f"```\n{SQUARE}\n```"))

    asyncio.run(run())


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["```", "\n", "x", "<think>", "</think>", "\ud800", "\x00", "é"]), max_size=30))
def test_quick_never_raises_and_leaves_only_code_to_the_sandbox(pieces: list[str]) -> None:
    environment = CompetitionCode()
    row = CodeRow.model_validate(ROW)
    verdict = environment.quick(row, message("".join(pieces)))
    assert verdict is None or verdict.reward == 0.0
