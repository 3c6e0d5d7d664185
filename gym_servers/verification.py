"""From an output to a verdict, or to a failure: an infrastructure failure is never a reward, and a policy cannot escape a
bad reward by breaking the grader (design: The records).

`judge` checks the row, asks `quick` in this process, hands what is left to `verify` in a worker, and lets the environment's
`appeal` look at the verdict once more (an LLM judge, where one is configured). A worker that breaks is
tried again, fresh. If the same output breaks two fresh workers by its own content (CPU, memory, an exception, a crash, or
sleeping while the machine was not starved) the verdict is the lowest reward with `unverifiable_output`, unless the gold
answer breaks a worker too: then the fault is the verifier's, and it is a Failure.
"""

from __future__ import annotations

import math
from typing import Any

from gym_servers.environment import Environment, Row
from gym_servers.protocol import Failure, FailureError, FailureKind, Item, Verdict
from gym_servers.registry import environment_class
from gym_servers.workers import WorkerError, WorkerPool

WALL_FACTOR = 15.0
WALL_MINIMUM = 30.0


def verify_in_worker(name: str, settings: dict[str, Any], row: dict[str, Any], output: list[Item]) -> dict[str, Any]:
    """Runs inside a worker: the verdict of environment `name` as JSON-like data."""
    cls = environment_class(name)
    environment = cls(cls.settings_type.model_validate(settings))
    return environment.verify(environment.check_row(row), output).model_dump()


def prepare_environment(name: str) -> None:
    """Runs where workers are forked from: their first verdict pays for no import."""
    environment_class(name)().prepare()


def check_range(environment: Environment, verdict: Verdict) -> Verdict:
    """The verdict, if its reward is finite and in the environment's range. Raises FailureError otherwise."""
    low, high = environment.reward_range
    if not math.isfinite(verdict.reward) or not low <= verdict.reward <= high:
        raise FailureError(
            Failure(
                kind="verifier_crash",
                message=f"environment '{environment.name}': reward {verdict.reward} outside [{low}, {high}]",
                retryable=False,
            )
        )
    return verdict


async def _attempt(
    environment: Environment, row: dict[str, Any], output: list[Item], pool: WorkerPool, fresh: bool = False
) -> Verdict:
    settings = environment.settings
    result = await pool.run(
        "gym_servers.verification:verify_in_worker",
        (environment.name, settings.model_dump(), row, output),
        cpu_seconds=settings.verify_cpu_seconds,
        wall_seconds=max(WALL_MINIMUM, WALL_FACTOR * settings.verify_cpu_seconds),
        memory_mb=settings.verify_memory_mb,
        fresh=fresh,
    )
    return Verdict.model_validate(result)


async def judge(environment: Environment, row: dict[str, Any], output: list[Item], pool: WorkerPool) -> Verdict:
    """The verdict on `output` for `row`. Raises RowError (the row is bad) or FailureError (nobody's answer is at fault)."""
    parsed = environment.check_row(row)
    verdict = environment.quick(parsed, output)
    if verdict is None:
        verdict = await _in_workers(environment, parsed, row, output, pool)
    if "unverifiable_output" not in verdict.parts:  # nobody appeals by breaking the grader
        verdict = await environment.appeal(parsed, output, verdict)
    return check_range(environment, verdict)


async def _in_workers(
    environment: Environment, parsed: Row, row: dict[str, Any], output: list[Item], pool: WorkerPool
) -> Verdict:
    """The verdict of `verify`, in a second worker where the first broke."""
    try:
        return await _attempt(environment, row, output, pool)
    except WorkerError as error:
        first = error
    try:  # fresh: what the first worker kept in memory must not be what breaks the second
        return await _attempt(environment, row, output, pool, fresh=True)
    except WorkerError as error:
        second = error
    if not second.by_content:
        kind: FailureKind = "timeout" if second.kind == "wall" else "verifier_crash"
        raise FailureError(Failure(kind=kind, message=f"environment '{environment.name}': {second.message}"))
    gold = environment.gold(parsed)
    if gold is not None and gold != output:
        try:
            await _attempt(environment, row, gold, pool, fresh=True)
        except WorkerError as error:
            raise FailureError(
                Failure(
                    kind="verifier_crash",
                    message=f"environment '{environment.name}': the gold answer breaks the verifier too: {error}",
                    retryable=False,
                )
            ) from None
    return Verdict(
        reward=environment.reward_range[0],
        explanation=f"The output broke the verifier twice ({first.kind}, then {second.kind}): {second.message}",
        parts={"unverifiable_output": True},
    )
