"""`omnigym sandbox doctor`: which isolation this machine has, by trying."""

from __future__ import annotations

import asyncio
import platform
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from gym_servers.sandbox.attacks import Result, attempt
from gym_servers.sandbox.pool import LAYERS, Sandbox, missing


def _described(layers: dict[str, Any]) -> dict[str, str]:
    user = layers["user"]
    return {
        "kernel": f"{platform.release()}, {platform.machine()}",
        "namespaces": "files, network and IPC of its own"
        if layers["namespaces"]
        else "not to be had, or not asked for",
        "Landlock": f"ABI {layers['landlock']}, in force" if layers["landlock"] else _unused(layers),
        "seccomp": "a list of allowed calls, in force" if layers["seccomp"] else "not to be had",
        "user id": f"{user}" + ("" if user else ": root, with no capability"),
        "rlimits": "CPU, memory, file size, open files, threads",
    }


def _unused(layers: dict[str, Any]) -> str:
    return "not needed beside the namespaces" if layers["namespaces"] else "not to be had"


async def _tried(without: list[str]) -> tuple[dict[str, Any], str | None, list[Result]]:
    async with Sandbox(1, insecure=True, without=without) as sandbox:  # to see what there is, before anything is run
        problem = missing(sandbox.layers)
        return sandbox.layers, problem, [] if problem else await attempt(sandbox)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    without: Annotated[
        list[str], typer.Option(help=f"Leave a layer out, to see what the others hold: {', '.join(LAYERS)}.")
    ] = [],  # noqa: B006
) -> None:
    """Try to break out of the sandbox in every known way; exit 1 where one got through, or where this machine isolates nothing."""
    layers, problem, results = asyncio.run(_tried(without))
    held = problem is None and all(result.held for result in results)
    if as_json:
        rows = [{"tried": one.attack.name, "held": one.held, "happened": one.happened, "by": one.by} for one in results]
        shown = {"held": held, "layers": layers, "problem": problem, "attacks": rows}
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(layers, problem, results)
    if not held:
        raise typer.Exit(1)


def _print(layers: dict[str, Any], problem: str | None, results: list[Result]) -> None:
    console = Console()
    table = Table("layer", "here")
    for name, text in _described(layers).items():
        table.add_row(name, text)
    console.print(table)
    if problem:
        console.print(f"Nothing was tried: {problem}. Only `insecure: true` would run programs here.")
        return
    table = Table("tried", "held", "what happened", "by")
    for one in results:
        table.add_row(one.attack.name, "yes" if one.held else "NO", one.happened, one.by)
    console.print(table)
    through = [one.attack.name for one in results if not one.held]
    console.print(f"Got through: {', '.join(through)}." if through else f"All {len(results)} attacks were held.")


def register(app: typer.Typer) -> None:
    """Add `omnigym sandbox`."""
    sandbox = typer.Typer(help="The sandbox that runs programs of models.", no_args_is_help=True)
    sandbox.callback()(lambda: None)  # one command alone would lose its name
    sandbox.command("doctor")(doctor)
    app.add_typer(sandbox, name="sandbox")
