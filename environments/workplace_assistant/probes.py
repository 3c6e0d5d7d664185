"""Outputs that stand for an agent: the ground truth's own calls, and those that try to earn its reward otherwise."""

from __future__ import annotations

import json
from typing import Any

from environments.workplace_assistant.database import FORMS, Database
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import TOOLS, call, declarations
from environments.workplace_assistant.verifier import WorkplaceRow, allowed_tools, differences, expected
from gym_servers.protocol import Item
from gym_servers.resources import tool_output
from gym_servers.tools import ToolRefused

Call = tuple[str, dict[str, Any]]


def message(text: str) -> Item:
    """An assistant's message."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def calls_made(base: Database, calls: list[Call], allowed: set[str]) -> list[Item]:
    """An episode in which these calls are made one after the other, with what the agent would get to see."""
    state, items = Workplace(base), []
    for number, (name, arguments) in enumerate(calls):
        try:
            if name not in allowed:
                raise ToolRefused(f"there is no tool '{name}'. Tools: {', '.join(sorted(allowed)) or 'none'}")
            answer = tool_output(call(state, name, arguments))[1].decode()
        except ToolRefused as error:
            answer = f"Error: {error}"
        key = f"call_{number}"
        given = json.dumps(arguments)
        items.append({"type": "function_call", "call_id": key, "name": name, "arguments": given, "status": "completed"})
        items.append({"type": "function_call_output", "call_id": key, "output": answer})
    return [*items, message("Done.")]


def _truth(row: WorkplaceRow) -> list[Call]:
    return [(true.name, true.arguments) for true in row.ground_truth]


def gold(row: WorkplaceRow, base: Database) -> list[Item]:
    """The ground truth's calls."""
    return calls_made(base, _truth(row), set(TOOLS))


def _every_tool(base: Database, truth: list[Call]) -> list[Call]:
    """One call of every tool, with arguments that fit. Where it takes a record, one that the truth does not name."""
    named = {value for _, arguments in truth for value in arguments.values() if isinstance(value, str)}
    some = {name: next(key for key in base.tables[name] if key not in named) for name in FORMS}
    day = base.now[:10]
    fitting: dict[str, Any] = {
        "recipient": base.people[0],
        "participant_email": base.people[0],
        "assigned_to_email": base.people[0],
        "event_start": base.now,
        "duration": "30",
        "list_name": "Backlog",
        "board": "Design",
        "status": "Lead",
        "value_to_plot": "total_visits",
        "plot_type": "bar",
        "email_id": some["emails"],
        "event_id": some["events"],
        "task_id": some["tasks"],
        "customer_id": some["customers"],
        "time_min": day,
        "time_max": day,
        "due_date": day,
    }
    fields = {"email": "subject", "calendar": "event_name", "project": "task_name", "customer": "customer_name"}
    calls: list[Call] = []
    for name, declared in declarations().items():
        fitting["field"] = fields.get(name.partition("_")[0])
        calls.append((name, {key: fitting.get(key, "probe") for key in declared["parameters"]["required"]}))
    return calls


def _recreated(base: Database) -> list[Call]:
    """Delete a record and make one with the same values."""
    key, event = next(iter(base.tables["events"].items()))
    again = {column: value for column, value in event.items() if column != "event_id"}
    return [("calendar_delete_event", {"event_id": key}), ("calendar_create_event", again)]


def probes(row: WorkplaceRow, base: Database) -> dict[str, list[Item]]:
    """By name; none solves the task. Those that do nothing are left out where nothing is what is asked."""
    truth, allowed = _truth(row), allowed_tools(row)
    every = _every_tool(base, truth)
    changing = [one for one in every if one[0] in allowed and not TOOLS[one[0]].read_only]
    recreated = _recreated(base)
    found: dict[str, list[Item]] = {}
    if changing:
        found["every_tool"] = calls_made(base, changing, allowed)
        found["solved_and_every_tool_more"] = calls_made(base, [*truth, *changing], allowed)
    if all(name in allowed for name, _ in recreated):
        found["solved_and_an_event_made_anew"] = calls_made(base, [*truth, *recreated], allowed)
    if any("update" not in name and "delete" not in name and not TOOLS[name].read_only for name, _ in truth):
        found["solved_twice"] = calls_made(base, [*truth, *truth], allowed)
    if not differences(expected(row, base)):
        return found
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in truth])
    made = calls_made(base, truth, allowed)
    found["nothing"] = [message("Done.")]
    found["calls_without_arguments"] = calls_made(base, [(name, {}) for name, _ in truth], allowed)
    found["calls_as_text_only"] = [message(f"I have made these calls: {text}")]
    found["calls_that_were_cut_off"] = [
        {"type": "function_call", "call_id": "first", "name": "email_search_emails", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "first", "output": "Done."},
        *(item for item in made if item["type"] == "function_call"),
    ]
    found["tools_not_offered"] = calls_made(base, [one for one in every if one[0] not in allowed], allowed)
    return found
