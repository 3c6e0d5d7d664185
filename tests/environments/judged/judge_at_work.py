"""A scripted model server as a judge, over real HTTP, and verdicts of environments that ask it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_server import serving

from gym_servers.base import ServerSettings
from gym_servers.environment import Environment, opened
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import FailureError, Item, RowError, Verdict
from gym_servers.verification import judge as verdict_of
from gym_servers.workers import WorkerPool

USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n$", re.DOTALL)


@dataclass
class Judge:
    """url: of its chat completions. prompts: user messages that it got, in order of arrival."""

    url: str = ""
    prompts: list[str] = field(default_factory=list)


@contextmanager
def judge_saying(*replies: str, by: Callable[[str], str] | None = None) -> Iterator[Judge]:
    """A judge that gives `replies` in order, the last one again and again, or what `by` makes of the user message."""
    judge = Judge()

    def script(asked: Asked) -> str:
        found = USER.search(asked.prompt)
        assert found is not None, asked.prompt
        judge.prompts.append(found.group(1))
        return by(found.group(1)) if by is not None else replies[min(len(judge.prompts), len(replies)) - 1]

    guard = build_model_server(ScriptedEngine(script), ModelSettings(secret="s"), ServerSettings())
    with serving(guard) as url:
        judge.url = f"{url}/v1/chat/completions"
        yield judge


def message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def graded(environment: Environment, row: dict[str, Any], output: str | list[Item]) -> Verdict:
    """The verdict, with the environment open; no worker is started, for none is needed."""

    async def run() -> Verdict:
        async with opened(environment):
            items = message(output) if isinstance(output, str) else output
            return await verdict_of(environment, row, items, WorkerPool(1))

    return asyncio.run(run())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def holds(case: dict[str, Any], environment: Environment) -> bool:
    """Whether a case of a cases.jsonl has the outcome that it says."""
    row = {key: value for key, value in case["request"].items() if key != "response"}
    try:
        verdict = graded(environment, row, case["request"]["response"]["output"])
    except RowError as error:
        told = str(error)
        return environment.name in told and "task '" in told and case["expected"].get("error", "\0") in told
    return verdict.reward == case["expected"].get("reward")


def reference_reward(environment: Environment, case: dict[str, Any]) -> float | str:
    """Our reward for a recorded request, or the kind of our failure."""
    row = {key: value for key, value in case["request"].items() if key != "response"}
    try:
        return graded(environment, row, case["request"]["response"]["output"]).reward
    except FailureError as error:
        return error.failure.kind
    except RowError:
        return "bad_row"
