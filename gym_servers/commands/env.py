"""`omnigym env list | serve | generate | check | new`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from gym_servers.client import Client
from gym_servers.commands.env_check import check
from gym_servers.commands.env_new import new
from gym_servers.commands.folders import Folders
from gym_servers.commands.serve import serve
from gym_servers.commands.verify import parse_settings
from gym_servers.environment import Split
from gym_servers.protocol import OmnigymError
from gym_servers.registry import about, environment_class, environment_names, load_environment
from gym_servers.rows import whole_file
from gym_servers.variables import variable


async def _listed(url: str) -> list[dict[str, Any]]:
    """What the server at `url` lists. Raises OmnigymError."""
    async with Client(token=variable("OMNIGYM_TOKEN")) as client:
        return await client.environments(url)


def _installed() -> list[dict[str, Any]]:
    classes = {name: environment_class(name) for name in environment_names()}
    return [
        {"name": name, "description": about(cls).get("description", ""), "agent": cls.agent, "reward": cls.reward}
        for name, cls in classes.items()
    ]


def list_environments(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects with `name`.")] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Those that a gateway or `env serve` at this URL has; OMNIGYM_TOKEN is its token."),
    ] = None,
    path: Folders = [],  # noqa: B006
) -> None:
    """List the environments that are installed, or that a server has."""
    rows = _installed() if url is None else asyncio.run(_listed(url))
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("environment", "agent", "reward", "what it asks for")
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in ("name", "agent", "reward", "description")))
    Console().print(table)


def generate(
    name: Annotated[str, typer.Argument(help="Environment, see `omnigym env list`.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many tasks.")] = 100,
    seed: Annotated[int, typer.Option(help="Same seed, same tasks.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout: their parameters are disjoint.")] = "train",
    settings: Annotated[list[str], typer.Option("--set", help="key=value of the environment's settings.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="JSONL file; standard output where absent.")] = None,
    path: Folders = [],  # noqa: B006
) -> None:
    """Generate seeded tasks of graded difficulty, one JSON row a line."""
    splits: dict[str, Split] = {"train": "train", "heldout": "heldout"}
    if split not in splits:
        raise OmnigymError(f"--split '{split}': must be train or heldout")
    environment = load_environment(name, parse_settings(settings))
    lines = (orjson.dumps(row) + b"\n" for row in environment.generate(n, seed, splits[split]))
    if out is None:
        for line in lines:
            typer.echo(line.decode(), nl=False)
        return
    with whole_file(out) as file:
        for line in lines:
            file.write(line)
    typer.echo(f"{n} tasks of '{name}' ({split}, seed {seed}) in {out}", err=True)


def register(app: typer.Typer) -> None:
    """Add `omnigym env ...`."""
    group = typer.Typer(
        help="Environments: list them, serve them over HTTP, generate tasks, check them, begin a new one.",
        no_args_is_help=True,
    )
    group.command("list")(list_environments)
    group.command("serve")(serve)
    group.command("generate")(generate)
    group.command("check")(check)
    group.command("new")(new)
    app.add_typer(group, name="env")
