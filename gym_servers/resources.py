"""The resources server: environments over HTTP, each under `/<environment>/`, a single one at the root too.

`POST /verify` takes NeMo-Gym's body, the task row with `response`, and answers it with `reward` and our fields added. A verdict
that failed is 503 `{error, retryable}`, a bad row 422; a 200 always has a reward. A repeated request with the same
`Idempotency-Key` gets the stored verdict. `POST /verify_group` does so for the rollouts of a task together; NeMo-Gym's clients, which
send each to `/verify` and wait, are served so by gym_servers/cohorts.py.

`POST /seed_session` opens a session where the environment has a state; the answer says how the environment rewards, which tools
there are and which only read, and how many steps an episode may take. The session is a cookie or the header `X-Session-Id`,
and ends with the verdict. `POST /<tool>` calls a tool: 422 is for the model to read, 503 is a failure. `GET /tools` lists them for
`responses_create_params.tools`. `POST /user_turn`, where the environment has a simulated user, takes `{messages: [{role, content}]}`
and answers `{message, done}`. `GET /openapi.json` describes all of it.
`/readyz` is 503 until the first worker stands, so that no verdict waits for imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.cohorts import Cohorts
from gym_servers.environment import (
    ConversationEnvironment,
    Environment,
    GroupEnvironment,
    GroupRollout,
    GroupSettings,
    Said,
    StatefulEnvironment,
)
from gym_servers.idempotency import Once
from gym_servers.openapi import openapi
from gym_servers.protocol import Failure, FailureError, FailureKind, OmnigymError, RowError
from gym_servers.registry import about, environment_names
from gym_servers.sessions import MemorySessions, Session, SessionStore, lost, new_session, reap_for_ever, session_name
from gym_servers.tools import ToolRefused, check_tools
from gym_servers.verification import judge, judge_group, output_items
from gym_servers.workers import WorkerPool

if TYPE_CHECKING:
    from gym_servers.redis_link import RedisLink

log = logging.getLogger("omnigym.resources")
MAX_STORED_VERDICTS = 100_000
COOKIE = "omnigym_session"
SESSION_HEADER = "X-Session-Id"
MAX_CONFLICTS = 16


def group_rollouts(body: dict[str, Any], name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(task row, rollouts as GroupRollout takes them) of a verify_group body. Raises RowError, FailureError."""
    task, given = body.get("task"), body.get("rollouts")
    if not isinstance(task, dict):
        raise RowError(f"environment '{name}': field 'task' must be the task's row")
    if not isinstance(given, list) or not given or not all(isinstance(rollout, dict) for rollout in given):
        raise RowError(
            f"environment '{name}': field 'rollouts' must be a list of objects with 'response', at least one"
        )
    rollouts = []
    for number, rollout in enumerate(given):
        fields = {key: value for key, value in rollout.items() if key != "response"}
        try:
            parsed = GroupRollout.model_validate({**fields, "output": output_items(rollout, name)})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RowError(f"environment '{name}': field 'rollouts.{number}.{where}': {first['msg']}") from None
        rollouts.append(parsed.model_dump())
    return task, rollouts


def said_so_far(body: dict[str, Any], name: str) -> list[Said]:
    """The conversation of a user_turn body. Raises RowError."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise RowError(f"environment '{name}': field 'messages' must be a list of {{role, content}}")
    try:
        return [Said.model_validate(message) for message in messages]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("messages", *first["loc"]))
        raise RowError(f"environment '{name}': field '{where}': {first['msg']}") from None


def tool_output(result: Any) -> tuple[str, bytes]:
    """(media type, body) of a tool's result: text as it is, anything else as JSON."""
    if isinstance(result, str):
        return "text/plain", result.encode(errors="replace")
    value = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    return "application/json", orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


def _key(request: Request, path: str) -> str | None:
    """The request's idempotency key. The same one means another request on another path."""
    key = request.headers.get("idempotency-key")
    return None if key is None else f"{path} {key}"


