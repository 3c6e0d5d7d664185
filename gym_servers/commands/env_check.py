"""`omnigym env check NAME`: what is missing in an environment, or suspicious."""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gym_servers.checks.bench import Finding
from gym_servers.checks.run import check_environment
from gym_servers.commands.folders import Folders
from gym_servers.commands.verify import parse_settings

COLOURS = {"ok": "green", "wrong": "bold red", "skipped": "yellow"}


def table(name: str, findings: list[Finding]) -> Table:
    """The findings for people."""
    made = Table("check", "result", "detail", title=name)
    for one in findings:
        made.add_row(one.check, f"[{COLOURS[one.result]}]{one.result}[/]", escape(one.detail))
    return made


def check(
    name: Annotated[str, typer.Argument(help="Environment, see `omnigym env list`.")],
    tasks: Annotated[int, typer.Option(min=6, help="Generated tasks of each split.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the generated tasks.")] = 0,
    settings: Annotated[
        list[str], typer.Option("--set", help="key=value of the environment's settings, such as a judge's URL.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of {check, result, detail}.")] = False,
    path: Folders = [],  # noqa: B006
) -> None:
    """Check an environment: files, cases, gold answers, reward-hacking probes, bad input, tasks, OpenAPI. Exit status 1 where
    anything is wrong."""
    findings = asyncio.run(check_environment(name, tasks, seed, parse_settings(settings)))
    if as_json:
        rows = [{"check": f.check, "result": f.result, "detail": f.detail} for f in findings]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    else:
        Console().print(table(name, findings))
    if any(finding.result == "wrong" for finding in findings):
        raise typer.Exit(1)
