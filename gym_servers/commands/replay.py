"""`omnigym replay FILE --row N`: one recorded rollout, played again and held against what was recorded."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from gym_servers.commands.verify import parse_settings
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.registry import load_environment
from gym_servers.replay import Replay
from gym_servers.replay import replay as play
from gym_servers.rows import parse_line

SHOWN = 400
"""Characters of one text that are shown."""


def read_rollout(path: Path, row: int) -> Rollout:
    """Rollout number `row` of a JSONL file, plain or gzipped as a run folder has it. Raises OmnigymError that names the line."""
    if not path.is_file():
        raise OmnigymError(f"no file '{path}'")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    number = -1
    try:
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(line for line in lines if line.strip()):
                if number == row:
                    return _rollout(parse_line(line, f"{path}, row {row}"), f"{path}, row {row}")
    except (OSError, EOFError) as error:
        raise OmnigymError(f"'{path}' cannot be read: {error}") from None
    raise OmnigymError(f"'{path}' has no row {row}: it has {number + 1}, counted from 0")


def _rollout(record: dict[str, Any], where: str) -> Rollout:
    record = {key: value for key, value in record.items() if key != "segments"}  # tokens are elsewhere in a run folder
    try:
        rollout = Rollout.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise OmnigymError(f"{where}: not a rollout: field '{field}': {first['msg']}") from None
    if not rollout.task:
        raise OmnigymError(f"{where}: the rollout has no field 'task', so its environment cannot be seeded")
    return rollout


def _cut(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def report(recorded: Rollout, again: Replay) -> list[str]:
    """Lines that show the replay beside the record; what differs is marked with `!`."""
    lines = [f"task {recorded.task_id} of '{recorded.environment}', attempt {recorded.attempt}"]
    for number, call in enumerate(again.calls):
        lines.append(f"call {number}: {call.name}({_cut(call.arguments)})")
        lines.append(f"    recorded: {_cut(call.recorded)}")
        same = call.output == call.recorded
        lines.append("    now:      the same" if same else f"  ! now:      {_cut(call.output)}")
    if again.unmade:
        lines.append(f"{again.unmade} calls were recorded without an answer and not made")
    lines.append("state at the end:" if again.changes else "state at the end: as at the start")
    lines += [f"    {_cut(change)}" for change in again.changes]
    if recorded.failure is not None:
        lines.append(f"verdict recorded: failure {recorded.failure.kind}: {_cut(recorded.failure.message)}")
    else:
        lines.append(f"verdict recorded: {recorded.reward} {_cut(recorded.explanation)}")
    if again.graded_in_group:
        lines.append("verdict now:      none: it was graded with its group")
    elif again.failure is None:
        lines.append(f"verdict now:      {again.rollout.reward} {_cut(again.rollout.explanation)}")
    lines += [f"! differs: {_cut(difference)}" for difference in again.differences(recorded)]
    return lines


def replay(
    file: Annotated[
        Path, typer.Argument(help="Rollouts: of `omnigym rollout --out`, or rollouts/*.jsonl.gz of a run.")
    ],
    row: Annotated[int, typer.Option(min=0, help="Which rollout of the file, from 0.")] = 0,
    settings: Annotated[list[str], typer.Option("--set", help="key=value of the environment's settings.")] = [],  # noqa: B006
) -> None:
    """Play a rollout again: its tool calls on a fresh state, its verdict anew. Exit status 1 where anything differs."""
    recorded = read_rollout(file, row)
    environment = load_environment(recorded.environment, parse_settings(settings))
    again = asyncio.run(play(environment, recorded))
    for line in report(recorded, again):
        typer.echo(line)
    if again.differences(recorded):
        raise typer.Exit(1)
    typer.echo("the replay is as recorded")


def register(app: typer.Typer) -> None:
    """Add `omnigym replay`."""
    app.command("replay")(replay)
