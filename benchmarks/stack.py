"""The stack of compose/ under load: rollouts/s, p50 and p99 of its answers per environment, memory per service.

    docker compose up -d --wait
    OMNIGYM_TOKEN=... python benchmarks/stack.py --url http://127.0.0.1:8100 [--in-flight 2000] [--scale SERVICE ...] [--replicas 1 4]

Rollouts of all environments that the gateway lists go through it, --in-flight at once, with a scripted model in this process that
answers what is right, so that a wrong reward stops the benchmark. Seconds are those of the environment's own answers (seed_session, tool
calls, what a simulated user says, verify), as the agent waits for them through the gateway; the model's are left out. Each round is
taken with 1 replica and with 4 of the services --scale. Memory is what the engine counts for the containers of a service while the load runs, its most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import uvicorn
from measure import show

from gym_servers.base import ServerSettings
from gym_servers.client import Client
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import ScriptedEngine, by_seed, turns_of
from gym_servers.protocol import OmnigymError
from gym_servers.registry import environment_names, load_environment
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.variables import variable

SECRET = "benchmark"
TASKS = 32
"""Different tasks of an environment."""
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def plan(names: Sequence[str], n: int) -> tuple[list[RolloutRequest], list[list[str]], list[float]]:
    """n rollouts that take turns over the environments, what the model says in each, and the reward of each."""
    tasks = {}
    for name in names:
        environment = load_environment(name)
        rows = list(environment.generate(TASKS, 11, "train"))
        golds = [environment.gold(environment.check_row(row)) or [] for row in rows]
        tasks[name] = (
            [(row, turns_of(gold)) for row, gold in zip(rows, golds, strict=True)],
            environment.reward_range[1],
        )
    requests, scripts, rewards = [], [], []
    for k in range(n):
        name = names[k % len(names)]
        (row, turns), reward = tasks[name][0][k // len(names) % TASKS], tasks[name][1]
        requests.append(RolloutRequest(dict(row), f"t{k}", name, f"t{k}", 0, seed=k))
        scripts.append(turns)
        rewards.append(reward)
    return requests, scripts, rewards


class PerfectModel:
    """A model server on loopback, as a context: rollout k, known by its seed, is answered with scripts[k]."""

    def __init__(self, scripts: Sequence[Sequence[str]], token: str) -> None:
        guard = build_model_server(
            ScriptedEngine(by_seed(scripts)), ModelSettings(secret=SECRET), ServerSettings(token=token)
        )
        self._server = uvicorn.Server(uvicorn.Config(guard, port=0, log_level="error"))

    async def __aenter__(self) -> str:
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def __aexit__(self, *exc: object) -> None:
        self._server.should_exit = True
        await self._task


def memory(project: str) -> dict[str, float]:
    """MiB of the containers of each service of the project, by the engine's count."""
    listed = ["docker", "ps", "--filter", f"label=com.docker.compose.project={project}", "--format"]
    rows = subprocess.check_output([*listed, '{{.ID}} {{.Label "com.docker.compose.service"}}'], text=True).split("\n")
    services = dict(row.split(" ", 1) for row in rows if row)
    shown = subprocess.check_output(
        ["docker", "stats", "--no-stream", "--format", "{{.ID}} {{.MemUsage}}", *services], text=True
    )
    total: dict[str, float] = defaultdict(float)
    for line in shown.splitlines():
        found = re.match(r"(\w+) ([\d.]+)([KMG]?i?B)", line)
        if found is None:
            raise OmnigymError(f"docker stats printed '{line}'")
        total[services[found[1]]] += float(found[2]) * UNITS[found[3]] / UNITS["MiB"]
    return dict(total)


def scale(compose: Sequence[str], services: Sequence[str], replicas: int) -> None:
    """Bring the services to so many replicas, all healthy."""
    wanted = [f"--scale={service}={replicas}" for service in services]
    subprocess.run([*compose, "up", "-d", "--wait", "--no-recreate", *wanted], check=True, capture_output=True)


