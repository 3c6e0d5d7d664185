"""A model server as a process: `python -m gym_servers.models.NAME --settings JSON`.

The first line of standard output is its address, once it can serve; whatever else is written there goes to standard error. The bearer
token and the secret may come in OMNIGYM_TOKEN and OMNIGYM_SECRET instead, where no list of processes shows them. It ends on
SIGTERM, and with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TextIO, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from gym_servers.base import LOOPBACK, Guard, ServerSettings, bind
from gym_servers.draining import DrainingServer
from gym_servers.parent import end_with_parent
from gym_servers.protocol import OmnigymError
from gym_servers.variables import variable

FROM_ENVIRONMENT = {"token": "OMNIGYM_TOKEN", "secret": "OMNIGYM_SECRET"}


class ListenSettings(BaseModel):
    """Where a server process listens. port 0 takes a free one. token None: no authentication, on loopback only."""

    model_config = ConfigDict(extra="forbid")
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None

    def server(self) -> ServerSettings:
        """Limits of a model server: an answer may take a day, so that a slow rollout never ends by the clock."""
        return ServerSettings(token=self.token, request_seconds=86_400.0, max_body_bytes=64 << 20)


Listen = TypeVar("Listen", bound=ListenSettings)
Part = TypeVar("Part", bound=BaseModel)


def part_of(settings: BaseModel, kind: type[Part]) -> Part:
    """The fields of `kind` in settings that hold more than those."""
    return kind.model_validate({name: getattr(settings, name) for name in kind.model_fields})


def parse_settings(kind: type[Listen], text: str) -> Listen:
    """`text`, completed from the environment. Raises OmnigymError that names the field."""
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise OmnigymError(f"--settings is not valid JSON: {error}") from None
    if isinstance(given, dict):
        for name, source in FROM_ENVIRONMENT.items():
            if name in kind.model_fields and (value := variable(source)):
                given.setdefault(name, value)
    try:
        settings = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "(all)"
        known = ", ".join(kind.model_fields)
        raise OmnigymError(f"--settings: field '{place}': {first['msg']}; there are: {known}") from None
    if settings.token is None and settings.host not in LOOPBACK:
        raise OmnigymError(f"host {settings.host} without a token: set OMNIGYM_TOKEN, or listen on 127.0.0.1")
    return settings


async def serve(settings: Listen, make: Callable[[Listen], Awaitable[Guard]], announce: TextIO) -> None:
    """Serve what `make` makes until a signal, then drain; its address goes to `announce` once it is made."""
    sock = bind(settings.host, settings.port)
    guard = await make(settings)
    print(f"http://{settings.host}:{sock.getsockname()[1]}", file=announce, flush=True)
    await DrainingServer(guard, seconds=10).serve(sockets=[sock])


def run(name: str, about: str, kind: type[Listen], make: Callable[[Listen], Awaitable[Guard]]) -> None:
    """The server process `name`, from its command line."""
    parser = argparse.ArgumentParser(prog=f"python -m gym_servers.models.{name}", description=about)
    parser.add_argument("--settings", required=True, help="JSON: " + ", ".join(kind.model_fields))
    text = parser.parse_args().settings
    end_with_parent()
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        asyncio.run(serve(parse_settings(kind, text), make, announce))
    except OmnigymError as error:
        sys.exit(f"error: {error}")
