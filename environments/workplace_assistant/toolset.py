"""All tools of the workplace, and a call of one outside a server."""

from __future__ import annotations

from functools import cache
from typing import Any

from environments.workplace_assistant import analytics, calendar, customers, email, projects
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool, ToolRefused, check_tools

TOOLS: dict[str, Tool] = check_tools(
    "workplace_assistant", [*email.TOOLS, *calendar.TOOLS, *analytics.TOOLS, *projects.TOOLS, *customers.TOOLS]
)


@cache
def declarations() -> dict[str, dict[str, Any]]:
    """The tools by name in the form of `responses_create_params.tools`."""
    return {name: tool.declaration() for name, tool in TOOLS.items()}


def call(state: Workplace, name: str, arguments: dict[str, Any]) -> Any:
    """What tool `name` answers; `state` is changed as it says. Raises ToolRefused, which changes nothing."""
    tool = TOOLS.get(name)
    if tool is None:
        raise ToolRefused(f"there is no tool '{name}'")
    return tool.function(state, **tool.parse(arguments))
