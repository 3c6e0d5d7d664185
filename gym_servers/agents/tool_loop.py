"""The agent `tool_loop`: seed, generate, call tools, verify.

What the model does wrong (an unknown tool, arguments that are no JSON object, a tool that refuses) becomes a tool output that it
sees; what the infrastructure does wrong is a Failure. Calls of one turn run in the listed order, and at once where the
environment declares all of them read-only. The loop ends with a turn that calls nothing, at the step limit (scored, not
truncated), or where the engine cut the answer (truncated).

A phase that failed is tried again as that phase: the same call to the same tool, the verdict of the same output. Only where the
model server failed may a caller start the episode anew: sampling again because a tool or a verdict failed would let the policy be
selected by what the environment can bear.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import orjson

from gym_servers.client import Client
from gym_servers.protocol import Failure, FailureError, FailureKind, Item, Rollout, RowError, ToolCall, function_calls
from gym_servers.tools import is_tool_name


@dataclass(frozen=True)
class LoopLimits:
    """steps: model calls of one rollout. Seconds are of one call, retries included."""

    steps: int = 16
    model_seconds: float = 1800.0
    tool_seconds: float = 120.0
    verify_seconds: float = 300.0


@dataclass(frozen=True)
class Target:
    """Where a rollout happens. model_url: base with `/v1` (the rollout's own, where a ledger is kept)."""

    environment_url: str
    model_url: str
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Session:
    """What seed_session answered. key: of this episode, the start of its idempotency keys."""

    cookies: dict[str, str]
    group: bool
    read_only: frozenset[str]
    key: str = field(default_factory=lambda: secrets.token_hex(8))


def _as_input(value: Any) -> list[Item]:
    if isinstance(value, str):
        return [{"role": "user", "content": value, "type": "message"}]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return list(value)
    raise RowError("field 'responses_create_params.input' must be a string or a list of items")


def _final(error: FailureError) -> FailureError:
    return FailureError(error.failure.model_copy(update={"retryable": False}))


async def seed(client: Client, row: dict[str, Any], target: Target, limits: LoopLimits) -> Session:
    """Open a session. Raises FailureError, RowError."""
    reply = await client.post(f"{target.environment_url}/seed_session", row, seconds=limits.tool_seconds)
    about = reply.json()
    read_only = about.get("read_only_tools")
    return Session(
        reply.cookies,
        about.get("reward") == "group",
        frozenset(read_only) if isinstance(read_only, list) else frozenset(),
    )


async def _call_tool(
    client: Client, call: Item, allowed: set[str], target: Target, session: Session, limits: LoopLimits, key: str
) -> ToolCall:
    """One tool call; a mistake of the model is an output with `error`. Raises FailureError, never a retryable one."""
    name, raw = str(call.get("name", "")), call.get("arguments") or "{}"
    began = time.monotonic()

    def mistake(message: str, arguments: Any = raw) -> ToolCall:
        shown = arguments if isinstance(arguments, dict | str) else str(arguments)
        return ToolCall(
            name=name, arguments=shown, output=f"Error: {message}", error=True, seconds=time.monotonic() - began
        )

    if name not in allowed:
        return mistake(f"there is no tool '{name}'. Tools: {', '.join(sorted(allowed)) or 'none'}")
    try:
        arguments = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return mistake(f"the arguments are not valid JSON ({error})")
    if not isinstance(arguments, dict):
        return mistake("the arguments must be a JSON object", raw)
    try:
        reply = await client.post(
            f"{target.environment_url}/{name}",
            arguments,
            seconds=limits.tool_seconds,
            kind="tool_crash",
            cookies=session.cookies,
            key=key,
        )
    except RowError as error:
        return mistake(str(error), arguments)
    except FailureError as error:
        raise _final(error) from None
    return ToolCall(
        name=name, arguments=arguments, output=reply.body.decode(errors="replace"), seconds=time.monotonic() - began
    )


async def _call_tools(
    client: Client,
    calls: list[Item],
    allowed: set[str],
    target: Target,
    session: Session,
    limits: LoopLimits,
    step: int,
) -> list[ToolCall]:
    """The calls of one turn, in their order. Raises FailureError."""

    def one(number: int) -> Coroutine[Any, Any, ToolCall]:
        key = f"{session.key}/{step}/{number}"
        return _call_tool(client, calls[number], allowed, target, session, limits, key)

    if len(calls) < 2 or any(call.get("name") not in session.read_only for call in calls):
        return [await one(number) for number in range(len(calls))]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(len(calls))]
    except ExceptionGroup as errors:  # one failure is the rollout's
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def generate(
    client: Client, row: dict[str, Any], target: Target, rollout: Rollout, limits: LoopLimits, session: Session
) -> dict[str, Any]:
    """Fill `rollout` up to the verdict. Returns the last response of the model, without its output.

    Raises FailureError (retryable: where sampling anew is right), RowError.
    """
    params = dict(row.get("responses_create_params") or {})
    history = _as_input(params.pop("input", []))
    tools = [tool for tool in params.get("tools") or [] if isinstance(tool, dict)]
    declared = {str(tool.get("name")) for tool in tools if tool.get("type", "function") == "function"}
    allowed = set(filter(is_tool_name, declared))  # a name is a path segment of the environment's server
    response: dict[str, Any] = {}
    for step in range(limits.steps):
        began = time.monotonic()
        request = {**params, **target.sampling, "input": [*history, *rollout.output], "seed": rollout.seed}
        reply = await client.post(
            f"{target.model_url}/responses", request, seconds=limits.model_seconds, kind="model_error"
        )
        rollout.timings["generate"] = rollout.timings.get("generate", 0.0) + time.monotonic() - began
        response = reply.json()
        if response.get("error"):
            raise FailureError(Failure(kind="model_error", message=str(response["error"])))
        items = response.pop("output", None) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FailureError(Failure(kind="model_error", message=f"the response's output is no list: {items!r:.200}"))
        rollout.output += items
        rollout.steps = step + 1
        if response.get("status") == "incomplete":
            rollout.truncated = True
            reason = (response.get("incomplete_details") or {}).get("reason")
            rollout.truncation_reason = "context" if reason == "context" else "max_tokens"
            break
        calls = function_calls(items)
        if not calls:
            break
        began = time.monotonic()
        done = await _call_tools(client, calls, allowed, target, session, limits, step)
        rollout.timings["tools"] = rollout.timings.get("tools", 0.0) + time.monotonic() - began
        for call, result in zip(calls, done, strict=True):
            rollout.tool_calls.append(result)
            rollout.output.append(
                {"type": "function_call_output", "call_id": call.get("call_id"), "output": result.output}
            )
    return response


