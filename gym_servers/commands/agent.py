"""`omnigym agent`: the agents over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from gym_servers.agents.server import AgentSettings, build_agent
from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.base import ServerSettings
from gym_servers.commands.collection import is_url
from gym_servers.commands.serve import run, token_for
from gym_servers.protocol import OmnigymError


def agent(
    env: Annotated[list[str], typer.Option(help="NAME=URL of an environment's server.")] = [],  # noqa: B006
    model: Annotated[str | None, typer.Option(help="URL of the model server, for tasks that name none.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Model calls of one rollout.")] = 16,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and prints it.")] = 8200,
    auth: Annotated[
        str, typer.Option(help="token (OMNIGYM_TOKEN, which the other servers want too; else a new one) or none.")
    ] = "token",
) -> None:
    """Serve the agents: POST /run takes a task row and returns its rollout, by the agent that its environment names."""
    environments: dict[str, str] = {}
    for given in env:
        name, equals, url = given.partition("=")
        if not equals or not is_url(url):
            raise OmnigymError(f"--env '{given}': must be NAME=URL")
        environments[name] = url
    if model is not None:
        if not is_url(model):
            raise OmnigymError(f"--model '{model}': must be a URL")
        model = f"{model.rstrip('/').removesuffix('/v1')}/v1"
    settings = AgentSettings(environments, model, limits=LoopLimits(steps=steps))
    server = ServerSettings(token=token_for(auth, host), request_seconds=7200.0, max_body_bytes=64 << 20)
    run(build_agent(settings, server), host, port)


def register(app: typer.Typer) -> None:
    """Add `omnigym agent`."""
    app.command("agent")(agent)
