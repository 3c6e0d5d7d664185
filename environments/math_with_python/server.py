"""math_with_python as an environment: competition_math's rows and verdict, and a tool that runs Python in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from environments.competition_math.server import CompetitionMath, MathSettings
from environments.math_with_python import generator
from environments.math_with_python.tool import as_output, check_code
from gym_servers.environment import Settings, Split
from gym_servers.protocol import Failure, FailureError
from gym_servers.sandbox import Limits, Sandbox
from gym_servers.tools import Tool


class PythonMathSettings(MathSettings):
    """Settings of math_with_python: competition_math's and the tool's."""

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
    settings_type: ClassVar[type[Settings]] = PythonMathSettings

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

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split, [tool.declaration() for tool in self.tools()])
