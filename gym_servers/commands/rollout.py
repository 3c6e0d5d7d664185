"""`omnigym rollout`: rollouts of a task file into a JSONL file, one line flushed as each ends; resumable after kill -9."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gym_servers.commands.collection import FailureBudget, Stage, tasks_of_file, wanted
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
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.rows import parse_line, whole_file

Key = tuple[str, str, int]


def done_so_far(path: Path) -> dict[Key, int]:
    """{(environment, task id, attempt): seed} of the rollouts in `path`.

    What kill -9 leaves is removed from the file: a last line that is cut off, and a group at the end of which lines are missing (its
    rollouts are written one after the other, and were graded together). Any other bad line is an error that names it.
    """
    done: dict[Key, int] = {}
    end = 0
    group: list[Key] = []
    missing = start = 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            row = parse_line(line, f"{path}:{number}")
            try:
                key = str(row["environment"]), str(row["task_id"]), int(row["attempt"])
                done[key] = int(row["seed"])
                if not missing:
                    group, missing, start = [], int(row.get("group_size") or 1), end
            except (KeyError, TypeError, ValueError) as error:
                raise OmnigymError(f"{path}:{number}: not a rollout of `omnigym rollout` ({error!r})") from None
            group.append(key)
            missing -= 1
            end += len(line)
        if missing:
            end = start
            for key in group:
                del done[key]
        file.truncate(end)
    return done


def drop_failures(path: Path) -> None:
    """Replace `path` by one without its failures, without what was graded in a group with one, and without a last line that is
    cut off."""

    def rows() -> Iterator[tuple[bytes, dict[str, Any]]]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield line, parse_line(line, f"{path}:{number}")

    failed = {(row.get("environment"), row.get("task_id")) for _, row in rows() if row.get("failure")}
    with whole_file(path) as kept:
        for line, row in rows():
            graded_with = row.get("group_size") and (row.get("environment"), row.get("task_id")) in failed
            if not row.get("failure") and not graded_with:
                kept.write(line)


def _locked(path: Path) -> BinaryIO:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OmnigymError(f"'{path}' is being written by another `omnigym rollout`") from None
    return file


@contextmanager
def output_file(path: Path, resume: bool, retry_failures: bool) -> Iterator[tuple[BinaryIO, dict[Key, int]]]:
    """The output file, locked and open for appending, and what it already holds. Raises OmnigymError."""
    if path.exists() and path.stat().st_size and not (resume or retry_failures):
        raise OmnigymError(f"'{path}' exists: give --resume to go on with it, or another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
    try:
        if retry_failures:
            drop_failures(path)
            file.close()
            file = _locked(path)  # the file of that name is another one now
        yield file, done_so_far(path)
    finally:
        file.close()


def remaining(requests: Iterator[RolloutRequest], done: dict[Key, int], path: Path) -> Iterator[RolloutRequest]:
    """The requests that are not in `done`. Raises OmnigymError where `done` is of another seed."""
    for request in requests:
        seed = done.get((request.environment, request.task_id, request.attempt))
        if seed is None:
            yield request
        elif seed != request.seed:
            raise OmnigymError(f"'{path}' was collected with another --seed: give that one, or another --out")


def rollout_line(rollout: Rollout) -> bytes:
    """One JSON line."""
    return orjson.dumps(rollout.model_dump(), option=orjson.OPT_NON_STR_KEYS) + b"\n"


def progress_bar() -> Progress:
    """The bar of a collection, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)


async def _collect(
    stage: Stage,
    collector: Collector,
    file: BinaryIO,
    requests: Iterator[RolloutRequest],
    total: int,
    budget: FailureBudget,
) -> tuple[int, float]:
    rewards, scored = 0.0, 0
    with progress_bar() as progress:
        bar = progress.add_task(f"rollouts of {', '.join(stage.names)}", total=total, note="")
        async for rollout in stage.rollouts(collector, requests):
            file.write(rollout_line(rollout))
            file.flush()  # nothing that ended is lost with this process
            if rollout.reward is not None:
                rewards, scored = rewards + rollout.reward, scored + 1
            budget.add(rollout)
            note = f"reward {rewards / scored:.3f}" if scored else ""
            progress.update(bar, advance=1, note=f"{note} failures {budget.failed}")
    return scored, rewards


def rollout(
    env: Annotated[str, typer.Option(help="Environment, started here; or NAME=URL of its server.")],
    tasks: Annotated[Path, typer.Option(help="JSONL task rows, see `omnigym env generate`.")],
    model: Annotated[
        str, typer.Option(help="URL of a model server, a checkpoint folder, or a name got by `model get`.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL, one rollout a line as it ends.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Rollouts of each task.")] = 1,
    concurrency: Concurrency = 32,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: nothing is lost, nothing repeated.")
    ] = False,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Resume, and try its failures again.")
    ] = False,
    retries: Retries = 2,
    max_failures: MaxFailures = 0.05,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 1024,
    seed: Annotated[int, typer.Option(help="Every rollout's sampling seed follows from it.")] = 0,
    model_name: ModelName = None,
    engine: Engine = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    no_progress_seconds: NoProgressSeconds = 1800.0,
    path: Folders = [],  # noqa: B006
) -> None:
    """Collect rollouts of a task file. OMNIGYM_TOKEN: bearer token of servers given by URL; OMNIGYM_SECRET: a model server's
    secret, where tokens are to be recorded."""
    sampling = sampling_of(temperature, max_tokens, model_name)
    budget = FailureBudget(max_failures)
    with (
        Stage([env], model, concurrency, engine, seed, settings) as stage,
        output_file(out, resume, retry_failures) as (file, done),
    ):
        count = sum(1 for _ in tasks_of_file(tasks, stage.row_check(stage.names[0]))) * n
        requests = remaining(wanted(stage.names[0], tasks_of_file(tasks), n, seed), done, out)
        collector = stage.collector(sampling, retries, no_progress_seconds)
        left = max(0, count - len(done))
        scored, rewards = asyncio.run(_collect(stage, collector, file, requests, left, budget))
    mean = f"mean reward {rewards / scored:.4f}" if scored else "no reward"
    typer.echo(
        f"{budget.ended} rollouts in {out}, {len(done)} were there; {mean}; failures: {budget.describe()}", err=True
    )
    if budget.ended and budget.failed == budget.ended:
        raise OmnigymError(
            f"all {budget.ended} rollouts failed: {budget.describe()}; try them again with --retry-failures"
        )


def register(app: typer.Typer) -> None:
    """Add `omnigym rollout`."""
    app.command("rollout")(rollout)
