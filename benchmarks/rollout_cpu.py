"""CPU time of one single-turn rollout around an instant model, over all our processes.

Three processes that speak HTTP: this one collects (gym_servers/rollouts.py and the tool loop), `omnigym env serve` grades
(competition_math, its quick path), instant_model.py is the model server with its ledger. A rollout is seed_session, one response
at the rollout's own signed URL, verify, close, and the join of the ledger's arrays. After a warm-up, the user and system time
of all three is taken before and after N rollouts; the best and the median of several rounds are shown, since other load on the
machine only ever adds. Target: at most 3 CPU-ms.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import show, tree_cpu_seconds

from gym_servers.hosts.local import LocalHost
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest

TARGET_MS = 3.0
ENVIRONMENT = "competition_math"


def requests(n: int, seed: int, name: str) -> Iterator[RolloutRequest]:
    """n single-turn tasks."""
    rows = load_environment(ENVIRONMENT).generate(n, seed, "train")
    for number, row in enumerate(rows):
        yield RolloutRequest(row, f"{name}-{number}", ENVIRONMENT, f"{name}-{number}", 0, seed=number)


async def collect(collector: Collector, wanted: list[RolloutRequest]) -> float:
    """Mean reward. Raises RuntimeError for a rollout that failed or lost its tokens."""
    total = 0.0
    async for rollout in collector.collect(wanted):
        if rollout.failure is not None or rollout.reward is None:
            raise RuntimeError(f"rollout {rollout.task_id} failed: {rollout.failure}")
        if sum(segment.sampled for segment in rollout.segments) != rollout.usage["sampled_tokens"]:
            raise RuntimeError(f"rollout {rollout.task_id}: its segments do not hold what was sampled")
        total += rollout.reward
    return total / len(wanted)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000, help="rollouts of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64, help="rollouts in flight")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    token, secret = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    with LocalHost() as host:
        environments = host.start_environments([ENVIRONMENT], token)
        model = host.start(
            "the model server",
            [sys.executable, str(Path(__file__).with_name("instant_model.py"))],
            {"OMNIGYM_TOKEN": token, "OMNIGYM_SECRET": secret},
        )
        collector = Collector(
            environments={ENVIRONMENT: f"{environments.wait_ready()}/{ENVIRONMENT}"},
            model_url=f"{model.wait_ready()}/v1",
            secret=secret,
            sampling={"temperature": 1.0, "max_output_tokens": 256},
            concurrency=options.concurrency,
            token=token,
        )
        asyncio.run(collect(collector, list(requests(options.rollouts // 4, options.seed, "warm"))))
        pids = (environments.process.pid, model.process.pid)
        rounds: list[tuple[float, float, float]] = []
        for number in range(options.rounds):
            wanted = list(requests(options.rollouts, options.seed + number, f"r{number}"))
            gc.collect()
            before = (time.process_time(), *(tree_cpu_seconds(pid) for pid in pids))
            reward = asyncio.run(collect(collector, wanted))
            after = (time.process_time(), *(tree_cpu_seconds(pid) for pid in pids))
            rounds.append(tuple(1000 * (b - a) / len(wanted) for a, b in zip(before, after, strict=True)))  # type: ignore[arg-type]
            print(f"round {number}: {sum(rounds[-1]):.3f} CPU-ms a rollout, mean reward {reward:.3f}", file=sys.stderr)
    columns = [*zip(*rounds, strict=True), [sum(parts) for parts in rounds]]
    names = ("collector", "environment server", "model server", "all")
    best = {name: min(values) for name, values in zip(names, columns, strict=True)}
    median = {name: statistics.median(values) for name, values in zip(names, columns, strict=True)}
    rows = [[name, best[name], median[name], TARGET_MS if name == "all" else ""] for name in names]
    result = {
        "benchmark": "rollout_cpu",
        "rollouts": options.rollouts,
        "rounds": options.rounds,
        "target_ms": TARGET_MS,
    }
    show(("CPU-ms a rollout", "best", "median", "target"), rows, {**result, "best": best, "median": median})


if __name__ == "__main__":
    main()
