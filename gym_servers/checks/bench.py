"""Grading for checks: an output goes the way that it goes in a server, and whatever comes of it is a value.

What needs a judge or a simulated user that is not configured cannot be checked: it is `NotAsked`, and shown as skipped.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any, Literal

from gym_servers.environment import AwaitedEnvironment, Environment, GroupEnvironment, StatefulEnvironment
from gym_servers.protocol import FailureError, Item, OmnigymError, RowError, Verdict, function_calls
from gym_servers.tools import Tool, ToolRefused, check_tools
from gym_servers.verification import judge, judge_group
from gym_servers.workers import WorkerPool

Result = Literal["ok", "wrong", "skipped"]
SHOWN = 3
"""Problems of one kind that are told; the others are counted."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    result: Result
    detail: str


@dataclass(frozen=True)
class Refused:
    """The row was refused, which is the right thing for a bad one."""

    message: str


@dataclass(frozen=True)
class Broken:
    """Neither a verdict nor a refusal."""

    message: str


@dataclass(frozen=True)
class NotAsked:
    """Nobody who could say is configured."""

    message: str


Outcome = Verdict | Refused | Broken | NotAsked


@dataclass(frozen=True)
class Task:
    """A generated row and its gold answer, None where the environment makes none."""

    name: str
    row: dict[str, Any]
    gold: list[Item] | None


def found(check: str, problems: list[str], detail: str, skipped: list[NotAsked] | None = None, of: int = 0) -> Finding:
    """The finding of a check. skipped: verdicts of `of` that nobody could give; where that is all of them, so is the check."""
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        return Finding(check, "wrong", "; ".join(problems[:SHOWN]) + more)
    if skipped:
        why = f"{len(skipped)} of {of} verdicts need who is not there: {skipped[0].message}"
        return Finding(
            check, "skipped" if len(skipped) >= of else "ok", why if len(skipped) >= of else f"{detail}; {why}"
        )
    return Finding(check, "ok", detail)


class Bench:
    """An environment, open, and workers to grade in."""

    def __init__(self, environment: Environment, pool: WorkerPool) -> None:
        self.environment, self.pool = environment, pool
        self.tools = check_tools(environment.name, environment.tools())

    @property
    def full(self) -> float:
        """The reward that a right answer earns."""
        return self.environment.reward_range[1]

    def asks_nobody(self) -> bool:
        """Whether the environment may ask a judge or a user, and none is configured."""
        settings = self.environment.settings
        return any(
            getattr(settings, key) in ("", None)
            for key in type(settings).model_fields
            if key.endswith("_url") or key == "url"
        )

    def explain(self, error: Exception) -> Outcome:
        """What an exception of `judge` means for a check."""
        if isinstance(error, RowError):
            return Refused(str(error))
        if isinstance(error, FailureError):
            asked = error.failure.kind in ("judge_failed", "simulator_failed", "environment_down")
            return NotAsked(error.failure.message) if asked and self.asks_nobody() else Broken(str(error))
        return Broken(f"{type(error).__name__}: {error}")

    async def grade(
        self, row: dict[str, Any], output: list[Item], pool: WorkerPool | None = None, state: Any = None
    ) -> Outcome:
        """One output, graded alone. state: of an episode that was played."""
        pickled = None if state is None else pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        try:
            if isinstance(self.environment, GroupEnvironment):
                return (await judge_group(self.environment, row, [{"output": output}], pool or self.pool))[0]
            return await judge(self.environment, row, output, pool or self.pool, pickled)
        except Exception as error:  # what a server would answer 500 to
            return self.explain(error)

    async def verify(self, row: dict[str, Any], output: list[Item], pool: WorkerPool) -> Outcome:
        """One output, graded in a worker of `pool` even where `quick` could tell, if the environment computes its verdicts."""
        environment, settings = self.environment, self.environment.settings
        appeals = type(environment).appeal is not Environment.appeal and not self.asks_nobody()
        if isinstance(environment, AwaitedEnvironment | GroupEnvironment) or appeals:
            return await self.grade(row, output, pool)
        try:
            verdict = await pool.run(
                "gym_servers.verification:verify_in_worker",
                (environment.name, settings.model_dump(), row, output),
                cpu_seconds=10 * settings.verify_cpu_seconds,
                wall_seconds=600.0,
                memory_mb=settings.verify_memory_mb,
            )
        except (OmnigymError, OSError) as error:
            return self.explain(error)
        return Verdict.model_validate(verdict)

    async def grade_group(self, row: dict[str, Any], outputs: list[list[Item]]) -> list[Verdict] | Outcome:
        """Outputs of one task, graded together."""
        assert isinstance(self.environment, GroupEnvironment)
        try:
            return await judge_group(self.environment, row, [{"output": output} for output in outputs], self.pool)
        except Exception as error:
            return self.explain(error)

    async def play(self, row: dict[str, Any], output: list[Item]) -> Any:
        """The state after the calls of `output`, made as an agent makes them. Raises what `seed` and tools raise."""
        environment = self.environment
        assert isinstance(environment, StatefulEnvironment)
        state = environment.seed(environment.check_row(row))
        for call in function_calls(output):
            tool: Tool | None = self.tools.get(str(call.get("name")))
            if tool is None:
                continue
            copy = pickle.loads(pickle.dumps(state))
            try:
                await tool.call(copy, tool.parse(json.loads(str(call.get("arguments") or "{}"))))
            except ToolRefused:
                continue
            if tool.with_state and not tool.read_only:
                state = copy
        return state
