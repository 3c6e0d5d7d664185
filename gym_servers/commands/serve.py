"""`omnigym serve NAME...`: environments over HTTP."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Annotated, Any

import typer
import uvicorn

from gym_servers.base import Guard, ServerSettings
from gym_servers.commands.verify import parse_settings
from gym_servers.protocol import OmnigymError
from gym_servers.registry import environment_names, load_environment
from gym_servers.resources import build_resources

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn is not followed by mypy
    """uvicorn that drains first: requests in flight finish, new ones are told to come again."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self.guard = guard

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.guard.draining = True
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OmnigymError that names the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)  # before the address is printed: who reads it may connect at once
    except OSError as error:
        sock.close()
        raise OmnigymError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or 0") from None
    return sock


def settings_of(pairs: list[str], names: list[str]) -> dict[str, dict[str, Any]]:
    """`environment.key=value` pairs by environment. Raises OmnigymError for an environment that is not served."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pair in pairs:
        name, dot, _ = pair.partition("=")[0].partition(".")
        if not dot or name not in found:
            raise OmnigymError(f"--set '{pair}': must be environment.key=value, of {', '.join(names)}")
        found[name].update(parse_settings([pair[len(name) + 1 :]]))
    return found


def serve(
    names: Annotated[
        list[str] | None, typer.Argument(help="Environments; all that are installed where absent.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and prints it.")] = 8100,
    auth: Annotated[str, typer.Option(help="token (from OMNIGYM_TOKEN, else a new one is printed) or none.")] = "token",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for verdicts.")] = 2,
    settings: Annotated[list[str], typer.Option("--set", help="environment.key=value of its settings.")] = [],  # noqa: B006
) -> None:
    """Serve environments over HTTP, each under /<environment>/, until interrupted."""
    if auth not in ("token", "none"):
        raise OmnigymError(f"--auth '{auth}': must be token or none")
    if auth == "none" and host not in LOOPBACK:
        raise OmnigymError(f"--auth none is for loopback only, not for {host}: set OMNIGYM_TOKEN")
    token = None
    if auth == "token":
        token = os.environ.get("OMNIGYM_TOKEN")
        if not token:
            token = secrets.token_urlsafe(24)
            typer.echo(f"token: {token}", err=True)
    else:
        typer.echo("no authentication: anyone on this machine may use this server", err=True)
    served = names or environment_names()
    overrides = settings_of(settings, served)
    environments = [load_environment(name, overrides[name]) for name in served]
    guard = build_resources(environments, ServerSettings(token=token), workers)
    sock = bind(host, port)
    typer.echo(f"http://{host}:{sock.getsockname()[1]}")
    config = uvicorn.Config(guard, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    _Server(config, guard).run(sockets=[sock])


def register(app: typer.Typer) -> None:
    """Add `omnigym serve`."""
    app.command("serve")(serve)
