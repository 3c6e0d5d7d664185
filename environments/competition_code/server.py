"""competition_code as an environment: settings, and the tests of an answer, run one after the other in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from pydantic import Field

from environments.competition_code import generator
from environments.competition_code.probes import programs
from environments.competition_code.row import CodeRow
from environments.competition_code.verifier import (
    Outcome,
    Result,
    extract_code,
    no_code,
    shown,
    text_difference,
    value_difference,
    verdict,
)
from gym_servers.environment import AwaitedEnvironment, Row, Settings, Split
from gym_servers.protocol import Failure, FailureError, Item, Verdict, final_text, strip_reasoning
from gym_servers.sandbox.pool import Limits, Run, Sandbox


class CodeSettings(Settings):
    """Settings of competition_code."""

    max_tests: int = Field(50, ge=1)
    """Of a row's tests, the first so many count."""
    test_cpu_seconds: float = Field(10.0, gt=0)
    """CPU time of one test. Load does not shorten it."""
    test_wall_seconds: float = Field(60.0, gt=0)
    """Wall time of one test, for programs that sleep."""
    verify_cpu_seconds: float = Field(60.0, gt=0)
    """CPU time of all tests of one answer together."""
    verify_wall_seconds: float = Field(240.0, gt=0)
    """Wall time of all tests of one answer together: less than a caller waits (300 s), so that no answer gets away by sleeping."""
    test_output_kb: int = Field(1024, ge=1)
    """What one test may print."""
    servers: int = Field(2, ge=1)
    """Fork servers of the sandbox: how many tests run at once."""
    insecure: bool = False
    """Run answers even where this machine can isolate nothing."""


@cache
def caller(function_name: str) -> str:
    """The program that calls `function_name` of solution.py (call_function.py)."""
    return f"{files(__package__).joinpath('call_function.py').read_text()}\n\nmain({function_name!r})\n"


def last_line(stderr: bytes) -> str:
    """The last line of a traceback."""
    lines = stderr.decode("utf-8", "backslashreplace").strip().split("\n")
    return lines[-1].strip()


def ended_badly(run: Run) -> Result | None:
    """The result of a run that did not end by itself with exit code 0; None where it did."""
    reasons: dict[str, tuple[Outcome, str]] = {
        "timed_out": ("timed_out", "it was stopped at its time limit"),
        "memory": ("memory", "it was stopped at its memory limit"),
        "output": ("output", "it printed more than the limit"),
        "killed": ("crashed", "it was ended by a signal"),
    }
    if run.status in reasons:
        return Result(*reasons[run.status])
    if run.exit_code != 0:
        error = last_line(run.stderr)
        outcome: Outcome = "memory" if error.startswith("MemoryError") else "crashed"
        return Result(outcome, f"exit code {run.exit_code}, {shown(error)}")
    return None


class CompetitionCode(AwaitedEnvironment):
    """A task in words, an answer with a program or function, tests that it must all pass."""

    name = "competition_code"
    settings_type: ClassVar[type[Settings]] = CodeSettings
    row_type: ClassVar[type[Row]] = CodeRow

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._sandbox: Sandbox | None = None

    async def open(self) -> None:
        self._sandbox = Sandbox(self.settings.servers, insecure=self.settings.insecure)
        await self._sandbox.start()

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.close()
            self._sandbox = None

    def _code(self, output: list[Item]) -> str | None:
        return extract_code(strip_reasoning(final_text(output))[-self.settings.max_answer_chars :])

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        """Answers in which there is nothing to run."""
        code = self._code(output)
        if code is None:
            return no_code("There is no code between two fence lines.")
        try:
            code.encode()
        except UnicodeEncodeError:
            return no_code("The code holds a lone surrogate: it is no text that Python could read.")
        return None

    async def verify_awaited(self, row: Row, output: list[Item]) -> Verdict:
        """Runs the tests until one fails."""
        assert isinstance(row, CodeRow)
        code, settings, tests = self._code(output), self.settings, row.tests
        assert code is not None, "quick decides where there is no code"
        counted = min(len(tests.inputs), settings.max_tests)
        results: list[Result] = []
        cpu_left, wall_left = settings.verify_cpu_seconds, settings.verify_wall_seconds
        for given, expected in zip(tests.inputs[:counted], tests.outputs, strict=False):
            if cpu_left <= 0 or wall_left <= 0:
                results.append(Result("timed_out", "the tests before it used the time that all of them have together"))
                break
            limits = Limits(
                cpu_seconds=min(settings.test_cpu_seconds, cpu_left),
                wall_seconds=min(settings.test_wall_seconds, wall_left),
                memory_mb=settings.verify_memory_mb,
                output_bytes=1024 * settings.test_output_kb,
            )
            run = await self._run(code, tests.fn_name, given, limits)
            cpu_left, wall_left = cpu_left - run.cpu_seconds, wall_left - run.wall_seconds
            result = ended_badly(run)
            if result is None:
                compare = value_difference if tests.fn_name else text_difference
                difference = compare(expected, run.stdout.decode("utf-8", "backslashreplace"))
                result = Result("wrong", difference) if difference else Result("passed")
            results.append(result)
            if result.outcome != "passed":
                break
        return verdict(results, counted, len(tests.inputs))

    async def _run(self, code: str, function: str | None, given: str, limits: Limits) -> Run:
        if self._sandbox is None:
            message = f"environment '{self.name}': its sandbox is not started: open the environment first"
            raise FailureError(Failure(kind="environment_down", message=message, retryable=False))
        if function is None:
            return await self._sandbox.run(code, stdin=given.encode(), limits=limits)
        beside = {"solution.py": code.encode()}
        return await self._sandbox.run(caller(function), stdin=given.encode(), files=beside, limits=limits)

    def gold(self, row: Row) -> list[Item] | None:
        """The reference's own program for a row of our generator; a published row carries none."""
        extra = row.model_extra or {}
        problem = generator.BY_NAME.get(str(extra.get("family")))
        if problem is None or not isinstance(extra.get("constants"), dict):
            return None
        assert isinstance(row, CodeRow)
        return _message(generator.fenced(problem.program(extra["constants"], row.tests.fn_name is not None)))

    def probes(self, row: Row) -> dict[str, list[Item]]:
        assert isinstance(row, CodeRow)
        visible = generator.VISIBLE if (row.model_extra or {}).get("family") in generator.BY_NAME else 0
        return {name: _message(generator.fenced(program)) for name, program in programs(row.tests, visible).items()}

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)


def _message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
