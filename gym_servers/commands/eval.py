"""`omnigym eval`: pass@1 with its standard error, and pass@k, of a checkpoint or a model server, per environment."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from gym_servers.commands.collection import FailureBudget, Row, Stage, tasks_of_file, wanted
from gym_servers.commands.folders import Folders
from gym_servers.commands.options import (
    Concurrency,
    Engine,
    MaxFailures,
    MaxTokens,
    ModelName,
    NoProgressSeconds,
    Retries,
    Settings,
    Temperature,
    sampling_of,
)
from gym_servers.commands.rollout import progress_bar
from gym_servers.environment import Split
from gym_servers.passk import PASS, mean_and_stderr, pass_at_k
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.rows import named_tasks, whole_file


class Scores:
    """What is kept of an evaluation's rollouts: a few numbers each, per environment and task."""

    def __init__(self) -> None:
        self.passes: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        self.rewards: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.failures: dict[str, int] = defaultdict(int)
        self.truncated: dict[str, int] = defaultdict(int)

    def add(self, rollout: Rollout) -> None:
        """Count one rollout. A failure is no reward: it is counted by itself."""
        if rollout.failure is not None or rollout.reward is None:
            self.failures[rollout.environment] += 1
            return
        self.passes[rollout.environment][rollout.task_id].append(rollout.reward >= PASS)
        self.rewards[rollout.environment][rollout.task_id].append(rollout.reward)
        self.truncated[rollout.environment] += rollout.truncated

    def figures(self, name: str, n: int) -> dict[str, Any]:
        """pass@1, its standard error over tasks, unbiased pass@k for k of 2, 4, 8, ... and n, mean reward, counts.

        A task with fewer than k rollouts that did not fail is left out of pass@k. Absent figures are None.
        """
        tasks = list(self.passes[name].values())
        rate, error = mean_and_stderr([sum(task) / len(task) for task in tasks])
        reward, _ = mean_and_stderr([sum(task) / len(task) for task in self.rewards[name].values()])
        scored = sum(len(task) for task in tasks)
        result: dict[str, Any] = {"pass@1": rate, "stderr": error, "reward_mean": reward}
        for k in sorted({2**i for i in range(1, n.bit_length()) if 2**i <= n} | ({n} if n > 1 else set())):
            result[f"pass@{k}"], _ = mean_and_stderr(
                [pass_at_k(len(task), sum(task), k) for task in tasks if len(task) >= k]
            )
        result = {key: None if value != value else value for key, value in result.items()}
        truncation = self.truncated[name] / scored if scored else None
        return {
            **result,
            "tasks": len(tasks),
            "rollouts": scored,
            "truncation": truncation,
            "failures": self.failures[name],
        }


def evaluation_tasks(
    name: str,
    files: dict[str, Path],
    limit: int,
    seed: int,
    settings: dict[str, Any] | None = None,
    check: Callable[[Row], object] | None = None,
) -> Iterator[tuple[str, Row]]:
    """The first `limit` tasks of the environment's file, each checked, else generated ones of its held-out split."""
    if name in files:
        return islice(tasks_of_file(files[name], check), limit)
    heldout: Split = "heldout"
    rows = load_environment(name, settings).generate(limit, seed, heldout)
    return named_tasks((f"held-out task {number} of '{name}'", row) for number, row in enumerate(rows))


async def _collect(
    stage: Stage, collector: Collector, requests: Iterator[RolloutRequest], total: int, budget: FailureBudget
) -> Scores:
    scores = Scores()
    with progress_bar() as progress:
        bar = progress.add_task(f"evaluate {', '.join(stage.names)}", total=total, note="")
        async for rollout in stage.rollouts(collector, requests):
            scores.add(rollout)
            budget.add(rollout)
            progress.update(bar, advance=1)
    return scores


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, a name got by `model get`, or a model server's URL.")
    ],
    env: Annotated[list[str], typer.Option(help="Environment, started here; or NAME=URL. May be given again.")],
    tasks: Annotated[list[str], typer.Option(help="NAME=FILE; without it, generated held-out tasks.")] = [],  # noqa: B006
    n: Annotated[int, typer.Option("--n", min=1, help="Rollouts of each task.")] = 4,
    limit: Annotated[int, typer.Option(min=1, help="Tasks of each environment.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the held-out tasks and of sampling.")] = 0,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 1024,
    concurrency: Concurrency = 32,
    retries: Retries = 2,
    max_failures: MaxFailures = 0.05,
    model_name: ModelName = None,
    engine: Engine = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Write the figures here too, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    no_progress_seconds: NoProgressSeconds = 1800.0,
    path: Folders = [],  # noqa: B006
) -> None:
    """Evaluate a model: pass@1 and its standard error over tasks, unbiased pass@k. OMNIGYM_TOKEN is the bearer token of servers
    given by URL."""
    files: dict[str, Path] = {}
    for pair in tasks:
        name, equals, file = pair.partition("=")
        if not equals:
            raise OmnigymError(f"--tasks '{pair}': must be NAME=FILE")
        files[name] = Path(file)
    sampling = sampling_of(temperature, max_tokens, model_name)
    budget = FailureBudget(max_failures)
    with Stage(env, model, concurrency, engine, seed, settings) as stage:
        unused = set(files) - set(stage.names)
        if unused:
            raise OmnigymError(f"--tasks for '{sorted(unused)[0]}', which no --env names; there are {stage.names}")
        chosen = {
            name: list(evaluation_tasks(name, files, limit, seed, stage.settings.get(name), stage.row_check(name)))
            for name in stage.names
        }
        requests = (request for name in stage.names for request in wanted(name, chosen[name], n, seed))
        collector = stage.collector(sampling, retries, no_progress_seconds)
        total = n * sum(len(found) for found in chosen.values())
        scores = asyncio.run(_collect(stage, collector, requests, total, budget))
    result = {"model": model, "n": n, "environments": {name: scores.figures(name, n) for name in stage.names}}
    data = orjson.dumps(result, option=orjson.OPT_INDENT_2)
    if out is not None:
        with whole_file(out) as file_out:
            file_out.write(data + b"\n")
    if as_json:
        typer.echo(data.decode())
    else:
        Console().print(result_table(result))
    if budget.ended and budget.failed == budget.ended:
        raise OmnigymError(f"all {budget.ended} rollouts failed: {budget.describe()}")


def result_table(result: dict[str, Any]) -> Table:
    """The figures as a table."""
    names = list(result["environments"].values())
    ks = [key for key in (names[0] if names else {}) if key.startswith("pass@") and key != "pass@1"]
    # Twelve environments with their whole names in 80 columns.
    table = Table(title=f"{result['model']}, {result['n']} rollouts a task; shares in %", box=None, pad_edge=False)
    for column in ("environment", "pass@1", *ks, "reward", "tasks", "cut", "failed"):
        left = column == "environment"
        table.add_column(column, justify="left" if left else "right", no_wrap=True)

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    for name, row in result["environments"].items():
        rate = percent(row["pass@1"]) + ("" if row["stderr"] is None else f"±{100 * row['stderr']:.1f}")
        reward = "-" if row["reward_mean"] is None else f"{row['reward_mean']:.3f}"
        table.add_row(
            name,
            rate,
            *(percent(row[k]) for k in ks),
            reward,
            str(row["tasks"]),
            percent(row["truncation"]),
            str(row["failures"]),
        )
    return table


def register(app: typer.Typer) -> None:
    """Add `omnigym eval`."""
    app.command("eval")(evaluate)
