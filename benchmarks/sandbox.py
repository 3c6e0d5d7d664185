"""What a run in the sandbox costs: runs/s and CPU-ms of a trivial program, against a fresh `python3 -c pass` in the same run.

    python benchmarks/sandbox.py [--runs 400] [--rounds 3] [--servers 2] [--without namespaces]

CPU-ms, the CPU time of a run, are of everything: the program, its fork server and the server that asks. The ratio is that of a fresh interpreter's CPU-ms
to ours, and the runs/s are of `servers` (or that many interpreters) at once, best round of each. In a container as gym_servers/sandbox/README.md says.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from measure import show, tree_cpu_seconds

from gym_servers.sandbox.pool import LAYERS, Sandbox


@dataclass(frozen=True)
class Cost:
    """Of one round."""

    per_second: float
    cpu_ms: float


async def _in_turns(servers: int, runs: int, one: Any) -> None:
    left = iter(range(runs))

    async def worker() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(worker() for _ in range(servers)))


async def measured(servers: int, runs: int, one: Any) -> Cost:
    """`runs` times `one`, at most `servers` at once."""
    wall, cpu = time.perf_counter(), tree_cpu_seconds(os.getpid())
    await _in_turns(servers, runs, one)
    wall, cpu = time.perf_counter() - wall, tree_cpu_seconds(os.getpid()) - cpu
    return Cost(runs / wall, 1e3 * cpu / runs)


async def fresh() -> None:
    """A fresh interpreter."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    if await process.wait():
        raise SystemExit(f"{sys.executable} -c pass failed")


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both in alternating rounds."""
    ours: list[Cost] = []
    theirs: list[Cost] = []
    async with Sandbox(options.servers, without=options.without) as sandbox:

        async def run() -> None:
            done = await sandbox.run("pass")
            if done.exit_code != 0:
                raise SystemExit(f"the sandbox's run failed: {done}")

        await _in_turns(options.servers, 20, run)
        for _ in range(options.rounds):
            ours.append(await measured(options.servers, options.runs, run))
            theirs.append(await measured(options.servers, max(options.runs // 4, 20), fresh))
        layers = sandbox.layers
    best = {
        name: Cost(max(one.per_second for one in costs), min(one.cpu_ms for one in costs))
        for name, costs in (("sandbox", ours), ("python3 -c pass", theirs))
    }
    header = ("what", "runs/s", "CPU-ms a run")
    mine, other = best["sandbox"], best["python3 -c pass"]
    result = {
        "benchmark": "sandbox",
        "layers": layers,
        "servers": options.servers,
        "runs_per_second": round(mine.per_second, 1),
        "cpu_ms": round(mine.cpu_ms, 3),
        "fresh_runs_per_second": round(other.per_second, 1),
        "fresh_cpu_ms": round(other.cpu_ms, 3),
        "times_as_many": round(mine.per_second / other.per_second, 2),
        "cpu_ratio": round(other.cpu_ms / mine.cpu_ms, 2),
    }
    show(header, [(name, cost.per_second, cost.cpu_ms) for name, cost in best.items()], result)
    return result


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--without", action="append", default=[], choices=LAYERS)
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
