"""The agent `conversation`: the tool loop, with a simulated user who answers each turn that calls nothing.

The user is the environment's (`POST /<environment>/user_turn`) and hears only what is said: no reasoning, no tool calls, no
system prompt. Its words are items of the rollout with the role `user`, prompt for the policy like any other. It opens the
conversation, unless the row's input ends with words of its own. The conversation ends where the user says so or has spoken
`max_turns` times, with a turn of the model that says nothing, an ending tool, a leg of the loop at its step limit, or a truncation.
"""

from __future__ import annotations

import time
from typing import Any

from gym_servers.agents.tool_loop import LoopLimits, Session, Target, as_input, final, generate
from gym_servers.client import Client
from gym_servers.protocol import Failure, FailureError, Item, Rollout, final_text, function_calls, strip_reasoning


def words_of(item: Item) -> str:
    """What a message says, whichever form its content has."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or [] if isinstance(part, dict))


def is_from(item: Item, role: str) -> bool:
    """Whether `item` is a message of `role`."""
    return item.get("type", "message") == "message" and item.get("role") == role


def heard(items: list[Item]) -> list[dict[str, str]]:
    """The messages among `items` as both sides hear them. Turns without words are none."""
    said = []
    for item in items:
        if is_from(item, "user"):
            said.append({"role": "user", "content": words_of(item)})
        elif is_from(item, "assistant") and (text := strip_reasoning(words_of(item))).strip():
            said.append({"role": "assistant", "content": text})
    return said


async def _user_turn(
    client: Client, target: Target, session: Session, limits: LoopLimits, said: list[dict[str, str]], number: int
) -> tuple[str, bool]:
    """(the user's words, whether the conversation is over). Raises FailureError that is final."""
    try:
        reply = await client.post(
            f"{target.environment_url}/user_turn",
            {"messages": said},
            seconds=limits.verify_seconds,  # a model may play the user
            kind="simulator_failed",
            cookies=session.cookies,
            key=f"{session.key}/user/{number}",
        )
        answer = reply.json()
    except FailureError as error:  # sampling again would let the policy choose among its users
        raise final(error) from None
    words, done = answer.get("message"), answer.get("done")
    if not isinstance(words, str) or not isinstance(done, bool) or not (words.strip() or done):
        message = f"{target.environment_url}/user_turn: no words of a user: {str(answer)[:200]}"
        raise FailureError(Failure(kind="simulator_failed", message=message, retryable=False))
    return words, done


async def converse(
    client: Client, row: dict[str, Any], target: Target, rollout: Rollout, limits: LoopLimits, session: Session
) -> dict[str, Any]:
    """Fill `rollout` up to the verdict. Returns the last response of the model, without its output. limits.steps: model calls
    between two turns of the user.

    Raises FailureError, RowError as `generate` does; a failure of the user's is final.
    """
    given = as_input((row.get("responses_create_params") or {}).get("input", []))
    opening = given[-1:] if given and is_from(given[-1], "user") else []
    spoken = len(opening)
    response: dict[str, Any] = {}

    async def user_speaks() -> bool:
        """Whether the conversation goes on."""
        nonlocal spoken
        began = time.monotonic()
        said = heard([*opening, *rollout.output])
        words, done = await _user_turn(client, target, session, limits, said, spoken)
        rollout.timings["user"] = rollout.timings.get("user", 0.0) + time.monotonic() - began
        spoken += 1
        if words.strip():
            rollout.output.append({"type": "message", "role": "user", "content": words})
        return not done

    if not spoken and not await user_speaks():
        return response
    while True:
        turns = len(rollout.output)
        response = await generate(client, row, target, rollout, limits, session)
        leg = rollout.output[turns:]
        answered = sum(item.get("type") == "function_call_output" for item in leg)
        unanswered = not leg or leg[-1].get("type") == "function_call_output" or len(function_calls(leg)) > answered
        if rollout.truncated or unanswered or not strip_reasoning(final_text(leg)).strip():
            return response
        if spoken >= session.max_turns or not await user_speaks():
            return response