async def watch(project: str, most: dict[str, float]) -> None:
    """Keep the most memory of each service, until cancelled."""
    while True:
        for service, mib in (await asyncio.to_thread(memory, project)).items():
            most[service] = max(most.get(service, 0.0), mib)


async def load(
    url: str, token: str, names: Sequence[str], rollouts: int, in_flight: int
) -> tuple[float, Mapping[str, list[float]]]:
    """(rollouts/s, the seconds that each environment's answers took, a sum per rollout). Raises OmnigymError for a wrong reward."""
    requests, scripts, rewards = plan(names, rollouts)
    seconds: dict[str, list[float]] = defaultdict(list)
    async with PerfectModel(scripts, token) as model:
        collector = Collector(
            environments={name: f"{url}/{name}" for name in names},
            model_url=f"{model}/v1",
            run=secrets.token_hex(4),
            secret=SECRET,
            sampling={"temperature": 1.0, "max_output_tokens": 100_000},
            concurrency=in_flight,
            token=token,
        )
        began = time.perf_counter()
        async for rollout in collector.collect(requests):
            if rollout.failure is not None or rollout.reward != rewards[rollout.seed]:
                raise OmnigymError(
                    f"rollout {rollout.task_id} of {rollout.environment}: {rollout.failure or rollout.reward}"
                )
            parts = (rollout.timings.get(part, 0.0) for part in ("seed", "tools", "user", "verify"))
            seconds[rollout.environment].append(sum(parts))
        return rollouts / (time.perf_counter() - began), seconds


async def served(url: str, token: str) -> list[str]:
    """What the gateway lists and is installed here too."""
    async with Client(token=token) as client:
        listed = await client.environments(url)
    return sorted({entry["name"] for entry in listed} & set(environment_names()))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8100", help="the gateway")
    parser.add_argument("--project", default="omnigym", help="the name of the compose project")
    parser.add_argument("--file", default="compose/docker-compose.yaml")
    parser.add_argument("--rollouts", type=int, default=6000, help="in a round")
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--scale", nargs="*", default=[], metavar="SERVICE", help="services that get the replicas")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 4])
    options = parser.parse_args()
    token = variable("OMNIGYM_TOKEN")
    if token is None:
        raise SystemExit("set OMNIGYM_TOKEN to the deployment's token: compose/README.md says how to read it")
    compose = ["docker", "compose", "-p", options.project, "-f", options.file]
    names = asyncio.run(served(options.url, token))
    result: dict[str, object] = {"benchmark": "stack", "rollouts": options.rollouts, "in_flight": options.in_flight}

    async def measured(most: dict[str, float]) -> tuple[float, Mapping[str, list[float]]]:
        watching = asyncio.create_task(watch(options.project, most))
        try:
            return await load(options.url, token, names, options.rollouts, options.in_flight)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    for replicas in options.replicas:
        if options.scale:
            scale(compose, options.scale, replicas)
        asyncio.run(load(options.url, token, names, 20 * len(names), 64))  # connections and workers are warm
        most: dict[str, float] = {}
        rate, seconds = asyncio.run(measured(most))
        print(
            f"{replicas} replica(s) of {', '.join(options.scale) or 'nothing'}: {rate:.0f} rollouts/s", file=sys.stderr
        )
        rows = []
        for name in names:
            cuts = statistics.quantiles(seconds[name], n=100)
            rows.append([name, len(seconds[name]), cuts[49], cuts[98]])
        figures = {name: {"n": n, "p50": p50, "p99": p99} for name, n, p50, p99 in rows}
        result[f"replicas_{replicas}"] = {"rollouts_per_second": rate, "environments": figures, "memory_mib": most}
        show(("environment", "rollouts", "p50 s", "p99 s"), rows, {"replicas": replicas, "rollouts_per_second": rate})
        show(("service", "MiB at most"), sorted(most.items()), {})
    if options.scale:
        scale(compose, options.scale, 1)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