def content_key(*content: Any) -> str:
    """An idempotency key of what is asked: a stored answer must never stand for another question."""
    data = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


async def until_final(call: Callable[[], Awaitable[None]], retries: int) -> None:
    """`await call()`, tried again `retries` times where its failure is retryable. Raises FailureError that is final."""
    for attempt in range(retries + 1):
        try:
            await call()
            return
        except FailureError as error:
            if not error.failure.retryable:
                raise
            if attempt == retries:
                raise _final(error) from None
            await asyncio.sleep(0.2 * 2**attempt)


def reward_of(verdict: dict[str, Any]) -> float:
    """The reward. Raises FailureError where there is none, also where NeMo-Gym's server says that its reward stands for a failure."""
    reward = verdict.get("reward")
    if verdict.get("mask_sample") is True:
        kind: FailureKind = "judge_failed" if verdict.get("failure_kind") == "judge_failed" else "verifier_crash"
        message = f"the server masks the sample: {verdict.get('failure_kind')}: {verdict.get('failure_reason')}"
        raise FailureError(Failure(kind=kind, message=message[:1000]))
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise FailureError(Failure(kind="verifier_crash", message=f"the verdict has no reward: {str(verdict)[:200]}"))
    if not math.isfinite(reward):
        raise FailureError(Failure(kind="verifier_crash", message=f"the verdict's reward is {reward}"))
    return float(reward)


