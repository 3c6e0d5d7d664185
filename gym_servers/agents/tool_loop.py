"""The agent `tool_loop`, and what every agent shares: seed, generate, call tools, verify (in order: episode.py).

What the model does wrong (an unknown tool, arguments that are no JSON object, a tool that refuses) becomes a tool output that it
sees; what the infrastructure does wrong is a Failure. Calls of one turn run in the listed order, and at once where the
environment declares all of them read-only. The loop ends with a turn that calls nothing, or a tool that the task offers and the
server says it does not serve (that call is the answer), at the step limit, its own or the environment's (scored, not
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
    """steps: model calls of one rollout. Seconds are of one call, retries included.

    A call to the model has a day: how slow a model may be is said once, by the collector's no_progress_seconds.
    """

    steps: int = 16
    model_seconds: float = 86_400.0
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
    """What seed_session answered. key: of this episode, the start of its idempotency keys.

    agent: which one the environment wants. max_turns: of its simulated user. ending_tools: after one of them nothing follows.
    max_steps: the environment's own limit of model calls. tools: the names that it serves, None where it does not say.
    """

    cookies: dict[str, str]
    group: bool
    read_only: frozenset[str]
    agent: str = "tool_loop"
    max_turns: int = 1
    ending_tools: frozenset[str] = frozenset()
    max_steps: int | None = None
    tools: frozenset[str] | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(8))


def as_input(value: Any) -> list[Item]:
    """`responses_create_params.input` as a list of items. Raises RowError."""
    if isinstance(value, str):
        return [{"role": "user", "content": value, "type": "message"}]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return list(value)
    raise RowError("field 'responses_create_params.input' must be a string or a list of items")


def _names(value: Any) -> frozenset[str]:
    return frozenset(value) if isinstance(value, list) else frozenset()


def final(error: FailureError) -> FailureError:
    """The same failure, for which no episode is sampled anew."""
    return FailureError(error.failure.model_copy(update={"retryable": False}))


async def seed(client: Client, row: dict[str, Any], target: Target, limits: LoopLimits) -> Session:
    """Open a session. Raises FailureError, RowError."""
    reply = await client.post(f"{target.environment_url}/seed_session", row, seconds=limits.tool_seconds)
    about = reply.json()
    steps, tools = about.get("max_steps"), about.get("tools")
    return Session(
        reply.cookies,
        about.get("reward") == "group",
        _names(about.get("read_only_tools")),
        str(about.get("agent") or "tool_loop"),
        int(about.get("max_turns") or 1),
        _names(about.get("ending_tools")),
        steps if isinstance(steps, int) and steps > 0 else None,
        _names(tools) if isinstance(tools, list) else None,
    )


def offered_tools(row: dict[str, Any]) -> set[str]:
    """Names of the functions that a task offers, and that can be paths of the environment's server."""
    tools = (row.get("responses_create_params") or {}).get("tools")
    functions = [tool for tool in tools or [] if isinstance(tool, dict) and tool.get("type", "function") == "function"]
    return set(filter(is_tool_name, (str(tool.get("name")) for tool in functions)))


async def call_tool(
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
        orjson.dumps([[[[[[[[arguments]]]]]]]])  # it reads deeper than it writes; the record around it has levels too
    except orjson.JSONEncodeError:
        return mistake("the arguments are nested too deep")
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
        raise final(error) from None
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
        return call_tool(client, calls[number], allowed, target, session, limits, key)

    if len(calls) < 2 or any(call.get("name") not in session.read_only for call in calls):
        return [await one(number) for number in range(len(calls))]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(len(calls))]
    except ExceptionGroup as errors:  # one failure is the rollout's
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _count(usage: dict[str, int], told: Any) -> None:
    """Add a response's own `usage` to the rollout's; what is absent or no number counts as 0."""
    usage["requests"] = usage.get("requests", 0) + 1
    for name, theirs in (("prompt_tokens", "input_tokens"), ("sampled_tokens", "output_tokens")):
        tokens = told.get(theirs) if isinstance(told, dict) else None
        usage[name] = usage.get(name, 0) + (tokens if type(tokens) is int else 0)


async def generate(
    client: Client, row: dict[str, Any], target: Target, rollout: Rollout, limits: LoopLimits, session: Session
) -> dict[str, Any]:
    """Add to `rollout` the model's turns up to one that calls nothing. Returns the last response, without its output.

    Raises FailureError (retryable: where sampling anew is right), RowError.
    """
    params = dict(row.get("responses_create_params") or {})
    history = as_input(params.pop("input", []))
    allowed = offered_tools(row)
    answers = allowed - (allowed if session.tools is None else session.tools)  # calls of them are for verify to read
    response: dict[str, Any] = {}
    for _ in range(min(limits.steps, session.max_steps or limits.steps)):
        began = time.monotonic()
        request = {**params, **target.sampling, "input": [*history, *rollout.output], "seed": rollout.seed}
        reply = await client.post(
            f"{target.model_url}/responses", request, seconds=limits.model_seconds, kind="model_error"
        )
        rollout.timings["generate"] = rollout.timings.get("generate", 0.0) + time.monotonic() - began
        response = reply.json()
        _count(rollout.usage, response.get("usage"))
        if response.get("error"):
            raise FailureError(Failure(kind="model_error", message=str(response["error"])))
        items = response.pop("output", None) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FailureError(Failure(kind="model_error", message=f"the response's output is no list: {items!r:.200}"))
        rollout.output += items
        rollout.steps += 1
        if response.get("status") == "incomplete":
            rollout.truncated = True
            reason = (response.get("incomplete_details") or {}).get("reason")
            rollout.truncation_reason = "context" if reason == "context" else "max_tokens"
            break
        calls = function_calls(items)
        if not calls or any(call.get("name") in answers for call in calls):
            break
        began = time.monotonic()
        done = await _call_tools(client, calls, allowed, target, session, limits, rollout.steps)
        rollout.timings["tools"] = rollout.timings.get("tools", 0.0) + time.monotonic() - began
        for call, result in zip(calls, done, strict=True):
            rollout.tool_calls.append(result)
            rollout.output.append(
                {"type": "function_call_output", "call_id": call.get("call_id"), "output": result.output}
            )
        if any(result.name in session.ending_tools and not result.error for result in done):
            break
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
                raise final(error) from None
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
