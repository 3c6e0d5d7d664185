"""All checks of one environment, in the order of the table.

Not covered: whether a verdict is the one that a person would give, which only cases and probes of the environment's own can say.
"""

from __future__ import annotations

import contextlib
from typing import Any

from gym_servers.checks.bench import Bench, Finding, Task
from gym_servers.checks.malformed import check_outputs, check_rows
from gym_servers.checks.rewards import (
    check_cases,
    check_gold,
    check_probes,
    check_sameness,
    check_speed,
    graded_outputs,
    read_cases,
)
from gym_servers.checks.tasks import Rows, check_files, check_openapi, check_tasks, rows_of
from gym_servers.checks.users import check_user
from gym_servers.environment import ConversationEnvironment, Split, opened
from gym_servers.protocol import OmnigymError
from gym_servers.registry import load_environment
from gym_servers.workers import WorkerPool

MOST_OUTPUTS = 24
"""Cases that are graded again and again for sameness and speed."""


def _tasks(bench: Bench, rows: Rows, split: Split) -> list[Task]:
    return [
        Task(f"{split} task {k}", row, bench.environment.gold(bench.environment.check_row(row)))
        for k, row in enumerate(rows)
    ]


async def check_environment(
    name: str, tasks: int = 24, seed: int = 0, overrides: dict[str, Any] | None = None, workers: int = 2
) -> list[Finding]:
    """The findings on environment `name`. tasks: generated for each split. Raises OmnigymError where it cannot be loaded."""
    environment = load_environment(name, overrides)
    findings = [check_files(name)]
    warm: list[tuple[str, tuple[Any, ...]]] = [("gym_servers.verification:prepare_environment", (name,))]
    with (
        contextlib.closing(WorkerPool(workers, warm=warm)) as pool,
        contextlib.closing(WorkerPool(workers, warm=warm)) as other,
    ):
        try:
            async with opened(environment):
                bench = Bench(environment, pool)
                async for found in _checks(bench, other, tasks, seed):
                    findings.append(found)
        except OmnigymError as error:
            findings.append(Finding("stopped", "wrong", str(error)))
    return findings


async def _checks(bench: Bench, other: WorkerPool, n: int, seed: int) -> Any:
    yield check_openapi(bench)
    train, heldout = await rows_of(bench, n, seed, "train"), await rows_of(bench, n, seed, "heldout")
    for finding in await check_tasks(bench, train, heldout, seed):
        yield finding
    tasks = _tasks(bench, train, "train")
    yield await check_gold(bench, tasks + _tasks(bench, heldout, "heldout"))
    for finding in await check_probes(bench, tasks):
        yield finding
    if isinstance(bench.environment, ConversationEnvironment):
        yield await check_user(bench, tasks)
    yield await check_rows(bench, tasks)
    yield await check_outputs(bench, tasks)
    cases = read_cases(bench)
    finding, cheap = await check_cases(bench, cases)
    yield finding
    graded = graded_outputs(cheap, tasks, MOST_OUTPUTS)
    yield await check_sameness(bench, graded, other)
    yield await check_speed(bench, graded)
