"""`omnigym verify ENV --cases IN --out OUT`: verdicts without a running server."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import yaml
from rich.console import Console
from rich.progress import Progress

from gym_servers.commands.folders import Folders
from gym_servers.environment import Environment, opened
from gym_servers.protocol import Failure, FailureError, OmnigymError, RowError
from gym_servers.registry import environment_names, load_environment
from gym_servers.rows import parse_line, read_lines, whole_file
from gym_servers.verification import judge, output_items
from gym_servers.workers import WorkerPool

WINDOW = 64


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs, values read as YAML."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise OmnigymError(f"--set '{pair}': must be key=value")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise OmnigymError(f"--set '{pair}': the value is not YAML; put it in quotes") from None
    return settings


async def verify_line(environment: Environment, pool: WorkerPool, where: str, line: bytes) -> dict[str, Any]:
    """One output line: `{"id", "reward", "explanation", "parts"}` or `{"id", "failure"}`; a bad row is a failure."""
    name: Any = where
    try:
        case = parse_line(line, where)
        name = case.get("id", where)
        request = case.get("request")
        if not isinstance(request, dict):
            near = difflib.get_close_matches("request", list(case), n=1)
            raise RowError("field 'request' must be the body of POST /verify" + (f", not '{near[0]}'" if near else ""))
        output = output_items(request, environment.name)
        verdict = await judge(environment, {k: v for k, v in request.items() if k != "response"}, output, pool)
    except RowError as error:
        message = str(error) if str(error).startswith(where) else f"{where}: {error}"
        return {"id": name, "failure": Failure(kind="bad_row", message=message, retryable=False).model_dump()}
    except FailureError as error:
        return {"id": name, "failure": error.failure.model_dump()}
    return {"id": name, **verdict.model_dump()}


async def verify_file(environment: Environment, cases: Path, out: Path, workers: int) -> tuple[int, int]:
    """Verdicts of all lines of `cases`, in their order, into `out`. Returns (lines, failures). Memory is bounded."""
    done = failures = 0
    known = environment.name in environment_names()
    warm = [("gym_servers.verification:prepare_environment", (environment.name,))] if known else []
    with (
        contextlib.closing(WorkerPool(workers, warm=warm)) as pool,
        whole_file(out) as file,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task(f"verify {environment.name}", total=sum(1 for _ in read_lines(cases)))
        window: list[asyncio.Task[dict[str, Any]]] = []

        async def finish_first() -> None:
            nonlocal done, failures
            result = await window.pop(0)
            file.write(orjson.dumps(result, option=orjson.OPT_NON_STR_KEYS) + b"\n")
            done += 1
            failures += "failure" in result
            progress.advance(bar)

        for where, line in read_lines(cases):
            window.append(asyncio.create_task(verify_line(environment, pool, where, line)))
            if len(window) >= WINDOW:
                await finish_first()
        while window:
            await finish_first()
    return done, failures


def verify(
    name: Annotated[str, typer.Argument(help="Environment, see `omnigym env list`.")],
    cases: Annotated[Path, typer.Option(help='JSONL: {"id", "request": <body of POST /verify>}.')],
    out: Annotated[Path, typer.Option(help='JSONL: {"id", "reward", "explanation"} or {"id", "failure"}.')],
    settings: Annotated[list[str], typer.Option("--set", help="key=value of the environment's settings.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = max(1, min(8, os.cpu_count() or 1)),
    path: Folders = [],  # noqa: B006
) -> None:
    """Grade recorded outputs without a running server."""
    environment = load_environment(name, parse_settings(settings))

    async def run() -> tuple[int, int]:
        async with opened(environment):
            return await verify_file(environment, cases, out, workers)

    done, failures = asyncio.run(run())
    typer.echo(f"{done} verdicts in {out}, {failures} of them failures", err=True)


def register(app: typer.Typer) -> None:
    """Add `omnigym verify`."""
    app.command("verify")(verify)
