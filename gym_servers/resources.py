"""The resources server: environments over HTTP, each under `/<environment>/`, a single one at the root too.

`POST /verify` takes NeMo-Gym's body, the task row with `response`, and answers it with `reward` and our fields added. A verdict
that failed is 503 `{error, retryable}`, a bad row 422; a 200 always has a reward. A repeated request with the same
`Idempotency-Key` gets the stored verdict. `POST /seed_session` opens nothing yet: single-turn environments hold no state.
Not here yet: tools, sessions with state, `/verify_group`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.environment import Environment
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, RowError
from gym_servers.registry import environment_names
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

MAX_STORED_VERDICTS = 100_000


class Verdicts:
    """Verdicts by idempotency key, the oldest forgotten first. Requests that come while the first runs wait for it."""

    def __init__(self, limit: int = MAX_STORED_VERDICTS) -> None:
        self.limit = limit
        self._stored: OrderedDict[str, asyncio.Future[dict[str, Any]]] = OrderedDict()

    def get(self, key: str) -> asyncio.Future[dict[str, Any]] | None:
        return self._stored.get(key)

    def begin(self, key: str) -> asyncio.Future[dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stored[key] = future
        while len(self._stored) > self.limit:
            self._stored.popitem(last=False)
        return future

    def forget(self, key: str) -> None:
        """A failure is not stored: the next request tries again."""
        self._stored.pop(key, None)


def output_items(body: dict[str, Any], name: str) -> list[Item]:
    """`response.output` of a verify body. Raises RowError; FailureError where the response itself failed."""
    response = body.get("response")
    if not isinstance(response, dict):
        raise RowError(f"environment '{name}': field 'response' must be an object with 'output'")
    if response.get("error"):
        raise FailureError(Failure(kind="model_error", message=f"the response failed: {response['error']}"))
    output = response.get("output")
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        raise RowError(f"environment '{name}': field 'response.output' must be a list of Responses items")
    return output


def routes(environment: Environment, pool: WorkerPool) -> APIRouter:
    """The routes of one environment."""
    router = APIRouter()
    verdicts = Verdicts()

    async def verdict_of(body: dict[str, Any]) -> dict[str, Any]:
        output = output_items(body, environment.name)
        row = {key: value for key, value in body.items() if key != "response"}
        return (await judge(environment, row, output, pool)).model_dump()

    @router.post("/verify")
    async def verify(request: Request) -> Response:
        body = await read_object(request)
        key = request.headers.get("idempotency-key")
        if key is None:
            return answer({**body, **await verdict_of(body)})
        stored = verdicts.get(key)
        if stored is not None:
            return answer({**body, **await asyncio.shield(stored)})
        future = verdicts.begin(key)
        try:
            verdict = await verdict_of(body)
        except BaseException as error:
            verdicts.forget(key)
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # nobody else may be waiting
            else:
                future.cancel()
            raise
        future.set_result(verdict)
        return answer({**body, **verdict})

    @router.post("/seed_session")
    async def seed_session(request: Request) -> Response:
        await read_object(request)
        return answer({})

    return router


def build_resources(
    environments: Sequence[Environment], settings: ServerSettings | None = None, workers: int = 2
) -> Guard:
    """An ASGI app that serves `environments`. Raises OmnigymError where two have one name or there is none."""
    names = [environment.name for environment in environments]
    if not names or len(set(names)) != len(names):
        raise OmnigymError(f"a resources server needs environments of different names, got {names}")
    installed = set(environment_names())
    warm = [("gym_servers.verification:prepare_environment", (name,)) for name in names if name in installed]
    pool = WorkerPool(workers, warm=warm)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.close)

    app = FastAPI(title="omnigym resources server", lifespan=lifespan)
    for environment in environments:
        router = routes(environment, pool)
        app.include_router(router, prefix=f"/{environment.name}")
        if len(environments) == 1:
            app.include_router(router)

    @app.get("/environments")
    async def listing() -> Response:
        return answer([{"name": name} for name in names])

    return build(app, settings or ServerSettings())
