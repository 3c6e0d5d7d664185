"""Seconds from starting `omnigym env serve` with every installed environment until /readyz answers 200.

A new process each time, after one that is not counted (it leaves bytecode and files in the cache). Wall time is what a user waits
for, so it is shown beside the CPU time of all its processes, which other load does not change: on a quiet machine with
two cores the wall time is at most about the CPU time. Target: 3 s.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time

from measure import show, tree_cpu_seconds

from gym_servers.hosts.local import LocalHost
from gym_servers.registry import environment_names

TARGET_SECONDS = 3.0


def start(names: list[str]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) until ready."""
    with LocalHost() as host:
        began = time.monotonic()
        server = host.start_environments(names, secrets.token_urlsafe(16))
        server.wait_ready()
        return time.monotonic() - began, tree_cpu_seconds(server.process.pid)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    names = environment_names()
    start(names)
    runs = [start(names) for _ in range(options.repeats)]
    wall, cpu = ([run[k] for run in runs] for k in (0, 1))
    rows = [
        ["wall", min(wall), statistics.median(wall), TARGET_SECONDS],
        ["CPU", min(cpu), statistics.median(cpu), ""],
    ]
    figures = {"wall": statistics.median(wall), "wall_best": min(wall), "cpu": statistics.median(cpu)}
    result = {
        "benchmark": "server_start",
        "environments": names,
        "repeats": options.repeats,
        "target_s": TARGET_SECONDS,
    }
    show(("seconds until ready", "best", "median", "target"), rows, {**result, **figures})


if __name__ == "__main__":
    main()
