"""The agent `tool_loop`: seed, generate, call tools, verify.

What the model does wrong (an unknown tool, arguments that are no JSON object, a tool that refuses) becomes a tool output that it
sees; what the infrastructure does wrong is a Failure. Calls of one turn run in the listed order. The loop ends with a turn
that calls nothing, at the step limit (scored, not truncated), or where the engine cut the answer (truncated).
Not here: parallel read-only tools, which no environment declares yet.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import orjson

from gym_servers.client import Client
from gym_servers.protocol import Failure, FailureError, Item, Rollout, RowError, ToolCall, function_calls

INTERNAL = frozenset(
    {
        "verify",
        "verify_group",
        "seed_session",
        "run",
        "close",
        "healthz",
        "readyz",
        "metrics",
        "environments",
        "docs",
        "openapi.json",
    }
)


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


def _as_input(value: Any) -> list[Item]:
    if isinstance(value, str):
        return [{"role": "user", "content": value, "type": "message"}]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return list(value)
    raise RowError("field 'responses_create_params.input' must be a string or a list of items")


async def _call_tool(
    client: Client, call: Item, allowed: set[str], target: Target, cookies: dict[str, str], limits: LoopLimits, key: str
) -> ToolCall:
    """One tool call; a mistake of the model is an output with `error`."""
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
            cookies=cookies,
            key=key,
        )
    except RowError as error:
        return mistake(str(error), arguments)
    return ToolCall(
        name=name, arguments=arguments, output=reply.body.decode(errors="replace"), seconds=time.monotonic() - began
    )


async def generate(
    client: Client, row: dict[str, Any], target: Target, rollout: Rollout, limits: LoopLimits
) -> dict[str, str]:
    """Fill `rollout` up to the verdict. Returns the session's cookies. Raises FailureError, RowError."""
    params = dict(row.get("responses_create_params") or {})
    history = _as_input(params.pop("input", []))
    tools = [tool for tool in params.get("tools") or [] if tool.get("type", "function") == "function"]
    allowed = {str(tool.get("name")) for tool in tools} - INTERNAL
    began = time.monotonic()
    seeded = await client.post(
        f"{target.environment_url}/seed_session",
        row,
        seconds=limits.tool_seconds,
        key=f"{rollout.group}/{rollout.attempt}/seed",
    )
    cookies = seeded.cookies
    rollout.timings["seed"] = time.monotonic() - began
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
        items = response.get("output") or []
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
        for number, call in enumerate(calls):
            key = f"{rollout.group}/{rollout.attempt}/{rollout.seed}/tool/{step}/{number}"
            done = await _call_tool(client, call, allowed, target, cookies, limits, key)
            rollout.tool_calls.append(done)
            rollout.output.append(
                {"type": "function_call_output", "call_id": call.get("call_id"), "output": done.output}
            )
    return cookies


async def verify(
    client: Client, row: dict[str, Any], target: Target, rollout: Rollout, cookies: dict[str, str], limits: LoopLimits
) -> None:
    """Enter the verdict into `rollout`. Raises FailureError, RowError. May be called again with the same output."""
    began = time.monotonic()
    body = {**row, "response": {"output": rollout.output, "object": "response"}}
    # Of what is verified, not of the rollout's place: a stored verdict must never answer for another output.
    content = orjson.dumps([body, cookies], option=orjson.OPT_NON_STR_KEYS)
    key = f"verify/{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    reply = await client.post(
        f"{target.environment_url}/verify",
        body,
        seconds=limits.verify_seconds,
        kind="verifier_crash",
        cookies=cookies,
        key=key,
    )
    verdict = reply.json()
    reward = verdict.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise FailureError(Failure(kind="verifier_crash", message=f"the verdict has no reward: {str(verdict)[:200]}"))
    rollout.reward = float(reward)
    rollout.explanation = str(verdict.get("explanation", ""))
    parts = verdict.get("parts")
    rollout.parts = parts if isinstance(parts, dict) else {}
    rollout.timings["verify"] = time.monotonic() - began
