"""Every environment, through the collector, a model server with its ledger and a resources server: an agent that answers what is
right earns the highest reward, one that says nothing the lowest, and neither fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gym_servers.environment import Environment
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import Item, Rollout, final_text
from gym_servers.registry import environment_names, load_environment
from gym_servers.replay import replay
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

TASKS = 12
SEED_STRIDE = 1_000_003  # gym_servers/models/calls.py


def as_text(item: Item) -> str:
    """An output item as the model writes it."""
    if item["type"] == "message":
        return final_text([item])
    assert item["type"] == "function_call"
    arguments = orjson.loads(item["arguments"])
    written = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else orjson.dumps(value).decode()}\n</parameter>\n"
        for key, value in arguments.items()
    )
    return f"<tool_call>\n<function={item['name']}>\n{written}</function>\n</tool_call>"


def turns_of(items: list[Item]) -> list[str]:
    """The model's turns that make `items`: what others say (a tool's output, a user's message) ends one."""
    turns: list[str] = []
    after_others = True
    for item in items:
        others = item["type"] == "function_call_output" or item.get("role") == "user"
        if not others:
            if after_others:
                turns.append(as_text(item))
            else:
                turns[-1] += "\n" + as_text(item)
        after_others = others
    return turns


def scripted(scripts: list[list[str]]) -> Callable[[Asked], str]:
    """What a model says whose rollout with seed k samples the turns of scripts[k], then nothing."""
    before: dict[int, int] = {}

    def script(asked: Asked) -> str:
        attempt = asked.seed % SEED_STRIDE  # a later turn of an attempt has a seed of its own
        turns = scripts[attempt]
        done = asked.turn - before.setdefault(attempt, asked.turn)  # a task's own examples are turns too
        return turns[done] if done < len(turns) else ""

    return script


def collect(environment: Environment, rows: list[dict[str, Any]], scripts: list[list[str]]) -> list[Rollout]:
    """One rollout a row; attempt k samples the turns of scripts[k], then nothing."""

    async def run() -> list[Rollout]:
        async with InProcessHost() as host:
            engine = ScriptedEngine(scripted(scripts))
            model = await host.start("model", build_model_server(engine, ModelSettings(secret="s")))
            served = await host.start("environment", build_resources([environment], workers=1))
            collector = Collector(
                {environment.name: f"{served}/{environment.name}"},
                f"{model}/v1",
                secret="s",
                sampling={"temperature": 1.0, "max_output_tokens": 100_000},
                concurrency=4,
                transport=host,
            )
            requests = [RolloutRequest(row, f"t{k}", environment.name, f"t{k}", 0, k) for k, row in enumerate(rows)]
            done = [rollout async for rollout in collector.collect(requests)]
            return sorted(done, key=lambda rollout: rollout.seed)

    return asyncio.run(run())


@pytest.mark.parametrize("name", environment_names())
def test_a_perfect_agent_earns_the_most_and_a_silent_one_the_least(name: str) -> None:
    environment = load_environment(name)
    low, high = environment.reward_range
    rows = list(environment.generate(TASKS, 3, "heldout"))
    golds = [environment.gold(environment.check_row(row)) for row in rows]
    assert None not in golds, "a generated task has a gold answer"
    perfect = collect(environment, rows, [turns_of(gold or []) for gold in golds])
    assert [(rollout.failure, rollout.reward) for rollout in perfect] == [(None, high)] * TASKS
    for rollout in perfect:  # what was sampled is what is trained
        assert sum(sum(segment.mask) for segment in rollout.segments) == rollout.usage["sampled_tokens"]
    for rollout in perfect[:3]:  # as read from its line, it plays again to the same outputs and verdict
        again = Rollout.model_validate_json(rollout.model_dump_json())
        assert asyncio.run(replay(environment, again)).differences(again) == []
    silent = collect(environment, rows, [[] for _ in rows])
    assert [(rollout.failure, rollout.reward) for rollout in silent] == [(None, low)] * TASKS
