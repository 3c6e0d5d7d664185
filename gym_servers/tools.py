"""Tools of an environment: a function, the schema that its signature makes, and the check of a call's arguments.

    def deposit(state: Account, amount: Annotated[int, Field(gt=0, description="in cents")]) -> str:
        "Put money into the account."

`Tool.of(deposit)` is served as `POST /<environment>/deposit`, its body the arguments. A first parameter named `state` gets the
session's state, which is a copy of its own for the call: what a tool did before it raised never happened, and what a read-only
tool changed is not kept. A tool runs in the server's process, so it is bounded code like `Environment.quick`; one that waits (for a
sandbox, another server) is an async function. Arguments are checked as pydantic checks them: "30" is fine for an int, a name that is
not declared is refused.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gym_servers.protocol import OmnigymError

RESERVED = frozenset(
    {
        "verify",
        "verify_group",
        "seed_session",
        "user_turn",
        "tools",
        "run",
        "close",
        "healthz",
        "readyz",
        "metrics",
        "environments",
        "docs",
        "openapi.json",
    }
)
"""Paths of servers: never tools, whatever a row or an environment calls them."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_tool_name(name: str) -> bool:
    """Whether a tool may be called so: OpenAI's rule for function names, and no path of a server."""
    return bool(_NAME.fullmatch(name)) and name not in RESERVED


class ToolRefused(OmnigymError):
    """A tool does not accept what it was asked: the model sees the message as the tool's output."""


def _without_titles(schema: Any) -> Any:
    """`schema` without the titles that pydantic derives from names. A property that is called title stays."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _without_titles(value)
        for key, value in schema.items()
        if key != "title" or not isinstance(value, str)
    }


@dataclass(frozen=True)
class Tool:
    """One tool. arguments: the model of its arguments. with_state: whether the function's first argument is the state."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]
    with_state: bool
    read_only: bool

    @classmethod
    def of(cls, function: Callable[..., Any], *, name: str | None = None, read_only: bool = False) -> Tool:
        """The tool that `function` is, by its signature and docstring. Raises OmnigymError where it cannot be one."""
        name = name or function.__name__
        if name in RESERVED:
            raise OmnigymError(f"tool '{name}': the server has a path of that name: choose another")
        if not is_tool_name(name):
            raise OmnigymError(f"tool '{name}': a name has letters, digits, '_' and '-', at most 64")
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        parameters = list(inspect.signature(function).parameters.values())
        with_state = bool(parameters) and parameters[0].name == "state"
        for parameter in parameters[1 if with_state else 0 :]:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise OmnigymError(f"tool '{name}': parameter '{parameter.name}' must be a named one")
            if parameter.name not in hints:
                raise OmnigymError(f"tool '{name}': parameter '{parameter.name}' has no type: annotate it")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        description = inspect.cleandoc(function.__doc__ or "")
        return cls(name, description, function, arguments, with_state, read_only)

    def declaration(self) -> dict[str, Any]:
        """The tool in the form of `responses_create_params.tools`."""
        schema = _without_titles(self.arguments.model_json_schema())
        schema = {"type": "object", "properties": {}, "required": [], **schema}
        schema.pop("description", None)
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": schema,
            "strict": False,
        }

    def parse(self, body: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call. Raises ToolRefused that names the first one that is wrong."""
        try:
            parsed = self.arguments.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "(all)"
            known = ", ".join(self.arguments.model_fields) or "none"
            raise ToolRefused(f"tool '{self.name}': argument '{where}': {first['msg']}. Arguments: {known}") from None
        return {key: getattr(parsed, key) for key in self.arguments.model_fields}

    async def call(self, state: Any, arguments: dict[str, Any]) -> Any:
        """The function's result. Raises what it raises."""
        result = self.function(state, **arguments) if self.with_state else self.function(**arguments)
        return await result if inspect.isawaitable(result) else result


def check_tools(environment: str, tools: typing.Sequence[Tool]) -> dict[str, Tool]:
    """Tools by name. Raises OmnigymError where two have one name."""
    found: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in found:
            raise OmnigymError(f"environment '{environment}': two tools are called '{tool.name}'")
        found[tool.name] = tool
    return found
