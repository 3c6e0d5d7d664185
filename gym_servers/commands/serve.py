"""Servers in this process, until interrupted: `omnigym env serve NAME...`, and what other commands serve."""

from __future__ import annotations

import difflib
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gym_servers.base import LOOPBACK, Guard, ServerSettings, bind
from gym_servers.commands.folders import Folders
from gym_servers.commands.verify import parse_settings
from gym_servers.draining import DrainingServer
from gym_servers.environment import Environment, GroupSettings, StatefulEnvironment
from gym_servers.parent import end_with_input
from gym_servers.processes import Processes, listen
from gym_servers.protocol import OmnigymError
from gym_servers.registry import environment_names, load_environment
from gym_servers.resources import build_resources
from gym_servers.tally import Tally
from gym_servers.variables import variable

if TYPE_CHECKING:
    from gym_servers.redis_link import RedisLink

DRAIN_SECONDS = 30
"""For the requests in flight."""
CLOSE_SECONDS = 10
"""For a process to close its workers, after that."""


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


def run(guard: Guard, host: str, port: int, processes: int = 1) -> None:
    """Serve; the address is the first line of standard output. Raises OmnigymError where the port is taken."""
    sockets = listen(host, port, processes) if processes > 1 else [bind(host, port)]
    typer.echo(f"http://{host}:{sockets[0].getsockname()[1]}")
    if processes == 1:
        DrainingServer(guard, DRAIN_SECONDS).run(sockets=sockets)
        return
    tally = Tally(processes)

    def serve_one(number: int, sock: socket.socket) -> None:
        guard.share(tally.of(number))
        DrainingServer(guard, DRAIN_SECONDS).run(sockets=[sock])

    sys.stdout.flush()
    Processes(sockets, serve_one, DRAIN_SECONDS + CLOSE_SECONDS).run()


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


def redis_link() -> RedisLink | None:
    """The Redis of this deployment, if it has one. Raises OmnigymError."""
    if not variable("OMNIGYM_REDIS_URL"):
        return None
    from gym_servers.redis_link import from_variables  # the client costs memory and time that few servers need

    return from_variables()


def check_processes(environments: Sequence[Environment], processes: int, has_redis: bool) -> None:
    """Raises OmnigymError where an environment cannot be served by so many processes."""
    if processes == 1:
        return
    stateful = [one.name for one in environments if isinstance(one, StatefulEnvironment)]
    if stateful and not has_redis:
        raise OmnigymError(
            f"--processes {processes}: the sessions of {', '.join(stateful)} must be where all processes find them: set "
            "OMNIGYM_REDIS_URL=redis://host:port/db and OMNIGYM_SECRET, or use one process"
        )
    for one in environments:
        if isinstance(one.settings, GroupSettings) and one.settings.num_rollouts_per_prompt:
            raise OmnigymError(
                f"--processes {processes}: environment '{one.name}' has num_rollouts_per_prompt, so the requests of a group wait for "
                "each other in one process: use one process, or leave the setting out and POST /verify_group"
            )


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
    processes: Annotated[
        int, typer.Option(min=1, help="HTTP processes on the port, each with its workers; sessions then need Redis.")
    ] = 1,
) -> None:
    """Serve environments over HTTP, each under /<environment>/, until interrupted. OMNIGYM_SECRET signs session ids. OMNIGYM_REDIS_URL
    (redis://host:port/db, password in OMNIGYM_REDIS_PASSWORD) keeps sessions and verdicts where other servers find them."""
    served = names or environment_names()
    chosen = settings_by_environment(overrides, served)
    environments = [load_environment(name, chosen.get(name)) for name in served]
    redis = redis_link()
    check_processes(environments, processes, redis is not None)
    settings = ServerSettings(token=_token_of_input() if attached else token_for(auth, host))
    secret = variable("OMNIGYM_SECRET")
    run(build_resources(environments, settings, workers, secret=secret, redis=redis), host, port, processes)
