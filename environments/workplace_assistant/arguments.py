"""How the tools are declared and what their arguments may be: all text or whole numbers, as the published tasks have them.

A tool's parameters before `*` are declared as required. One that is absent or null all the same is answered by the tool with a
message, as an empty one is: what a model does wrong it is told, and it can go on. Numbers and booleans are taken as the text that
they are written as, so that 30 and "30" are one value.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from environments.workplace_assistant.database import moment
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool, ToolRefused

MAX_TEXT = 10_000
"""Characters of one argument: a forwarded email is a copy of its text."""


def _written(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str | None, BeforeValidator(_written), WithJsonSchema({"type": "string"})]
Whole = Annotated[int | None, WithJsonSchema({"type": "integer"})]
Page = Annotated[Whole, Field(description="Which page of the results, from 1")]
PageSize = Annotated[Whole, Field(description="How many results a page has, 5 if not given")]


@dataclass(frozen=True)
class PublishedTool(Tool):
    """A tool whose declaration names `needed` as required, while the call is answered without them too."""

    needed: tuple[str, ...] = ()

    def declaration(self) -> dict[str, Any]:
        """In the published form."""
        declared = super().declaration()
        for field in declared["parameters"]["properties"].values():
            field.pop("default", None)
        declared["parameters"]["required"] = list(self.needed)
        return declared


def published(area: str, function: Callable[..., Any], *, read_only: bool = False) -> PublishedTool:
    """The tool `<area>_<function>`, refused where the task of its state does not offer it."""
    name = f"{area}_{function.__name__}"
    tool = PublishedTool.of(function, name=name, read_only=read_only)
    assert isinstance(tool, PublishedTool)

    def offered_only(state: Workplace, **arguments: Any) -> Any:
        state.check_offered(name)
        return function(state, **arguments)

    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "state"
    ]
    return dataclasses.replace(tool, function=offered_only, needed=tuple(needed))


def listed(values: tuple[str, ...]) -> str:
    """'a', 'b', 'c'"""
    return ", ".join(f"'{value}'" for value in values)


def is_address(text: str) -> bool:
    """Whether it looks like an email address."""
    return "@" in text and "." in text


def bound(name: str, text: str | None, form: str = "YYYY-MM-DD") -> str:
    """`text` as YYYY-MM-DD HH:MM:SS, which sorts as time does; "" where none is given. Raises ToolRefused."""
    if not text:
        return ""
    value = moment(text)
    if value is None:
        raise ToolRefused(f"argument '{name}': '{text[:40]}' is not a date. Format: {form}")
    return value.strftime("%Y-%m-%d %H:%M:%S")


def day_bounds(low: tuple[str, str | None], high: tuple[str, str | None]) -> Callable[[str | None], bool]:
    """Whether a date or time is on a day from `low` to `high`, both (name of the argument, its value). Raises ToolRefused."""
    first, last = bound(*low)[:10], bound(*high)[:10]

    def within(text: str | None) -> bool:
        day = (text or "")[:10]
        return bool(day or not (first or last)) and first <= day and (not last or day <= last)

    return within


def page_of(name: str, found: list[Any], page: int | None, size: int | None) -> dict[str, Any]:
    """One page of `found` under `name`, with `pagination`; a page beyond the ends is the nearest one. Raises ToolRefused."""
    size = 5 if size is None else size
    if size < 1:
        raise ToolRefused("argument 'page_size': must be at least 1")
    pages = math.ceil(len(found) / size)
    number = min(max(1 if page is None else page, 1), pages)
    shown = found[(number - 1) * size : number * size]
    return {
        name: shown,
        "pagination": {f"total_{name}": len(found), "page": number, "page_size": size, "total_pages": pages},
    }
