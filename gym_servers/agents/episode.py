"""One rollout from its seed to its verdict, by the agent that the environment names when it is seeded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gym_servers.agents.conversation import converse
from gym_servers.agents.tool_loop import LoopLimits, Target, generate, seed, verify
from gym_servers.client import Client
from gym_servers.protocol import Failure, FailureError, Rollout

AGENTS = {"tool_loop": generate, "conversation": converse}
"""By name. Each fills a rollout up to the verdict and returns the model's last response, without its output."""


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
    act = AGENTS.get(session.agent)
    if act is None:
        message = f"{target.environment_url} wants the agent '{session.agent}'; there are: {', '.join(AGENTS)}"
        raise FailureError(Failure(kind="environment_down", message=message, retryable=False))
    response = {
        "object": "response",
        **await act(client, row, target, rollout, limits, session),
        "output": rollout.output,
    }
    if not session.group:
        phase("the verdict of")
        await verify(client, row, target, rollout, limits, session, response, retries)
    return response
