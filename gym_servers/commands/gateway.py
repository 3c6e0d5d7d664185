"""`omnigym gateway`: one address for environments that are served in several places."""

from __future__ import annotations

from typing import Annotated

import typer

from gym_servers.base import ServerSettings
from gym_servers.commands.serve import run, token_for
from gym_servers.gateway import build_gateway


def gateway(
    upstreams: Annotated[list[str], typer.Argument(help="http://HOST:PORT of servers of environments.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and prints it.")] = 8100,
    auth: Annotated[str, typer.Option(help="token (OMNIGYM_TOKEN, which the upstreams want too) or none.")] = "token",
) -> None:
    """List the environments of several servers, and send /<environment>/... to the one that has it."""
    run(build_gateway(upstreams, ServerSettings(token=token_for(auth, host))), host, port)


def register(app: typer.Typer) -> None:
    """Add `omnigym gateway`."""
    app.command("gateway")(gateway)
