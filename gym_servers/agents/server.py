"""The agent server: `POST /run` takes a task and returns its rollout, over the code that the collector runs (episode.py).

The body is NeMo-Gym's: the task row. Ours may add `rollout`, an object that says where and as which attempt it runs. The
answer is the row with `response`, whose output is the whole episode, `reward`, and the fields of a `Rollout`. Its reward is null
where `failure` says why, or where the environment rewards groups: then the caller asks `/verify_group` once the group is final.

Tokens are the model server's: a caller that wants them gives the rollout's own base URL as `model_url`, and closes that ledger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gym_servers.agents.episode import episode
from gym_servers.agents.tool_loop import LoopLimits, Target
from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.client import Client, Transport
from gym_servers.idempotency import Once
from gym_servers.protocol import Failure, FailureError, Rollout, RowError, row_task_id

MAX_STORED_ROLLOUTS = 256


class Place(BaseModel):
    """Field `rollout` of a request. What is absent is the server's own setting."""

    model_config = ConfigDict(extra="forbid")
    environment: str | None = None
    environment_url: str | None = None
    model_url: str | None = None
    sampling: dict[str, Any] = {}
    group: str = ""
    attempt: int = 0
    seed: int = 0


@dataclass
class AgentSettings:
    """environments: name -> URL. model_url: base with `/v1`. retries: of a verdict that failed."""

    environments: dict[str, str] = field(default_factory=dict)
    model_url: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    limits: LoopLimits = field(default_factory=LoopLimits)
    retries: int = 2
    concurrency: int = 4096


def resolve(row: dict[str, Any], place: Place, settings: AgentSettings) -> tuple[str, Target]:
    """(environment, where the rollout happens). Raises RowError."""
    named = (row.get("agent_ref") or {}).get("name")
    name = place.environment or (named if named in settings.environments else None)
    if name is None and len(settings.environments) == 1:
        (name,) = settings.environments
    url = place.environment_url or settings.environments.get(name or "")
    if name is None or url is None:
        known = ", ".join(sorted(settings.environments)) or "none"
        raise RowError(
            f"no environment for this task (asked for: '{name or named}'; there are: {known}): "
            "name it in rollout.environment, or give rollout.environment_url too"
        )
    model = place.model_url or settings.model_url
    if model is None:
        raise RowError("no model for this task: give rollout.model_url, or start the server with one")
    return name, Target(url.rstrip("/"), model.rstrip("/"), {**settings.sampling, **place.sampling})


def build_agent(
    settings: AgentSettings, server: ServerSettings | None = None, transport: Transport | None = None
) -> Guard:
    """The ASGI app. Its token is also that of the servers it calls: they are of one deployment."""
    server = server or ServerSettings(request_seconds=7200.0)
    client = Client(token=server.token, concurrency=settings.concurrency, transport=transport)
    once: Once[dict[str, Any]] = Once(MAX_STORED_ROLLOUTS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def run(request: Request) -> Response:
        row = await read_object(request)
        try:
            place = Place.model_validate(row.pop("rollout", None) or {})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            known = ", ".join(Place.model_fields)
            raise RowError(f"field 'rollout.{where}': {first['msg']}; there are: {known}") from None
        name, target = resolve(row, place, settings)

        async def make() -> dict[str, Any]:
            rollout = Rollout(
                task_id=str(row.get("task_id") or row_task_id(row)),
                environment=name,
                group=place.group,
                attempt=place.attempt,
                seed=place.seed,
                task=row,
            )
            response: dict[str, Any] | None = None
            try:
                response = await episode(client, row, target, rollout, settings.limits, retries=settings.retries)
            except FailureError as error:
                rollout.reward, rollout.failure = None, error.failure
            except RowError as error:
                rollout.failure = Failure(kind="bad_row", message=str(error), retryable=False)
            fields = rollout.model_dump(exclude={"segments"})
            return {**row, **fields, "response": response or {"object": "response", "output": rollout.output}}

        return answer(await once(request.headers.get("idempotency-key"), make))

    return build(Starlette(routes=[Route("/run", run, methods=["POST"])], lifespan=lifespan), server)
