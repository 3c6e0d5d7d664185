"""Throughput of 2,048 rollouts in flight against 64, and the memory of one in flight.

Three processes that speak HTTP: this one collects (gym_servers/rollouts.py), `omnigym env serve` grades (instruction_following), and a
scripted model server answers at once, with a ledger for every rollout. Rounds at either concurrency take turns in one run, so that
what else the machine does meets both; the ratio is that of the medians. A round is timed while it is full: from the end of its
first --many rollouts, by which time every connection is open, to where the last request is begun. Wall time is what a user waits
for; CPU time of all processes is given beside it, since other load moves it less; the whole round, its start and end included,
stands in the JSON. Memory: 2,048 rollouts wait together in a model server that
takes its time; the growth of all processes' resident memory, per rollout. Target: a ratio of at least 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from gym_servers.hosts.local import LocalHost, LocalServer
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest

ENVIRONMENT = "instruction_following"
ANSWER = "The river is long, and the boats on it are slow. " * 6
TARGET = 0.9


def requests(rows: Sequence[dict[str, object]], n: int, name: str) -> Iterator[RolloutRequest]:
    """n single-turn rollouts."""
    for k in range(n):
        yield RolloutRequest(dict(rows[k % len(rows)]), f"{name}-{k}", ENVIRONMENT, f"{name}-{k}", 0, seed=k)


async def collect(
    collector: Collector, wanted: Iterator[RolloutRequest], on_done: Callable[[int], None] = lambda done: None
) -> None:
    """Collect all; on_done gets how many have ended. Raises RuntimeError for one that failed or lost tokens."""
    done = 0
    async for rollout in collector.collect(wanted):
        if rollout.failure is not None or rollout.reward is None:
            raise RuntimeError(f"rollout {rollout.task_id} failed: {rollout.failure}")
        if sum(segment.sampled for segment in rollout.segments) != len(ANSWER) + 1:
            raise RuntimeError(f"rollout {rollout.task_id}: its segments do not hold what was sampled")
        done += 1
        on_done(done)


def family(servers: Sequence[LocalServer]) -> list[psutil.Process]:
    """This process, the servers, and their living children."""
    roots = [psutil.Process(server.process.pid) for server in servers]
    return [psutil.Process(), *roots, *(child for root in roots for child in root.children(recursive=True))]


def cpu_seconds(servers: Sequence[LocalServer]) -> float:
    """User and system time of this process and the servers, their children that ended included."""
    total = 0.0
    for process in family(servers):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended: its parent counts it
            total += sum(process.cpu_times()[:4])
    return total


class PeakMemory:
    """The most resident memory that the processes had together while the context was open, in bytes, and what they had before."""

    def __init__(self, servers: Sequence[LocalServer]) -> None:
        self.servers = servers
        self.before = self.peak = self.now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def now(self) -> int:
        total = 0
        for process in family(self.servers):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=6144, help="rollouts that are timed in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds at either concurrency")
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=2048)
    options = parser.parse_args()
    token, secret = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    rows = list(load_environment(ENVIRONMENT).generate(256, 0, "train"))
    with LocalHost() as host:
        environments = host.start_environments([ENVIRONMENT], token)

        def model(seconds: float) -> LocalServer:
            settings = {"texts": [ANSWER], "seconds": seconds}
            command = [sys.executable, "-m", "gym_servers.models.scripted", "--settings", json.dumps(settings)]
            return host.start("the model server", command, {"OMNIGYM_TOKEN": token, "OMNIGYM_SECRET": secret})

        instant, slow = model(0.0), model(20.0)

        def collector(server: LocalServer, concurrency: int) -> Collector:
            return Collector(
                environments={ENVIRONMENT: f"{environments.url}/{ENVIRONMENT}"},
                model_url=f"{server.url}/v1",
                run=secrets.token_hex(8),
                secret=secret,
                sampling={"temperature": 1.0, "max_output_tokens": 1024},
                concurrency=concurrency,
                token=token,
            )

        for server in (environments, instant, slow):
            server.wait_ready()
        for server in (instant, slow):
            asyncio.run(collect(collector(server, options.few), requests(rows, 4 * options.few, "warm")))
        with PeakMemory([environments, slow]) as memory:
            asyncio.run(collect(collector(slow, options.many), requests(rows, options.many, "memory")))
        a_rollout = (memory.peak - memory.before) / options.many
        rates: dict[int, list[float]] = {options.few: [], options.many: []}
        whole: dict[int, list[float]] = {options.few: [], options.many: []}
        cpu_ms: dict[int, list[float]] = {options.few: [], options.many: []}
        for number in range(options.rounds):
            for concurrency in (options.few, options.many):
                first, last = options.many, options.many + options.rollouts
                marks: dict[int, tuple[float, float]] = {}

                def note(
                    done: int, at: tuple[int, int] = (first, last), marks: dict[int, tuple[float, float]] = marks
                ) -> None:
                    if done in at:
                        marks[done] = (time.perf_counter(), cpu_seconds([environments, instant]))

                wanted = requests(rows, last + concurrency, f"r{number}-{concurrency}")
                began = time.perf_counter()
                asyncio.run(collect(collector(instant, concurrency), wanted, note))
                whole[concurrency].append((last + concurrency) / (time.perf_counter() - began))
                seconds, cpu_spent = (b - a for a, b in zip(marks[first], marks[last], strict=True))
                rates[concurrency].append(options.rollouts / seconds)
                cpu_ms[concurrency].append(1000 * cpu_spent / options.rollouts)
                print(
                    f"round {number}: {concurrency} in flight: {rates[concurrency][-1]:.0f} rollouts/s, "
                    f"{cpu_ms[concurrency][-1]:.2f} CPU-ms a rollout",
                    file=sys.stderr,
                )
    middle = {n: statistics.median(values) for n, values in rates.items()}
    cpu = {n: statistics.median(values) for n, values in cpu_ms.items()}
    print(f"{'in flight':>10} {'rollouts/s':>11} {'CPU-ms each':>12}")
    for n in (options.few, options.many):
        print(f"{n:>10} {middle[n]:>11.0f} {cpu[n]:>12.2f}")
    ratio = middle[options.many] / middle[options.few]
    print(f"throughput ratio {ratio:.3f} (target at least {TARGET}); {a_rollout / 1024:.0f} KiB a rollout in flight")
    result = {
        "benchmark": "concurrency",
        "rollouts": options.rollouts,
        "rounds": options.rounds,
        "whole_rounds": {str(n): values for n, values in whole.items()},
        "rates": {str(n): values for n, values in rates.items()},
        "cpu_ms": {str(n): values for n, values in cpu_ms.items()},
        "ratio": ratio,
        "cpu_ratio": cpu[options.few] / cpu[options.many],
        "bytes_in_flight": a_rollout,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
