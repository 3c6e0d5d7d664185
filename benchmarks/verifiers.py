"""Verdicts per second of every installed environment, with p50 and p99, on its cases and on generated tasks with their gold answers.

Each verdict is the whole of what a server does for it but HTTP: the row is checked, `quick` decides in this process, or a warm worker
does. One at a time, so that a latency is a verdict's own; the rate is the inverse of the mean. `in process` is the share that `quick`
decides. Cases that are meant as bad rows count too: refusing one is work. An environment whose verdict is awaited is left out by name
where what it asks (a sandbox, a judge) does not start or answer, and so is one whose tasks cannot be generated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from itertools import islice
from typing import Any

from measure import show

from gym_servers.environment import Environment, GroupEnvironment, opened
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, RowError
from gym_servers.registry import environment_names, load_environment
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

Given = tuple[dict[str, Any], list[Item]]
"""A row and output items."""
WARM = 20


def cases(environment: Environment) -> list[Given]:
    """The environment's own cases whose output can be graded."""
    path = environment.folder() / "cases.jsonl"
    if not path.is_file():
        return []
    requests = [json.loads(line)["request"] for line in path.read_text().splitlines() if line.strip()]
    return [
        ({key: value for key, value in request.items() if key != "response"}, request["response"]["output"])
        for request in requests
        if isinstance((request.get("response") or {}).get("output"), list)
    ]


def golds(environment: Environment, n: int, seed: int) -> list[Given]:
    """Up to n generated rows with their gold answers. Raises OmnigymError where there are none."""
    rows = islice(environment.generate(n, seed, "train"), n)
    found = [(row, environment.gold(environment.check_row(row))) for row in rows]
    return [(row, gold) for row, gold in found if gold is not None]


def decided(environment: Environment, row: dict[str, Any], output: list[Item]) -> bool:
    """Whether `quick` gives the verdict, or the row is refused."""
    try:
        return environment.quick(environment.check_row(row), output) is not None
    except OmnigymError:
        return True


async def one(environment: Environment, given: Given, pool: WorkerPool) -> float:
    """Seconds of one verdict. Raises FailureError."""
    began = time.perf_counter()
    with contextlib.suppress(RowError):
        await judge(environment, *given, pool)
    return time.perf_counter() - began


async def timed(environment: Environment, given: list[Given], pool: WorkerPool, seconds: float) -> list[float]:
    """Seconds of each verdict, in whole passes over `given` for at least `seconds`, after some for warmth. Raises FailureError."""
    for each in given[:WARM]:
        await one(environment, each, pool)
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while not latencies or time.perf_counter() < end:
        latencies += [await one(environment, each, pool) for each in given]
    return latencies


async def measured(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of each kind of data. Raises OmnigymError where the environment cannot be measured here."""
    environment = load_environment(name)
    if isinstance(environment, GroupEnvironment):
        raise OmnigymError("it rewards groups")
    found: dict[str, dict[str, float]] = {}
    pool = WorkerPool(1, warm=[("gym_servers.verification:prepare_environment", (name,))])
    try:
        async with opened(environment):
            await asyncio.to_thread(pool.start)
            for what, given in (
                ("cases", cases(environment)),
                ("gold", golds(environment, options.tasks, options.seed)),
            ):
                if not given:
                    continue
                latencies = sorted(await timed(environment, given, pool, options.seconds))
                found[what] = {
                    "verdicts": len(latencies),
                    "per_second": len(latencies) / sum(latencies),
                    "p50_ms": 1000 * statistics.median(latencies),
                    "p99_ms": 1000 * latencies[int(0.99 * (len(latencies) - 1))],
                    "in_process": sum(decided(environment, *each) for each in given) / len(given),
                }
    finally:
        await asyncio.to_thread(pool.close)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="environments; all that are installed where absent")
    parser.add_argument("--tasks", type=int, default=300, help="generated tasks of each environment")
    parser.add_argument("--seconds", type=float, default=5.0, help="of grading, for each environment and kind of data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    left_out: dict[str, str] = {}
    for name in options.names or environment_names():
        try:
            figures[name] = asyncio.run(measured(name, options))
        except FailureError as error:
            failure: Failure = error.failure
            left_out[name] = f"{failure.kind}: {failure.message}"
        except OmnigymError as error:
            left_out[name] = str(error)
    rows = [
        [
            name,
            what,
            int(found["verdicts"]),
            int(found["per_second"]),
            found["p50_ms"],
            found["p99_ms"],
            found["in_process"],
        ]
        for name, kinds in figures.items()
        for what, found in kinds.items()
    ]
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    header = ("environment", "data", "verdicts", "per second", "p50 ms", "p99 ms", "in process")
    show(header, rows, {"benchmark": "verifiers", "environments": figures, "left_out": left_out})


if __name__ == "__main__":
    main()
