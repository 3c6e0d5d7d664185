"""Checks of bad input: a bad row is refused by an error that names environment and field, a bad output earns nothing; neither
breaks the verifier."""

from __future__ import annotations

from typing import Any

from gym_servers.checks.bench import Bench, Broken, Finding, NotAsked, Refused, Task, found
from gym_servers.checks.probes import message
from gym_servers.environment import Row
from gym_servers.protocol import Item, Verdict


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


WRONG: dict[str, Any] = {
    "null": None,
    "a number": 7,
    "a huge number": 10**30,
    "a text": "x",
    "an empty list": [],
    "an object": {"x": None},
    "true": True,
    "200 levels of lists": _nested(200),
    "100 kB of text": "9(" * 50_000,
}
"""What a field may hold instead, as JSON; deeper nesting is refused where a body is read."""

ODD_OUTPUTS: dict[str, list[Item]] = {
    "an empty item": [{}],
    "a message without content": [{"type": "message", "role": "assistant"}],
    "a message whose content is null": [{"type": "message", "role": "assistant", "content": None}],
    "a message whose content is a number": [{"type": "message", "role": "assistant", "content": [7, None]}],
    "a message whose text is null": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": None}]}
    ],
    "an unknown item": [{"type": "x", "x": _nested(200)}],
    "a call without a name": [{"type": "function_call", "arguments": "{}", "call_id": "c"}],
    "a call whose arguments are null": [{"type": "function_call", "name": "x", "arguments": None, "call_id": "c"}],
    "100,000 brackets": message("[" * 100_000),
    "a surrogate and a zero byte": message("\ud800\x00"),
}


def _fields(bench: Bench, row: dict[str, Any]) -> list[str]:
    declared = [name for name in bench.environment.row_type.model_fields if name not in Row.model_fields]
    return list(dict.fromkeys([*declared, *row]))


async def check_rows(bench: Bench, tasks: list[Task]) -> Finding:
    """Each field of a row missing in turn, and of a wrong type. One task of each shape of row is tried."""
    problems, skipped, tried = list[str](), list[NotAsked](), 0
    shapes = {tuple(sorted(task.row)): task for task in tasks}
    required = {name for name, field in bench.environment.row_type.model_fields.items() if field.is_required()}
    for task in list(shapes.values())[:3]:
        output = task.gold or message("x")
        for field in _fields(bench, task.row):
            without = {key: value for key, value in task.row.items() if key != field}
            rows = {"missing": without, **{what: {**task.row, field: value} for what, value in WRONG.items()}}
            for what, row in rows.items():
                tried += 1
                outcome = await bench.grade(row, output)
                if isinstance(outcome, NotAsked):
                    skipped.append(outcome)
                elif isinstance(outcome, Broken):
                    problems.append(f"field '{field}' is {what}: {outcome.message[:200]}")
                elif isinstance(outcome, Verdict) and what == "missing" and field in required:
                    problems.append(f"field '{field}' is missing, and the row is graded all the same")
                elif isinstance(outcome, Verdict) and "unverifiable_output" in outcome.parts:
                    problems.append(f"field '{field}' is {what}: breaks the verifier: {outcome.explanation[:200]}")
                elif isinstance(outcome, Refused) and not (
                    f"'{bench.environment.name}'" in outcome.message and field in outcome.message
                ):
                    problems.append(
                        f"field '{field}' is {what}: the error names not environment and field: {outcome.message[:200]}"
                    )
    return found("malformed rows", problems, f"{tried} rows refused by name, or graded", skipped, tried)


async def check_outputs(bench: Bench, tasks: list[Task]) -> Finding:
    """Outputs that no model server should send, and some that a policy may."""
    problems, skipped = list[str](), list[NotAsked]()
    for what, output in ODD_OUTPUTS.items():
        outcome = await bench.grade(tasks[0].row, output)
        if isinstance(outcome, NotAsked):
            skipped.append(outcome)
        elif isinstance(outcome, Broken):
            problems.append(f"{what}: {outcome.message[:200]}")
        elif isinstance(outcome, Verdict) and "unverifiable_output" in outcome.parts:
            problems.append(f"{what}: breaks the verifier: {outcome.explanation[:200]}")
        elif isinstance(outcome, Verdict) and outcome.reward >= bench.full:
            problems.append(f"{what}: earns the full reward")
    return found("malformed outputs", problems, f"{len(ODD_OUTPUTS)} outputs", skipped, len(ODD_OUTPUTS))
