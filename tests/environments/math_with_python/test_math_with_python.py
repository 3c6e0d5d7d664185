"""math_with_python: the tool over real HTTP, a rollout through the collector, its tasks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from kit_toys import Model, call, message, serving

from environments.competition_math.server import CompetitionMath
from environments.math_with_python.generator import TASKS
from environments.math_with_python.problems import PROBLEMS
from environments.math_with_python.server import MathWithPython, PythonMathSettings
from environments.math_with_python.tool import as_output, cut
from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.environment import opened
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import Failure, FailureError, Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.sandbox.pool import Run
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

FOLDER = MathWithPython.folder()
CASES = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines()]
TOOLS = [tool.declaration() for tool in MathWithPython().tools()]
SETTINGS = PythonMathSettings(tool_cpu_seconds=2.0, tool_wall_seconds=20.0, tool_memory_mb=256)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(build_resources([MathWithPython(SETTINGS)], workers=1)) as url:
        yield f"{url}/math_with_python"


def python(url: str, code: Any) -> httpx.Response:
    return httpx.post(f"{url}/python", json={"code": code}, timeout=120)


def ran(url: str, code: str) -> str:
    reply = python(url, code)
    assert reply.status_code == 200, reply.text
    return reply.text


# -- the tool ------------------------------------------------------------------------------------------------------


def test_the_tool_prints_and_keeps_nothing(url: str) -> None:
    assert ran(url, "x = 2**100\nprint(x)") == "1267650600228229401496703205376"
    assert "NameError: name 'x' is not defined" in ran(url, "print(x)")
    assert ran(url, "2 + 2") == "[The program printed nothing.]"
    assert ran(url, "if __name__ == '__main__':\n    print('é')") == "é"
    ran(url, "open('kept.txt', 'w').write('1')")
    assert "FileNotFoundError" in ran(url, "print(open('kept.txt').read())")


def test_errors_are_for_the_model_to_read(url: str) -> None:
    output = ran(url, "print('before')\nraise ValueError('no')")
    assert output.startswith("before\n") and "ValueError: no" in output
    assert output.endswith("[The program ended with exit code 1.]")
    assert "SyntaxError" in ran(url, "print(")
    assert ran(url, "#" * 30_000 + "\nprint(3)") == "3"  # a program may be longer than what is read of an answer
    deep = ran(url, "def f():\n    return f()\nf()")
    assert "RecursionError" in deep and len(deep.splitlines()) <= 10  # the end of it only


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("while True:\n    pass", "took too much time"),
        ("x = bytearray(10**9)\nprint(len(x))", "MemoryError"),
        ("import ctypes\nctypes.string_at(0)", "ended by a signal"),
        ("import os\nwhile True:\n    os.write(1, b'x' * 4096)", "printed too much"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)\nprint('out')", "Error"),
        ("print(open('/etc/passwd').read())", "Error"),
    ],
)
def test_a_hostile_program_is_told_and_the_next_one_runs(url: str, code: str, said: str) -> None:
    output = ran(url, code)
    assert said in output and "root:" not in output
    assert len(output) < 20_000
    assert ran(url, "print(1)") == "1"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "argument 'code': Field required"),
        ({"code": 3}, "argument 'code'"),
        ({"code": " \n"}, "blank"),
        ({"code": "#" * 70_000}, "longer than 65536"),
        ({"code": "1", "timeout": 3}, "argument 'timeout'"),
    ],
)
def test_wrong_arguments_are_refused(url: str, body: dict[str, Any], said: str) -> None:
    reply = httpx.post(f"{url}/python", json=body, timeout=60)
    assert reply.status_code == 422 and said in reply.text


def test_what_is_shown_of_a_run() -> None:
    def run(status: Any = "exited", code: int = 0, out: bytes = b"", err: bytes = b"") -> str:
        return as_output(SimpleNamespace(status=status, exit_code=code, stdout=out, stderr=err), 100)

    assert run(out=b"1\n2\n") == "1\n2"
    assert run(out=b"\xff\n") == "\\xff"
    assert run(out=b"1", err=b"warned") == "1\nwarned"
    lines = b"\n".join(b"line %d" % k for k in range(20))
    assert run(err=lines).splitlines() == [f"line {k}" for k in range(12, 20)]
    assert run("timed_out", -9, b"1") == "1\n[The program was stopped: it took too much time.]"
    assert len(run(out=b"x" * 10**6)) < 200
    assert cut("a" * 50 + "b" * 70, 100) == "a" * 50 + "\n[20 characters left out]\n" + "b" * 50


def test_trouble_of_the_sandbox_is_a_failure_and_no_output() -> None:
    environment = MathWithPython()

    async def run() -> None:
        with pytest.raises(FailureError, match="its sandbox is not started") as closed:
            await environment.python("print(1)")
        assert closed.value.failure.kind == "tool_crash"
        async with opened(environment):
            sandbox = environment._sandbox
            assert sandbox is not None

            async def broken(*given: Any, **named: Any) -> Run:
                raise FailureError(Failure(kind="environment_down", message="the fork server is gone"))

            sandbox.run = broken  # type: ignore[method-assign]
            with pytest.raises(FailureError, match="tool 'python': the fork server is gone") as crashed:
                await environment.python("print(1)")
            assert crashed.value.failure.kind == "tool_crash" and crashed.value.failure.retryable

    asyncio.run(run())


# -- rollouts ------------------------------------------------------------------------------------------------------


def rollout(url: str, turns: Callable[[dict[str, Any], int], Any]) -> tuple[Rollout, Model]:
    """One rollout of one question through the collector, over real HTTP."""
    model = Model()
    model.turns = turns
    params = {"input": [{"role": "user", "content": "What is 12345 times 6789?"}], "tools": TOOLS}
    row = {"responses_create_params": params, "question": "?", "expected_answer": "83810205"}

    async def collect(model_url: str) -> Rollout:
        collector = Collector(
            {"math_with_python": url}, f"{model_url}/v1", secret="s", limits=LoopLimits(steps=4), concurrency=2
        )
        request = RolloutRequest(row, "t", "math_with_python", "g")
        (made,) = [one async for one in collector.collect([request])]
        return made

    with serving(model.app) as model_url:
        return asyncio.run(collect(model_url)), model


def code_call(code: str) -> list[Any]:
    return [call("python", json.dumps({"code": code}))]


def test_a_rollout_computes_and_answers(url: str) -> None:
    def turns(body: dict[str, Any], n: int) -> Any:
        if n == 1:
            return code_call("print(12345 * 6789)")
        return message(f"\\boxed{{{body['input'][-1]['output'].strip()}}}")

    made, model = rollout(url, turns)
    assert (made.reward, made.failure, made.steps) == (1.0, None, 2)
    assert [(one.name, one.output, one.error) for one in made.tool_calls] == [("python", "83810205", False)]
    assert model.requests[-1]["input"][-1]["type"] == "function_call_output"


def test_a_hostile_program_ends_in_a_reward_of_0_and_no_failure(url: str) -> None:
    def turns(body: dict[str, Any], n: int) -> Any:
        hostile = [
            "while True: pass",
            "import os\nwhile True: os.fork()",
            "import sys\nsys.exit('\\\\boxed{83810205}')",
        ]
        return code_call(hostile[n - 1]) if n <= 3 else message("It does not stop.")

    made, _ = rollout(url, turns)
    assert (made.reward, made.failure) == (0.0, None)  # what the tool printed is no answer
    assert len(made.tool_calls) == 3 and not any(one.error for one in made.tool_calls)


def test_generated_tasks_go_through_a_model_server_with_their_worked_example(url: str) -> None:
    """The example's call reads as the model is to write its own; that is parsed, run, and its output seen in the next turn."""
    row = next(row for row in MathWithPython().generate(20, 0, "train") if row["family"] == "long_sum")
    program = row["question"].replace("Add these numbers: ", "print(sum([").rstrip(".") + "]))"
    prompts: list[str] = []

    def script(asked: Asked) -> str:
        prompts.append(asked.prompt)
        if len(prompts) == 1:
            return (
                f"<tool_call>\n<function=python>\n<parameter=code>\n{program}\n</parameter>\n</function>\n</tool_call>"
            )
        return f"\\boxed{{{row['expected_answer']}}}"

    async def collect(model_url: str) -> Rollout:
        collector = Collector(
            {"math_with_python": url}, f"{model_url}/v1", secret="s", limits=LoopLimits(steps=4), concurrency=1
        )
        (made,) = [one async for one in collector.collect([RolloutRequest(row, "t", "math_with_python", "g")])]
        return made

    with serving(build_model_server(ScriptedEngine(script), ModelSettings(secret="s"))) as model_url:
        made = asyncio.run(collect(model_url))
    assert (made.reward, made.failure) == (1.0, None), made.explanation
    assert [one.output for one in made.tool_calls] == [row["expected_answer"]]
    assert "<function=python>" in prompts[0].split("<|im_start|>user")[1]  # the worked example's call
    assert prompts[1].startswith(prompts[0]) and f"\n{row['expected_answer']}\n" in prompts[1][len(prompts[0]) :]
    assert sum(segment.sampled for segment in made.segments) == made.usage["sampled_tokens"] > 0


