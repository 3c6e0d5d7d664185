"""The raw text of one assistant turn, taken apart: reasoning, answer, tool calls. Linear time, no regular expressions.

Forms (spec/algorithm.md, section 4): `<think>...</think>` and
`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`, in either spacing. vLLM's parsers of
the same forms (`qwen3_coder`, `qwen3`) want its request classes and its process; this one serves every engine alike.
What is malformed stays text: a call that is cut off or has no function is part of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from gym_servers.protocol import Item

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
FUNCTION_OPEN, FUNCTION_CLOSE = "<function=", "</function>"
PARAMETER_OPEN, PARAMETER_CLOSE = "<parameter=", "</parameter>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass
class Turn:
    """reasoning: the blocks' texts in order. calls: (name, arguments as JSON text)."""

    reasoning: list[str] = field(default_factory=list)
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def split_reasoning(text: str) -> tuple[list[str], str]:
    """Reasoning blocks and the rest, both verbatim. A block that is never closed takes everything after it."""
    blocks: list[str] = []
    rest: list[str] = []
    at = 0
    while (start := text.find(THINK_OPEN, at)) >= 0:
        rest.append(text[at:start])
        end = text.find(THINK_CLOSE, start)
        if end < 0:
            blocks.append(text[start + len(THINK_OPEN) :])
            return blocks, "".join(rest)
        blocks.append(text[start + len(THINK_OPEN) : end])
        at = end + len(THINK_CLOSE)
    rest.append(text[at:])
    return blocks, "".join(rest)


def tool_schemas(tools: list[Item] | None) -> dict[str, dict[str, Any]]:
    """Parameter schemas by tool name, from chat or Responses tools."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools or []:
        function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            found[function["name"]] = properties if isinstance(properties, dict) else {}
    return found


def _value(text: str, schema: Any) -> Any:
    """A parameter's value: verbatim where the schema says string, else JSON where it is JSON, else verbatim."""
    if text.startswith("\n"):
        text = text[1:]
    if text.endswith("\n"):
        text = text[:-1]
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string" or (isinstance(kind, list) and "string" in kind and text != "null"):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _call(body: str, schemas: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """One call from between its tags, or None where it is malformed."""
    body = body.strip()
    name_end = body.find(">")
    if not body.startswith(FUNCTION_OPEN) or name_end < 0:
        return None
    name = body[len(FUNCTION_OPEN) : name_end].strip()
    close = body.rfind(FUNCTION_CLOSE)
    if not name or close < name_end or body[close + len(FUNCTION_CLOSE) :].strip():
        return None
    inner, properties = body[name_end + 1 : close], schemas.get(name, {})
    arguments: dict[str, Any] = {}
    at = 0
    while (start := inner.find(PARAMETER_OPEN, at)) >= 0:
        key_end = inner.find(">", start)
        end = inner.find(PARAMETER_CLOSE, key_end)
        if inner[at:start].strip() or key_end < 0 or end < 0:
            return None
        key = inner[start + len(PARAMETER_OPEN) : key_end].strip()
        arguments[key] = _value(inner[key_end + 1 : end], properties.get(key))
        at = end + len(PARAMETER_CLOSE)
    if inner[at:].strip():
        return None
    try:
        return name, orjson.dumps(arguments).decode()
    except (orjson.JSONEncodeError, RecursionError):
        return None


def parse_turn(text: str, tools: list[Item] | None, *, reasoning: bool) -> Turn:
    """Take `text` (without its end token) apart. Calls are looked for only where tools were declared.

    The answer keeps its white space, except that next to calls.
    """
    turn = Turn(content=text)
    if reasoning:
        turn.reasoning, turn.content = split_reasoning(text)
    if not tools:
        return turn
    schemas = tool_schemas(tools)
    source, kept, at = turn.content, [], 0
    while (start := source.find(CALL_OPEN, at)) >= 0:
        end = source.find(CALL_CLOSE, start)
        if end < 0:
            break
        call = _call(source[start + len(CALL_OPEN) : end], schemas)
        if call is None:
            kept.append(source[at : end + len(CALL_CLOSE)])
        else:
            kept.append(source[at:start])
            turn.calls.append(call)
        at = end + len(CALL_CLOSE)
    kept.append(source[at:])
    if turn.calls:
        turn.content = "".join(kept).strip()
    return turn
