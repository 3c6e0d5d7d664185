"""Seeded tasks in our company, from one call whose values the request names to six steps across areas.

Three things make a task harder: what has to be found out first, how many steps it takes, and whether all 27 tools are offered (about
4,000 tokens) or only the relevant ones. The easiest rows show two worked examples. Colleagues, with all their records, and new
names and texts are disjoint between train and held-out. Every task changes something, so that silence earns nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from environments.workplace_assistant.company import NOW
from environments.workplace_assistant.database import load
from environments.workplace_assistant.making import Task, World
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.tasks_crossed import CROSSED
from environments.workplace_assistant.tasks_named import NAMED
from environments.workplace_assistant.tasks_searched import ONE, SEVERAL, Maker
from environments.workplace_assistant.toolset import TOOLS, call, declarations
from gym_servers.environment import Split
from gym_servers.protocol import Item

MAX_STEPS = 6
MAX_DRAWS = 10_000
SYSTEM = (
    f"You are the office assistant of Robin. It is {NOW:%A, %Y-%m-%d}, {NOW:%H:%M:%S}. Days such as tomorrow or next week are "
    "counted from there. Work with the tools, one call at a time, and do exactly what is asked, nothing else. Meetings are "
    "between 9:00 and 18:00."
)


@dataclass(frozen=True)
class Kind:
    """A kind of row. difficulty: of its easiest task; each step beyond the first adds to it."""

    makers: Sequence[Maker]
    difficulty: float
    tools: Literal["all", "relevant"]
    examples: int = 0
    distractors: int = 0


SHOWN = Kind(NAMED[:7], 0.05, "relevant", examples=2)
NAMED_SHOWN = Kind(NAMED, 0.1, "relevant", examples=2)
PLAIN = Kind(NAMED, 0.2, "relevant", distractors=2)
KINDS: tuple[Kind, ...] = (
    *(SHOWN, NAMED_SHOWN, PLAIN, Kind(ONE, 0.35, "relevant", distractors=1), Kind(NAMED, 0.3, "all")),
    *(
        SHOWN,
        Kind(ONE, 0.5, "all"),
        Kind(SEVERAL, 0.5, "relevant"),
        Kind(SEVERAL, 0.6, "all"),
        Kind(CROSSED, 0.75, "all"),
    ),
)
"""In turn, row by row."""


def _draw(world: World, maker: Maker) -> Task:
    for _ in range(MAX_DRAWS):
        task = maker(world)
        if task is not None and task.steps <= MAX_STEPS:
            return task
    raise AssertionError(f"{maker} makes no task")


def _declared(r: random.Random, kind: Kind, task: Task) -> list[dict[str, Any]]:
    """Tools in a fixed order: all, or those that the task needs with a few others."""
    names = set(TOOLS)
    if kind.tools == "relevant":
        needed = {name for name, _ in task.calls} | set(task.lookups)
        names = needed | set(r.sample(sorted(set(TOOLS) - needed), kind.distractors))
    return [declared for name, declared in declarations().items() if name in names]


def _example(task: Task, number: int) -> list[Item]:
    """A solved task as turns of a conversation."""
    turns: list[Item] = [{"role": "user", "content": task.request}]
    state = Workplace(load(""))
    for name, arguments in task.calls:
        key = f"example_{number}"
        given = json.dumps(arguments)
        turns.append({"type": "function_call", "call_id": key, "name": name, "arguments": given})
        turns.append(
            {"type": "function_call_output", "call_id": key, "output": str(call(state, name, dict(arguments)))}
        )
    return [*turns, {"role": "assistant", "content": "Done."}]


def _row(r: random.Random, split: Split, kind: Kind) -> dict[str, Any]:
    maker = r.choice(kind.makers)
    task = _draw(World(r, split), maker)
    examples: list[Item] = []
    for number in range(kind.examples):
        shown = _draw(World(r, "train"), maker)
        while shown.calls == task.calls:
            shown = _draw(World(r, "train"), maker)
        examples += _example(shown, number)
    turns = [{"role": "system", "content": SYSTEM}, *examples, {"role": "user", "content": task.request}]
    return {
        "responses_create_params": {
            "input": turns,
            "tools": _declared(r, kind, task),
            "parallel_tool_calls": False,
        },
        "ground_truth": [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in task.calls],
        "category": f"workplace_assistant_{task.area}",
        "environment_name": "workplace_assistant",
        "family": maker.__name__,
        "tools": kind.tools,
        "steps": task.steps,
        "difficulty": round(min(1.0, kind.difficulty + 0.05 * (task.steps - 1)), 2),
        "agent_ref": {"type": "responses_api_agents", "name": "workplace_assistant"},
    }


def generate(n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
    """`n` rows, kinds in turn; no request comes twice with the same offer of tools, so row k depends on (seed, split) and those before it."""
    seen: set[tuple[str, str]] = set()
    for k in range(n):
        r = random.Random(f"workplace_assistant|{seed}|{split}|{k}")
        row = _row(r, split, KINDS[k % len(KINDS)])
        for _ in range(100):  # a small pool of tasks runs out: then one comes again
            if (row["responses_create_params"]["input"][-1]["content"], row["tools"]) not in seen:
                break
            row = _row(r, split, KINDS[k % len(KINDS)])
        seen.add((row["responses_create_params"]["input"][-1]["content"], row["tools"]))
        yield row
