"""A model that works in the office as a test says: what it samples is text in the template's form, which the model server parses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kit_toys import serving

from environments.workplace_assistant.server import WorkplaceAssistant
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.sessions import MemorySessions

Line = dict[str, Any]
Turns = Callable[[Line, int], str]
"""(task row, number of the turn in its episode, from 0) -> what is sampled"""


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as a model writes it."""
    parameters = "".join(f"\n<parameter={key}>\n{value}\n</parameter>" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>{parameters}\n</function>\n</tool_call>"


def perfect(row: Line, turn: int) -> str:
    """The ground truth, one call a turn."""
    truth = row["ground_truth"]
    if turn >= len(truth):
        return "All done."
    return call_text(truth[turn]["name"], json.loads(truth[turn]["arguments"]))


class Office:
    """Servers over real HTTP. sessions: of the environment."""

    def __init__(self, environment_url: str, model_url: str, sessions: MemorySessions, rows: Sequence[Line]) -> None:
        self.environment_url, self.model_url, self.sessions, self.rows = environment_url, model_url, sessions, rows

    def collect(self) -> list[Rollout]:
        """One rollout of each row, in their order."""
        collector = Collector({"workplace_assistant": self.environment_url}, self.model_url, secret="s", concurrency=4)
        requests = [
            RolloutRequest(row, f"t{number}", "workplace_assistant", seed=number)
            for number, row in enumerate(self.rows)
        ]

        async def run() -> list[Rollout]:
            return [rollout async for rollout in collector.collect(requests)]

        return sorted(asyncio.run(run()), key=lambda rollout: int(rollout.task_id[1:]))


@contextlib.contextmanager
def office(rows: Sequence[Line], turns: Turns, environment: WorkplaceAssistant | None = None) -> Iterator[Office]:
    """The environment and a model that plays `turns`. The requests of `rows` must differ."""
    asked = {row["responses_create_params"]["input"][-1]["content"]: row for row in rows}
    assert len(asked) == len(rows)

    def script(call: Asked) -> str:
        for request, row in asked.items():
            if f"<|im_start|>user\n{request}<|im_end|>" in call.prompt:
                shown = sum(item.get("role") == "assistant" for item in row["responses_create_params"]["input"])
                calls = sum(item.get("type") == "function_call" for item in row["responses_create_params"]["input"])
                return turns(row, call.turn - shown - calls)
        raise AssertionError(f"nobody asked this: {call.prompt[-300:]}")

    sessions = MemorySessions()
    resources = build_resources([environment or WorkplaceAssistant()], workers=1, sessions=sessions)
    model = build_model_server(ScriptedEngine(script), ModelSettings(secret="s"))
    with serving(resources) as url, serving(model) as model_url:
        yield Office(f"{url}/workplace_assistant", f"{model_url}/v1", sessions, rows)