def test_only_the_end_of_an_answer_is_read() -> None:
    environment, row = MathWithPython(), {"expected_answer": "12"}
    far = message("\\boxed{12}" + " and so on" * 1000)
    verdict = environment.quick(environment.check_row(row), far)
    assert verdict is not None and verdict.reward == 0.0
    near = environment.quick(environment.check_row(row), message("so " * 1000 + "\\boxed{12}"))
    assert near is not None and near.reward == 1.0


# -- verdicts and tasks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    warm: list[tuple[str, tuple[Any, ...]]] = [("gym_servers.verification:prepare_environment", ("math_with_python",))]
    with contextlib.closing(WorkerPool(1, warm=warm)) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], url: str) -> None:
    reply = httpx.post(f"{url}/verify", json=case["request"], timeout=120)
    if "error" in case["expected"]:
        assert reply.status_code == 422 and case["expected"]["error"] in reply.text
        assert "environment 'math_with_python'" in reply.text
    else:
        assert reply.status_code == 200, reply.text
        assert reply.json()["reward"] == case["expected"]["reward"]


def test_generated_tasks_declare_the_tool_and_their_gold_is_right(pool: WorkerPool) -> None:
    environment = MathWithPython()
    rows = list(environment.generate(60, 3, "train"))
    assert rows == list(environment.generate(60, 3, "train")) and rows[:7] == list(environment.generate(7, 3, "train"))
    assert rows != list(environment.generate(60, 4, "train"))
    assert {row["family"] for row in rows} == {task[0] for task in TASKS}
    assert len({row["question"] for row in rows}) >= 58  # small products repeat
    for row in rows:
        assert row["responses_create_params"]["tools"] == TOOLS
        assert 0.0 <= row["difficulty"] <= 1.0
        parsed = environment.check_row(row)
        gold = environment.gold(parsed)
        assert asyncio.run(judge(environment, row, gold, pool)).reward == 1.0
        for output in environment.probes(parsed).values():
            assert asyncio.run(judge(environment, row, output, pool)).reward < 1.0


def test_no_split_shares_a_question_with_the_other_nor_with_competition_math_s() -> None:
    environment, plain = MathWithPython(), CompetitionMath()
    train = {row["question"] for row in environment.generate(600, 0, "train")}
    heldout = {row["question"] for row in environment.generate(600, 1, "heldout")}
    assert not train & heldout
    assert not train & {row["question"] for row in plain.generate(600, 2, "heldout")}
    assert not heldout & {row["question"] for row in plain.generate(600, 2, "train")}
    for row in environment.generate(60, 5, "train"):
        examples = json.dumps(row["responses_create_params"]["input"][:-1])
        assert f"boxed{{{row['expected_answer']}}}" not in examples.replace("\\", "")


def test_every_family_s_program_prints_its_answer(url: str) -> None:
    """The worked examples are true: a model that imitates them gets the answer."""
    import random

    for name, _, _, make in PROBLEMS:
        for seed in range(2):
            question, program, answer = make(random.Random(f"{name}{seed}"))
            assert ran(url, program).strip() == answer, question
