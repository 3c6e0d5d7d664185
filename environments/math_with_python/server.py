"""math_with_python as an environment: competition_math's rows and verdict, and a tool that runs Python in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from environments.competition_math.server import CompetitionMath, MathRow, MathSettings
from environments.competition_math.verifier import boxed
from environments.math_with_python import generator
from environments.math_with_python.tool import as_output, check_code
from gym_servers.environment import Row, Split
from gym_servers.protocol import Failure, FailureError, Item
from gym_servers.sandbox.pool import Limits, Sandbox
from gym_servers.tools import Tool


class PythonMathSettings(MathSettings):
    """Settings of math_with_python: competition_math's and the tool's."""

    max_answer_chars: int = 65536
    """What a call of the tool may hold; longer ones are refused."""
    graded_chars: int = Field(2000, ge=1, le=4000)
    """Of the answer, the end is read: that many characters."""
    tool_cpu_seconds: float = Field(10.0, gt=0)
    """CPU time of one call of the tool. Load does not shorten it."""
    tool_wall_seconds: float = Field(60.0, gt=0)
    """Wall time of one call, for programs that sleep."""
    tool_memory_mb: int = Field(1024, ge=64)
    tool_output_chars: int = Field(4000, ge=100)
    """What the model sees of one call."""
    servers: int = Field(2, ge=1)
    """Fork servers of the sandbox: how many calls run at once."""
    insecure: bool = False
    """Run programs even where this machine can isolate nothing."""


class MathWithPython(CompetitionMath):
    """One question, a Python tool, one final answer in a box."""

    name = "math_with_python"
    settings_type: ClassVar[type[MathSettings]] = PythonMathSettings

    def __init__(self, settings: PythonMathSettings | None = None) -> None:
        super().__init__(settings)
        self._sandbox: Sandbox | None = None

    def _text(self, output: list[Item]) -> str:
        return super()._text(output)[-self.settings.graded_chars :]

    async def open(self) -> None:
        self._sandbox = Sandbox(self.settings.servers, insecure=self.settings.insecure)
        await self._sandbox.start()

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.close()
            self._sandbox = None

    async def python(
        self, code: Annotated[str, Field(description="A whole Python 3 program, which prints what you want to see.")]
    ) -> str:
        """Run a Python program and get what it printed, then the end of its error messages. Every call is a new program: nothing is
        kept from earlier calls, and the value of a last expression is not shown, so import, define and print all that is needed. There
        is no input, no network and no file to read; time, memory and output are limited."""
        check_code(code)
        if self._sandbox is None:
            message = f"environment '{self.name}': its sandbox is not started: open the environment first"
            raise FailureError(Failure(kind="tool_crash", message=message, retryable=False))
        settings = self.settings
        limits = Limits(
            cpu_seconds=settings.tool_cpu_seconds,
            wall_seconds=settings.tool_wall_seconds,
            memory_mb=settings.tool_memory_mb,
            output_bytes=16 * settings.tool_output_chars,
        )
        try:
            run = await self._sandbox.run(code, limits=limits)
        except FailureError as error:
            message = f"environment '{self.name}' tool 'python': {error.failure.message}"
            raise FailureError(Failure(kind="tool_crash", message=message, retryable=error.failure.retryable)) from None
        return as_output(run, settings.tool_output_chars)

    def tools(self) -> Sequence[Tool]:
        return (Tool.of(self.python, read_only=True),)

    def probes(self, row: Row) -> dict[str, list[Item]]:
        """Outputs in which only the tool gives the answer, or in which the answer is left to be computed."""
        assert isinstance(row, MathRow)
        program = f"print({boxed(row.expected_answer)!r})"
        call = {"type": "function_call", "name": "python", "arguments": json.dumps({"code": program}), "call_id": "c"}
        printed = {"type": "function_call_output", "call_id": "c", "output": boxed(row.expected_answer)}
        return {
            "answers_by_tool_only": [call, printed],
            "points_at_the_tool": [call, printed, *_message("The tool printed the answer.")],
            "boxes_a_program": [call, printed, *_message("\\boxed{print(answer)}")],
        }

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split, [tool.declaration() for tool in self.tools()])


def _message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
