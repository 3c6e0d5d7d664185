"""The verdict: what the agent's calls have changed must be what the ground truth's calls change (spec: workplace_assistant).

Two states over one database are equal if they differ from it in the same way: the same records deleted, the same changed to the same
values, the same made. What was made is compared as a multiset and without its ids, so neither the order of independent calls nor
the numbers that the system gave matter. Text is compared without case, except where a column has fixed values.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from environments.workplace_assistant.database import FORMS, Database, Record
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import TOOLS, call
from gym_servers.environment import Row
from gym_servers.protocol import Item, Verdict, call_arguments, function_calls
from gym_servers.tools import ToolRefused

EXACT = frozenset({"status", "list_name", "board"})
MAX_SHOWN = 3
"""How many differences an explanation names."""


class TrueCall(BaseModel):
    """One call of the ground truth. arguments: a JSON object, as text in published rows."""

    model_config = ConfigDict(extra="allow")
    name: str
    arguments: dict[str, Any]

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TOOLS:
            raise ValueError(f"there is no tool '{value[:64]}'")
        return value

    @field_validator("arguments", mode="before")
    @classmethod
    def _object(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None

    @model_validator(mode="after")
    def _taken(self) -> TrueCall:
        try:
            TOOLS[self.name].parse(self.arguments)
        except ToolRefused as error:
            raise ValueError(str(error)) from None
        return self


class WorkplaceRow(Row):
    """A published row, or one of ours."""

    ground_truth: list[TrueCall] = Field(max_length=100)
    category: str = ""

    @model_validator(mode="after")
    def _offered(self) -> WorkplaceRow:
        offered = allowed_tools(self)
        for true in self.ground_truth:
            if true.name not in offered:
                raise ValueError(
                    f"'ground_truth' calls '{true.name}', which 'responses_create_params.tools' does not offer"
                )
        return self


def allowed_tools(row: Row) -> set[str]:
    """Names of the tools that the row declares; all of them where it says nothing of tools."""
    declared = row.responses_create_params.get("tools")
    if not isinstance(declared, list):
        return set(TOOLS)
    return {str(tool.get("name")) for tool in declared if isinstance(tool, dict)} & set(TOOLS)


def opened(row: Row, base: Database) -> Workplace:
    """The state at the start of an episode."""
    allowed = allowed_tools(row)
    return Workplace(base, None if len(allowed) == len(TOOLS) else sorted(allowed))


def made_calls(output: list[Item]) -> list[Item]:
    """The calls that were made. Where the output has what tools answered, a call without an answer was not."""
    answered = {str(item.get("call_id")) for item in output if item.get("type") == "function_call_output"}
    calls = function_calls(output)
    return [item for item in calls if str(item.get("call_id")) in answered] if answered else calls


def replayed(row: Row, output: list[Item], base: Database, max_chars: int) -> Workplace:
    """The state after the calls of `output`, from the start. A call that a tool or the agent refuses changes nothing."""
    state = opened(row, base)
    for item in made_calls(output):
        name = str(item.get("name"))
        if name not in TOOLS or TOOLS[name].read_only or len(str(item.get("arguments")).encode()) > max_chars:
            continue
        if (arguments := call_arguments(item)) is not None:
            with contextlib.suppress(ToolRefused):
                call(state, name, arguments)
    return state


def expected(row: WorkplaceRow, base: Database) -> Workplace:
    """The state after the ground truth."""
    state = Workplace(base)
    for true in row.ground_truth:
        if not TOOLS[true.name].read_only:
            try:
                call(state, true.name, true.arguments)
            except ToolRefused:  # as in the reference: what its tool refuses changes nothing
                continue
    return state


def _compared(record: Record, key: str) -> dict[str, str | None]:
    return {
        column: value if value is None or column in EXACT else value.lower()
        for column, value in record.items()
        if column != key
    }


def differences(state: Workplace) -> Counter[str]:
    """In what `state` differs from its database, one text a record or plot, equal for what counts as equal."""
    found: Counter[str] = Counter(f"made plot {plot.lower()}" for plot in state.plots)
    for table, changes in state.changes.items():
        key, base = FORMS[table].key, state.base.tables[table]
        for name, record in changes.items():
            before = base.get(name)
            if record is None:
                found[f"deleted {key} {name}"] += 1
                continue
            after = _compared(record, key)
            if before is None:
                found[f"made in {table}: {json.dumps(after, sort_keys=True)}"] += 1
                continue
            was = _compared(before, key)
            changed = {column: value for column, value in after.items() if value != was[column]}
            if changed:
                found[f"changed {key} {name}: {json.dumps(changed, sort_keys=True)}"] += 1
    return found


def _shown(title: str, some: Counter[str]) -> str:
    texts = [text[:200] for text in list(some.elements())[:MAX_SHOWN]]
    more = some.total() - len(texts)
    return f"{title}: {'; '.join(texts)}{f' and {more} more' if more else ''}" if texts else ""


def verdict(row: WorkplaceRow, state: Workplace) -> Verdict:
    """1.0 where `state` differs from its database as the ground truth's does, else 0.0."""
    wanted, got = differences(expected(row, state.base)), differences(state)
    missing, unexpected = wanted - got, got - wanted
    parts = {"expected": wanted.total(), "missing": missing.total(), "unexpected": unexpected.total()}
    if not missing and not unexpected:
        return Verdict(reward=1.0, explanation=f"all {wanted.total()} changes and no other were made", parts=parts)
    said = ". ".join(filter(None, [_shown("missing", missing), _shown("not asked", unexpected)]))
    return Verdict(reward=0.0, explanation=said, parts=parts)