def enter_verdict(rollout: Rollout, verdict: dict[str, Any]) -> None:
    """Reward, explanation and parts. Raises FailureError."""
    rollout.reward = reward_of(verdict)
    rollout.explanation = str(verdict.get("explanation", ""))
    parts = verdict.get("parts")
    rollout.parts = parts if isinstance(parts, dict) else {}


async def verify(
    client: Client,
    row: dict[str, Any],
    target: Target,
    rollout: Rollout,
    limits: LoopLimits,
    session: Session,
    response: dict[str, Any],
    retries: int,
) -> None:
    """Enter the verdict on `response`, which holds the whole output, into `rollout`. Raises FailureError that is final, RowError."""
    began = time.monotonic()
    body = {**row, "response": response}
    key = f"verify/{content_key(body, session.cookies)}"

    async def ask() -> None:
        reply = await client.post(
            f"{target.environment_url}/verify",
            body,
            seconds=limits.verify_seconds,
            kind="verifier_crash",
            cookies=session.cookies,
            key=key,
        )
        enter_verdict(rollout, reply.json())

    await until_final(ask, retries)
    rollout.timings["verify"] = time.monotonic() - began


async def episode(
    client: Client,
    row: dict[str, Any],
    target: Target,
    rollout: Rollout,
    limits: LoopLimits,
    *,
    retries: int,
    phase: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """The whole of one rollout; its reward stays None where the environment rewards groups.

    retries: of a verdict that failed. phase: is told what is waited for. Returns the response in NeMo-Gym's form: the model's last
    one, with all items of the episode as its output. Raises FailureError, RowError.
    """
    phase("generation for")
    began = time.monotonic()
    session = await seed(client, row, target, limits)
    rollout.timings["seed"] = time.monotonic() - began
    response = {
        "object": "response",
        **await generate(client, row, target, rollout, limits, session),
        "output": rollout.output,
    }
    if not session.group:
        phase("the verdict of")
        await verify(client, row, target, rollout, limits, session, response, retries)
    return response


async def verify_group(
    client: Client, row: dict[str, Any], url: str, rollouts: list[Rollout], limits: LoopLimits, retries: int
) -> None:
    """Enter the verdicts of one task's rollouts, asked for by their content. Raises FailureError that is final, RowError."""
    began = time.monotonic()
    given = [
        {
            "attempt": rollout.attempt,
            "truncated": rollout.truncated,
            "usage": rollout.usage,
            "response": {"object": "response", "output": rollout.output},
        }
        for rollout in sorted(rollouts, key=lambda rollout: rollout.attempt)  # not in order of arrival
    ]
    body = {"task": row, "rollouts": given}
    key = f"verify_group/{content_key(body)}"

    async def ask() -> None:
        reply = await client.post(
            f"{url}/verify_group", body, seconds=limits.verify_seconds, kind="verifier_crash", key=key
        )
        answer = reply.json()
        rewards, verdicts = answer.get("rewards"), answer.get("verdicts") or [{}] * len(rollouts)
        if not isinstance(rewards, list) or not len(rewards) == len(verdicts) == len(rollouts):
            message = f"the group verdict has not one reward for each of {len(rollouts)} rollouts: {str(answer)[:200]}"
            raise FailureError(Failure(kind="verifier_crash", message=message))
        checked = [{**verdict, "reward": reward} for verdict, reward in zip(verdicts, rewards, strict=True)]
        for one in checked:
            reward_of(one)
        for rollout, one in zip(sorted(rollouts, key=lambda r: r.attempt), checked, strict=True):
            enter_verdict(rollout, one)

    await until_final(ask, retries)
    for rollout in rollouts:
        rollout.timings["verify"] = time.monotonic() - began
