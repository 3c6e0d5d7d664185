"""A recorded rollout, played again: the environment is seeded from its task, its recorded tool calls are made in their order, and its
recorded output is graded once more, all by the code that an agent runs, against a server in this process.

The model is not asked, and neither is a simulated user: what they said stands in the output. A call that was recorded without an
answer (of a turn that was cut) was not made, and is not made now. A verdict on a group is not given again: the others are missing.
"""

from __future__ import annotations

import pickle
import secrets
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel

from gym_servers.agents.tool_loop import LoopLimits, Session, Target, call_tool, offered_tools, seed, verify
from gym_servers.client import Client
from gym_servers.environment import Environment
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import Failure, FailureError, Item, Rollout, RowError
from gym_servers.resources import COOKIE, build_resources
from gym_servers.sessions import MemorySessions, session_name

MAX_DEPTH = 40
"""Levels of a state that are compared; what is deeper is compared as a whole."""


@dataclass(frozen=True)
class Played:
    """One tool call: what the recorded rollout got for it, and what it got now."""

    name: str
    arguments: str
    recorded: str
    output: str


@dataclass
class Replay:
    """changes: lines that say how the session's state at the end differs from the one at the start. rollout: with the verdict of now,
    or without one where `failure` or the group is why. unmade: recorded calls that were never made."""

    rollout: Rollout
    calls: list[Played] = field(default_factory=list)
    unmade: int = 0
    changes: list[str] = field(default_factory=list)
    graded_in_group: bool = False
    failure: Failure | None = None

    def differences(self, recorded: Rollout) -> list[str]:
        """What is not as it was recorded."""
        found = [f"output of call {k}, {one.name}" for k, one in enumerate(self.calls) if one.output != one.recorded]
        if self.failure is not None:
            found.append(f"a failure: {self.failure.kind}: {self.failure.message}")
        elif not self.graded_in_group and recorded.failure is None:
            if self.rollout.reward != recorded.reward:
                found.append(f"reward: recorded {recorded.reward}, now {self.rollout.reward}")
            elif self.rollout.explanation != recorded.explanation:
                found.append("the verdict's explanation")
        return found


def paired(output: list[Item]) -> tuple[list[tuple[Item, str]], int]:
    """([(call, its recorded answer)], number of calls without one). An answer is that of the call with its id, else of the first open."""
    waiting: list[Item] = []
    pairs: list[tuple[Item, str]] = []
    for item in output:
        if item.get("type") == "function_call":
            waiting.append(item)
        elif item.get("type") == "function_call_output" and waiting:
            same = [call for call in waiting if call.get("call_id") == item.get("call_id")]
            call = (same or waiting)[0]
            waiting.remove(call)
            pairs.append((call, str(item.get("output", ""))))
    return pairs, len(waiting)


def _plain(value: Any, depth: int = 0) -> Any:
    """A state as plain data: objects as what they would be pickled to."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > MAX_DEPTH:
        return repr(value)
    if isinstance(value, BaseModel):
        return _plain(dict(value), depth)
    if isinstance(value, dict):
        return {str(key): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return {str(number): _plain(one, depth + 1) for number, one in enumerate(value)}
    if isinstance(value, set | frozenset):
        return {repr(one): True for one in sorted(value, key=repr)}
    inner = value.__getstate__()
    if isinstance(inner, tuple) and len(inner) == 2 and isinstance(inner[1], dict):  # of a class with __slots__
        inner = {**(inner[0] or {}), **inner[1]}
    return repr(value) if inner is None else _plain(inner, depth + 1)


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {name: leaf for key, one in value.items() for name, leaf in _leaves(one, f"{path}/{key}").items()}
    return {path: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()}


def state_changes(before: Any, after: Any) -> list[str]:
    """One line for each value that was added, removed or changed between two states, by its path."""
    was, now = _leaves(_plain(before)), _leaves(_plain(after))
    lines = []
    for path in [*was, *(path for path in now if path not in was)]:
        filled = any(other.startswith(f"{path}/") for other in [*was, *now])  # what was empty, or is now
        if was.get(path) != now.get(path) and not filled:
            lines.append(f"{path or '/'}: {was.get(path, '(absent)')} -> {now.get(path, '(absent)')}")
    return lines


async def replay(environment: Environment, recorded: Rollout, limits: LoopLimits | None = None) -> Replay:
    """Play `recorded` again. Raises FailureError or RowError where its task cannot be seeded."""
    limits = limits or LoopLimits()
    secret, sessions = secrets.token_hex(16), MemorySessions()
    pairs, unmade = paired(recorded.output)
    again = Replay(Rollout(**_identity(recorded)), unmade=unmade)
    app = build_resources([environment], workers=1, sessions=sessions, secret=secret)
    async with InProcessHost() as host, Client(transport=host) as client:
        url = await host.start("replay", app)
        target = Target(f"{url}/{environment.name}", "", {})
        session = await seed(client, recorded.task, target, limits)

        async def state() -> Any:
            signed = session.cookies.get(COOKIE)
            found = await sessions.load(session_name(signed, environment.name, secret)) if signed else None
            return pickle.loads(found.state) if found is not None else None

        start = await state()
        allowed = offered_tools(recorded.task)
        for number, (call, output) in enumerate(pairs):
            got = await _called(client, call, allowed, target, session, limits, number)
            again.calls.append(Played(str(call.get("name", "")), str(call.get("arguments") or "{}"), output, got))
        again.changes = state_changes(start, await state())
        if session.group:
            again.graded_in_group = True
            return again
        response = {"object": "response", "output": recorded.output}
        try:
            await verify(client, recorded.task, target, again.rollout, limits, session, response, 0)
        except FailureError as error:
            again.failure = error.failure
        except RowError as error:
            again.failure = Failure(kind="bad_row", message=str(error), retryable=False)
    return again


def _identity(recorded: Rollout) -> dict[str, Any]:
    return {
        "task_id": recorded.task_id,
        "environment": recorded.environment,
        "attempt": recorded.attempt,
        "task": recorded.task,
    }


async def _called(
    client: Client, call: Item, allowed: set[str], target: Target, session: Session, limits: LoopLimits, number: int
) -> str:
    """What the call gets now; a failure as a text that no tool gives."""
    try:
        made = await call_tool(client, call, allowed, target, session, limits, f"{session.key}/{number}")
    except FailureError as error:
        return f"(failure: {error})"
    return made.output
