"""The raw text of one assistant turn, taken apart: reasoning, answer, tool calls. Linear time, no regular expressions.

Forms (spec/algorithm.md, section 4): `<think>...</think>` and
`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`, in either spacing. vLLM's parsers of
the same forms want its request classes and its process; this one serves every engine alike. A well-formed turn gives the calls that
vLLM's `qwen3_coder` gives (a test compares them). Differences, all on purpose:
- what is malformed stays text, and is never a call: vLLM also takes a call that is cut off, `<function=` without `<tool_call>`, two
  functions or other text in one block, and ends a value whose closing tag is missing at the next `<parameter=`;
- text after a call is kept; vLLM drops it, and drops a malformed block;
- a JSON integer of more than 64 bits becomes a float.
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


def _value(text: str, properties: dict[str, Any], key: str) -> Any:
    """A parameter's value: verbatim where it is not declared or a string, else JSON where it is JSON, else verbatim."""
    if text.startswith("\n"):
        text = text[1:]
    if text.endswith("\n"):
        text = text[:-1]
    schema = properties.get(key)
    kind = schema.get("type") if isinstance(schema, dict) else None
    if key not in properties or kind == "string" or (isinstance(kind, list) and "string" in kind and text != "null"):
        return text
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


class _Calls:
    """Reads calls from left to right. A place is passed once: what was no call is not looked at again."""

    def __init__(self, text: str, schemas: dict[str, dict[str, Any]]) -> None:
        self.text, self.schemas = text, schemas
        self.place = 0
        self._gone: set[str] = set()  # tags that do not come any more

    def _find(self, tag: str) -> int:
        if tag in self._gone:
            return -1
        found = self.text.find(tag, self.place)
        if found < 0:
            self._gone.add(tag)
        return found

    def _skip_space(self) -> None:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def _take(self, tag: str) -> bool:
        self._skip_space()
        if not self.text.startswith(tag, self.place):
            return False
        self.place += len(tag)
        return True

    def _name(self) -> str | None:
        """What stands up to `>`."""
        end = self._find(">")
        name = self.text[self.place : end].strip()
        if end < 0 or not name or "<" in name:
            return None
        self.place = end + 1
        return name

    def next_start(self) -> int:
        """Where the next block starts, or -1. The place is then behind its tag."""
        start = self._find(CALL_OPEN)
        if start >= 0:
            self.place = start + len(CALL_OPEN)
        return start

    def call(self) -> tuple[str, str] | None:
        """The call whose opening tag was just passed, or None where it is malformed."""
        if not self._take(FUNCTION_OPEN) or (name := self._name()) is None:
            return None
        spans: list[tuple[str, int, int]] = []
        while self._take(PARAMETER_OPEN):
            key = self._name()
            if key is None or (end := self._find(PARAMETER_CLOSE)) < 0:
                return None
            spans.append((key, self.place, end))
            self.place = end + len(PARAMETER_CLOSE)
        if not self._take(FUNCTION_CLOSE) or not self._take(CALL_CLOSE):
            return None
        properties = self.schemas.get(name, {})
        arguments = {key: _value(self.text[start:end], properties, key) for key, start, end in spans}
        try:
            return name, orjson.dumps(arguments).decode()
        except orjson.JSONEncodeError:  # nested too deep
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
    calls = _Calls(turn.content, tool_schemas(tools))
    kept, at = [], 0
    while (start := calls.next_start()) >= 0:
        call = calls.call()
        if call is not None:
            kept.append(turn.content[at:start])
            turn.calls.append(call)
            at = calls.place
    kept.append(turn.content[at:])
    if turn.calls:
        turn.content = "".join(kept).strip()
    return turn
