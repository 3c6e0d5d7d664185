"""Servers in this process, until interrupted: `omnigym env serve NAME...`, and what other commands serve."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gym_servers.base import LOOPBACK, Guard, ServerSettings, bind
from gym_servers.commands.folders import Folders
from gym_servers.commands.verify import parse_settings
from gym_servers.draining import DrainingServer
from gym_servers.parent import end_with_input
from gym_servers.protocol import OmnigymError
from gym_servers.registry import environment_names, load_environment
from gym_servers.resources import build_resources
from gym_servers.variables import variable


def token_for(auth: str, host: str) -> str | None:
    """The bearer token of a server; None, which is said, without authentication. Raises OmnigymError."""
    if auth not in ("token", "none"):
        raise OmnigymError(f"--auth '{auth}': must be token or none")
    if auth == "none":
        if host not in LOOPBACK:
            raise OmnigymError(f"--auth none is for loopback only, not for {host}: set OMNIGYM_TOKEN")
        typer.echo("no authentication: anyone on this machine may use this server", err=True)
        return None
    token = variable("OMNIGYM_TOKEN")
    if not token:
        token = secrets.token_urlsafe(24)
        typer.echo(f"token: {token}", err=True)
    return token


def run(guard: Guard, host: str, port: int) -> None:
    """Serve; the address is the first line of standard output. Raises OmnigymError where the port is taken."""
    sock = bind(host, port)
    typer.echo(f"http://{host}:{sock.getsockname()[1]}")
    DrainingServer(guard, seconds=30).run(sockets=[sock])


def settings_by_environment(pairs: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.key=value` pairs, by environment. Raises OmnigymError that names the nearest of `names`."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in parse_settings(pairs).items():
        name, dot, key = path.partition(".")
        if not dot or not key:
            raise OmnigymError(f"--set '{path}=...': must be NAME.key=value, with one of {', '.join(names)} as NAME")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it serves {', '.join(names) or 'none'}"
            raise OmnigymError(f"--set '{path}=...': this server has no environment '{name}'{hint}")
        found.setdefault(name, {})[key] = value
    return found


def _token_of_input() -> str:
    token = end_with_input()
    if not token:
        raise OmnigymError("--attached: the first line of standard input must be the token, and there is none")
    return token


def serve(
    names: Annotated[
        list[str] | None, typer.Argument(help="Environments; all that are installed where absent.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and prints it.")] = 8100,
    auth: Annotated[str, typer.Option(help="token (from OMNIGYM_TOKEN, else a new one is printed) or none.")] = "token",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for verdicts.")] = 2,
    overrides: Annotated[
        list[str], typer.Option("--set", help="NAME.key=value of an environment's settings; may be repeated.")
    ] = [],  # noqa: B006
    path: Folders = [],  # noqa: B006
    attached: Annotated[
        bool, typer.Option(help="Read the token as the first line of standard input, and stop when the input ends.")
    ] = False,
) -> None:
    """Serve environments over HTTP, each under /<environment>/, until interrupted. OMNIGYM_SECRET signs session ids."""
    served = names or environment_names()
    chosen = settings_by_environment(overrides, served)
    environments = [load_environment(name, chosen.get(name)) for name in served]
    settings = ServerSettings(token=_token_of_input() if attached else token_for(auth, host))
    secret = variable("OMNIGYM_SECRET")
    run(build_resources(environments, settings, workers, secret=secret), host, port)
