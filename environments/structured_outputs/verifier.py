"""The verdict: a pure function of a row and the Responses output items (spec: structured_outputs)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from environments.structured_outputs.coercion import coerce_csv, coerce_xml
from environments.structured_outputs.formats import PARSERS, ParseError, parse_json
from environments.structured_outputs.schemas import SchemaError, check_schema, compiled
from gym_servers.environment import Row, Settings
from gym_servers.protocol import Item, RowError, Verdict, final_text, function_calls, strip_reasoning


class StructuredSettings(Settings):
    """Settings of this environment."""

    xml_coerce_types: bool = True
    """Read XML text as the type that the schema asks for; False: all text stays strings."""
    csv_coerce_types: bool = True
    """The same for CSV cells."""


class StructuredRow(Row):
    """A NeMo-Gym structured-outputs row."""

    schema_str: str
    schema_type: Literal["json", "yaml", "toml", "xml", "csv"] = "json"
    response_mode: Literal["text", "tool_call"] = "text"
    tool_name: str | None = None
    tool_payload_key: str | None = None
    tool_schema_mode: str | None = None

    @field_validator("schema_str")
    @classmethod
    def _is_a_schema(cls, value: str) -> str:
        check_schema(value)
        return value


def zero(kind: str, explanation: str) -> Verdict:
    """Reward 0 with the reason in `parts.error_type`."""
    return Verdict(reward=0.0, explanation=explanation, parts={"error_type": kind})


def payload(row: StructuredRow, output: list[Item], settings: StructuredSettings) -> Any:
    """The value that the answer carries, before coercion; a Verdict where there is none."""
    if row.response_mode == "tool_call":
        calls = function_calls(output)
        names = ", ".join(str(call.get("name"))[:80] for call in calls[:8])
        if not calls:
            return zero("missing_tool_call", "the answer calls no tool")
        if len(calls) > 1:
            return zero("multiple_tool_calls", f"exactly one tool call is asked, got {len(calls)}: {names}")
        if row.tool_name is not None and calls[0].get("name") != row.tool_name:
            return zero("wrong_tool_name", f"tool '{row.tool_name}' is asked, got '{names}'")
        arguments = calls[0].get("arguments")
        if isinstance(arguments, str):
            if len(arguments) > settings.max_answer_chars:
                return zero("parse_error", f"the arguments have over {settings.max_answer_chars} characters")
            arguments = parse_json(arguments)
        if row.tool_payload_key is not None and row.tool_schema_mode != "direct":
            if not isinstance(arguments, dict) or row.tool_payload_key not in arguments:
                return zero("missing_tool_payload_key", f"the arguments lack the key '{row.tool_payload_key}'")
            return arguments[row.tool_payload_key]
        return arguments
    text = strip_reasoning(final_text(output))
    if not text.strip():
        return zero("empty_response", "the answer is empty")
    if len(text) > settings.max_answer_chars:
        return zero("parse_error", f"the answer has over {settings.max_answer_chars} characters")
    return PARSERS[row.schema_type](text)


def verdict(row: StructuredRow, output: list[Item], settings: StructuredSettings) -> Verdict:
    """1.0 where the whole answer parses as the asked format and matches the strict schema, else 0.0.

    Raises RowError where the schema cannot be used: that is no answer's fault.
    """
    try:
        schema = compiled(row.schema_str)
    except SchemaError as error:
        raise RowError(
            f"environment 'structured_outputs' task '{row.task_id or '?'}': field 'schema_str': {error}"
        ) from None
    try:
        value = payload(row, output, settings)
        if isinstance(value, Verdict):
            return value
        if row.response_mode == "text" and row.schema_type == "xml" and settings.xml_coerce_types:
            value = coerce_xml(value, schema.schema)
        elif row.response_mode == "text" and row.schema_type == "csv" and settings.csv_coerce_types:
            value = coerce_csv(value, schema.schema)
    except ParseError as error:
        return zero("parse_error", str(error))
    except RecursionError:
        return zero("parse_error", "the answer is nested too deeply")
    problem = schema.problem(value)
    if problem is not None:
        return zero("validation_error", problem)
    return Verdict(reward=1.0, explanation=f"valid {row.schema_type} that matches the schema", parts={"error_type": ""})
