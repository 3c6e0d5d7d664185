"""Checks of what an environment brings besides its verdict: files, generated tasks, OpenAPI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson

from gym_servers.checks.bench import Bench, Finding, found
from gym_servers.checks.probes import turns
from gym_servers.checks.rewards import distinct
from gym_servers.environment import ConversationEnvironment, Split
from gym_servers.openapi import gaps, openapi
from gym_servers.protocol import OmnigymError, RowError
from gym_servers.registry import about, environment_class, load_environment

DISTINCT_SHARE = 0.9
Rows = list[dict[str, Any]]


def check_files(name: str) -> Finding:
    """What stands beside the class."""
    cls, problems = environment_class(name), list[str]()
    description = about(cls).get("description")
    if not isinstance(description, str) or not description.strip():
        problems.append("environment.yaml has no 'description'")
    for file in ("README.md", "cases.jsonl", "environment.yaml"):
        path = cls.folder() / file
        if not path.is_file() or not path.read_text().strip():
            problems.append(f"{file} is missing or empty")
    return found("files", problems, str(cls.folder()))


def generated(name: str, settings: dict[str, Any], n: int, seed: int, split: Split) -> Rows:
    """Rows, in a process of its own: strings hash otherwise there."""
    return list(load_environment(name, settings).generate(n, seed, split))


async def _elsewhere(bench: Bench, n: int, seed: int, split: Split) -> Rows:
    environment = bench.environment
    args = (environment.name, environment.settings.model_dump(), n, seed, split)
    rows: Rows = await bench.pool.run(
        "gym_servers.checks.tasks:generated", args, cpu_seconds=120.0, wall_seconds=600.0, memory_mb=4096
    )
    return rows


def _row_problems(bench: Bench, row: dict[str, Any]) -> list[str]:
    problems = []
    try:
        bench.environment.check_row(row)
        orjson.dumps(row)
    except (RowError, TypeError) as error:
        problems.append(str(error))
    ref = row.get("agent_ref")
    if not isinstance(ref, dict) or ref.get("name") != bench.environment.name:
        problems.append(f"'agent_ref.name' is not '{bench.environment.name}'")
    difficulty = row.get("difficulty")
    if not isinstance(difficulty, float | int) or not 0.0 <= difficulty <= 1.0:
        problems.append(f"'difficulty' must be a number in [0, 1], found {difficulty!r}")
    if not any(turns(row)):
        problems.append("'responses_create_params.input' is empty")
    declared = {str(tool.get("name")) for tool in (row.get("responses_create_params") or {}).get("tools") or []}
    if unknown := declared - set(bench.tools) if bench.tools else set():
        problems.append(f"'responses_create_params.tools' has {sorted(unknown)}, which the environment does not")
    if bench.tools and not declared:
        problems.append("'responses_create_params.tools' is empty, though the environment has tools")
    return problems


def _asked(bench: Bench, row: dict[str, Any]) -> list[str]:
    """What makes a task another one: its prompt; where a user tells what it wants only in the conversation, the whole row."""
    if isinstance(bench.environment, ConversationEnvironment):
        return [json.dumps({key: value for key, value in row.items() if key != "task_id"}, sort_keys=True)]
    return turns(row)


async def check_tasks(bench: Bench, train: Rows, heldout: Rows, seed: int) -> list[Finding]:
    """Generated rows are valid and varied; the same again, here and elsewhere; train and held-out share no prompt."""
    problems = [
        f"{split} task {k}: {problem}"
        for split, rows in (("train", train), ("heldout", heldout))
        for k, row in enumerate(rows)
        for problem in _row_problems(bench, row)
    ]
    prompts = [_asked(bench, row) for row in train]
    if distinct(prompts) < DISTINCT_SHARE * len(train):
        problems.append(f"only {distinct(prompts)} different prompts in {len(train)} tasks")
    levels = sorted(
        {round(float(row["difficulty"]), 3) for row in train if isinstance(row.get("difficulty"), float | int)}
    )
    if len(levels) < 3:
        problems.append(f"'difficulty' takes {len(levels)} values: at least 3 are wanted")
    span = f"{levels[0]:g} to {levels[-1]:g}" if levels else "none"
    valid = found("tasks", problems, f"{len(train)} + {len(heldout)}, {distinct(prompts)} prompts, difficulty {span}")

    unstable = []
    few = max(1, len(train) // 3)
    for split, rows in (("train", train), ("heldout", heldout)):
        if list(bench.environment.generate(few, seed, split)) != rows[:few]:  # type: ignore[arg-type]
            unstable.append(f"{split}: the first {few} tasks differ from those of {len(rows)}")
        if await _elsewhere(bench, few, seed, split) != rows[:few]:  # type: ignore[arg-type]
            unstable.append(f"{split}: another process makes other tasks of the same seed")
    if list(bench.environment.generate(few, seed + 1, "train")) == train[:few]:
        unstable.append("another seed makes the same tasks")
    shared = {str(p) for p in prompts} & {str(_asked(bench, row)) for row in heldout}
    disjoint = [f"a prompt of both: {sorted(shared)[0][-200:]}"] if shared else []
    return [
        valid,
        found("same tasks again", unstable, f"first {few} of each split, here and in another process"),
        found("train and held-out", disjoint, f"no prompt in common, {len(train)} and {len(heldout)} tasks"),
    ]


def check_openapi(bench: Bench) -> Finding:
    """The environment's part of /openapi.json leaves nothing out."""
    try:
        document = openapi([bench.environment])
    except OmnigymError as error:
        return Finding("OpenAPI", "wrong", str(error))
    return found("OpenAPI", gaps(document), f"{len(document['paths'])} paths")


async def rows_of(bench: Bench, n: int, seed: int, split: Split) -> Rows:
    """Generated rows. Raises OmnigymError where there is no generator."""
    return await asyncio.to_thread(lambda: list(bench.environment.generate(n, seed, split)))