class Served:
    """One environment behind its routes."""

    def __init__(
        self,
        environment: Environment,
        pool: WorkerPool,
        sessions: SessionStore,
        once: Once[dict[str, Any]],
        secret: str,
    ) -> None:
        self.environment, self.pool, self.sessions, self.once, self.secret = environment, pool, sessions, once, secret
        self.name = environment.name
        self.tools = check_tools(self.name, environment.tools())
        for tool in self.tools.values():
            if tool.with_state and not isinstance(environment, StatefulEnvironment):
                raise OmnigymError(f"environment '{self.name}': tool '{tool.name}' takes a state, and there is none")
        self.cohorts: Cohorts | None = None
        if isinstance(environment, GroupEnvironment) and isinstance(environment.settings, GroupSettings):
            self.cohorts = Cohorts(environment, pool) if environment.settings.num_rollouts_per_prompt else None
        self.about: dict[str, Any] = {
            "reward": environment.reward,
            "agent": environment.agent,
            "tools": list(self.tools),
            "read_only_tools": [t.name for t in self.tools.values() if t.read_only],
            **({"max_steps": environment.max_steps} if environment.max_steps is not None else {}),
        }
        if isinstance(environment, ConversationEnvironment):
            self.about["max_turns"] = environment.settings.max_turns
            self.about["ending_tools"] = sorted(environment.ending_tools)

    def routes(self, prefix: str) -> list[Route]:
        """Under `/<environment>`, or at the root. Tools come last: no tool can stand before a path of ours."""
        routes = [
            Route(f"{prefix}/verify", self.verify, methods=["POST"]),
            Route(f"{prefix}/seed_session", self.seed_session, methods=["POST"]),
            Route(f"{prefix}/tools", self.list_tools, methods=["GET"]),
        ]
        if isinstance(self.environment, GroupEnvironment):
            routes.append(Route(f"{prefix}/verify_group", self.verify_group, methods=["POST"]))
        if isinstance(self.environment, ConversationEnvironment):
            routes.append(Route(f"{prefix}/user_turn", self.user_turn, methods=["POST"]))
        return [*routes, Route(f"{prefix}/{{tool}}", self.call_tool, methods=["POST"])]

    def listed(self) -> dict[str, Any]:
        """What `GET /environments` says of it."""
        description = about(type(self.environment)).get("description", "")
        return {"name": self.name, "description": description, **self.about}

    # -- verdicts ------------------------------------------------------------------------------------------------

    async def verify(self, request: Request) -> Response:
        """The body with the verdict added."""
        body = await read_object(request)
        judged: str | None = None

        async def make() -> dict[str, Any]:
            nonlocal judged
            output = output_items(body, self.name)
            name = self.session(request)
            session = await self.load(name) if name is not None else None
            row = {key: value for key, value in body.items() if key != "response"}
            if self.cohorts is not None:
                return (await self.cohorts.verdict(body, output)).model_dump()
            verdict = await judge(self.environment, row, output, self.pool, session.state if session else None)
            judged = name
            return verdict.model_dump()

        verdict = await self.once(_key(request, "verify"), make)
        if judged is not None:  # not before the verdict is kept: what dies in between must not cost the episode
            with contextlib.suppress(FailureError):  # the verdict stands, and the session ends with its TTL
                await self.sessions.drop(judged)
        return answer({**body, **verdict})

    async def verify_group(self, request: Request) -> Response:
        """`{rewards, verdicts}` in the order of the rollouts."""
        body = await read_object(request)
        environment = self.environment
        assert isinstance(environment, GroupEnvironment)

        async def make() -> dict[str, Any]:
            task, rollouts = group_rollouts(body, self.name)
            verdicts = await judge_group(environment, task, rollouts, self.pool)
            return {"rewards": [v.reward for v in verdicts], "verdicts": [v.model_dump() for v in verdicts]}

        return answer(await self.once(_key(request, "verify_group"), make))

    # -- sessions ------------------------------------------------------------------------------------------------

    def session(self, request: Request) -> str | None:
        """Name of the request's session; None where it names none, or the environment keeps none. Raises FailureError."""
        if not isinstance(self.environment, StatefulEnvironment):
            return None
        signed = request.headers.get(SESSION_HEADER) or request.cookies.get(COOKIE)
        return session_name(signed, self.name, self.secret) if signed else None

    async def load(self, name: str) -> Session:
        """The session. Raises FailureError where it is gone."""
        session = await self.sessions.load(name)
        if session is None:
            raise lost(self.name)
        return session

    async def seed_session(self, request: Request) -> Response:
        """Open a session where there is a state to keep."""
        body = await read_object(request)
        if not isinstance(self.environment, StatefulEnvironment):
            return answer(self.about)
        state = self.environment.seed(self.environment.check_row(body))
        name, signed = new_session(self.name, self.secret)
        await self.sessions.store(name, Session(pickle.dumps(state, pickle.HIGHEST_PROTOCOL)))
        response = answer({**self.about, "session_id": signed}, headers={SESSION_HEADER: signed})
        response.set_cookie(COOKIE, signed, httponly=True, samesite="strict")
        return response

    # -- tools ---------------------------------------------------------------------------------------------------

    async def list_tools(self, request: Request) -> Response:
        """The tools' declarations."""
        return answer([tool.declaration() for tool in self.tools.values()])

    async def call_tool(self, request: Request) -> Response:
        """The tool's output. 422: the model's mistake. 503: ours."""
        name = request.path_params["tool"]
        tool = self.tools.get(name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            raise HTTPException(404, f"environment '{self.name}' has no tool '{name}'; it has: {known}")
        limit = self.environment.settings.max_answer_chars
        if len(await request.body()) > limit:
            raise ToolRefused(f"tool '{name}': the arguments are longer than {limit} bytes")
        arguments = tool.parse(await read_object(request))

        async def act(state: Any) -> Any:
            return await tool.call(state, arguments)

        what = f"tool '{tool.name}'"
        if tool.with_state:
            media_type, body = await self.in_session(request, act, what, "tool_crash", tool.read_only)
        else:
            media_type, body = await self.result(act, None, what, "tool_crash")
        return Response(body, media_type=media_type)

    async def user_turn(self, request: Request) -> Response:
        """What the simulated user says next, and whether that ends the conversation."""
        environment = self.environment
        assert isinstance(environment, ConversationEnvironment)
        said = said_so_far(await read_object(request), self.name)

        async def act(state: Any) -> Any:
            return await environment.user_turn(state, said)

        media_type, body = await self.in_session(request, act, "the simulated user", "simulator_failed")
        return Response(body, media_type=media_type)

    async def in_session(
        self,
        request: Request,
        act: Callable[[Any], Awaitable[Any]],
        what: str,
        kind: FailureKind,
        read_only: bool = False,
    ) -> tuple[str, bytes]:
        """(media type, body) of what `act` makes of the session's state, which is kept unless it is only read."""
        name, key = self.session(request), request.headers.get("idempotency-key")
        if name is None:
            message = (
                f"environment '{self.name}': {what} needs a session: POST /{self.name}/seed_session and "
                f"send its cookie, or the header {SESSION_HEADER}"
            )
            raise FailureError(Failure(kind="environment_down", message=message, retryable=False))
        for _ in range(MAX_CONFLICTS):
            session = await self.load(name)
            if key is not None and key in session.replies:
                return session.replies[key]
            state = pickle.loads(session.state)
            reply = await self.result(act, state, what, kind)
            if read_only:
                return reply
            after = session.after(pickle.dumps(state, pickle.HIGHEST_PROTOCOL), key, reply)
            if await self.sessions.store(name, after):
                return reply
        message = f"environment '{self.name}' {what}: too many calls change the session at once"
        raise FailureError(Failure(kind=kind, message=message))

    async def result(
        self, act: Callable[[Any], Awaitable[Any]], state: Any, what: str, kind: FailureKind
    ) -> tuple[str, bytes]:
        try:
            return tool_output(await act(state))
        except (ToolRefused, FailureError):
            raise
        except Exception as error:
            log.exception("environment '%s' %s", self.name, what)
            message = f"environment '{self.name}' {what}: {type(error).__name__}: {error}"
            raise FailureError(Failure(kind=kind, message=message)) from None


def build_resources(
    environments: Sequence[Environment],
    settings: ServerSettings | None = None,
    workers: int = 2,
    sessions: SessionStore | None = None,
    secret: str | None = None,
    redis: RedisLink | None = None,
) -> Guard:
    """An ASGI app that serves `environments`. Raises OmnigymError where two have one name or there is none.

    secret: signs session ids; one of this process where absent, which is enough while sessions are in its memory. redis: keeps sessions
    and verdicts for all servers that share it and the secret, instead of this process's memory.
    """
    names = [environment.name for environment in environments]
    if not names or len(set(names)) != len(names):
        raise OmnigymError(f"a resources server needs environments of different names, got {names}")
    installed = set(environment_names())
    warm = [("gym_servers.verification:prepare_environment", (name,)) for name in names if name in installed]
    pool = WorkerPool(workers, warm=warm)
    store: SessionStore = MemorySessions() if sessions is None else sessions
    if redis is not None:
        if secret is None:
            raise OmnigymError("sessions in Redis need a secret that all servers share: set OMNIGYM_SECRET (or _FILE)")
        from gym_servers.redis_once import SharedOnce  # the client costs memory and time that few servers need
        from gym_servers.redis_sessions import RedisSessions

        store = RedisSessions(redis, secret)
    secret = secret or secrets.token_urlsafe(24)

    def once(name: str) -> Once[dict[str, Any]]:
        return Once(MAX_STORED_VERDICTS) if redis is None else SharedOnce(MAX_STORED_VERDICTS, redis, secret, name)

    workers_state = "the workers are starting"

    async def start_pool() -> None:
        nonlocal workers_state
        try:
            await asyncio.to_thread(pool.start)
        except (OmnigymError, OSError) as error:  # verdicts that need no worker are given all the same
            workers_state = f"the workers do not start: {error}"
            log.error("not ready, %s", workers_state)
        else:
            workers_state = ""

    not_open: list[str] = []

    async def open_environments() -> None:
        for environment in environments:
            try:
                await environment.open()
            except (OmnigymError, OSError) as error:  # the others are served
                not_open.append(f"environment '{environment.name}' does not start: {error}")
                log.error("not ready, %s", not_open[-1])

    async def check() -> None:
        if not_open or workers_state:
            raise OmnigymError("; ".join(filter(None, [*not_open, workers_state])))
        if redis is not None:
            await redis.check()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await open_environments()
        starting = asyncio.create_task(start_pool())
        reaper = asyncio.create_task(reap_for_ever(store, min(30.0, store.ttl_seconds / 2)))
        yield
        reaper.cancel()
        await starting
        for environment in environments:
            await environment.close()
        await asyncio.to_thread(pool.close)
        if redis is not None:
            await redis.close()

    async def listing(request: Request) -> Response:
        return answer([{**one.listed(), "url": f"{request.base_url}{one.name}"} for one in served])

    served = [Served(one, pool, store, once(one.name), secret) for one in environments]
    document = orjson.dumps(openapi(environments))

    async def described(request: Request) -> Response:
        return Response(document, media_type="application/json")

    routes = [Route("/environments", listing, methods=["GET"]), Route("/openapi.json", described, methods=["GET"])]
    for one in served:
        routes += one.routes(f"/{one.name}")
    if len(served) == 1:
        routes += served[0].routes("")
    return build(Starlette(routes=routes, lifespan=lifespan), settings or ServerSettings(), check)
