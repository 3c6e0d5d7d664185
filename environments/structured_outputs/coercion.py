"""XML and CSV carry text only: values are read as the type that the schema asks for at their place."""

from __future__ import annotations

import math
import re
from typing import Any

# ASCII only: int() and float() also read digits of other scripts and underscores.
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
TRUE = frozenset({"true", "1", "yes"})
FALSE = frozenset({"false", "0", "no"})


def types_of(schema: Any) -> list[str]:
    """The `type` of a schema as a list; `object`/`array` implied by `properties`/`items`."""
    if not isinstance(schema, dict):
        return []
    kind = schema.get("type")
    if isinstance(kind, str):
        return [kind]
    if isinstance(kind, list):
        return [item for item in kind if isinstance(item, str)]
    if "properties" in schema:
        return ["object"]
    return ["array"] if "items" in schema else []


def scalar(text: str | None, kinds: list[str]) -> Any:
    """`text` as the first of `kinds` that it can be read as; unchanged where none fits."""
    plain = (text or "").strip()
    if plain == "" and "null" in kinds:
        return None
    if text is None:
        return "" if "string" in kinds else None
    for kind in kinds:
        if kind == "integer" and _INTEGER.fullmatch(plain):
            return int(plain)
        if kind == "number" and _NUMBER.fullmatch(plain) and math.isfinite(value := float(plain)):
            return value
        if kind == "boolean" and plain.lower() in TRUE | FALSE:
            return plain.lower() in TRUE
        if kind == "string":
            return text
    return text


def coerce_xml(value: Any, schema: Any) -> Any:
    """An XML tree as the schema sees it: one element where a list is asked becomes a list of one, an empty element an
    empty list, object or string."""
    kinds = types_of(schema)
    if "array" in kinds and isinstance(schema, dict):
        items = schema.get("items")
        if value is None:
            return None if "null" in kinds else []
        if (
            isinstance(value, dict)
            and len(value) == 1
            and not (isinstance(items, dict) and next(iter(value)) in (items.get("properties") or {}))
        ):
            value = next(iter(value.values()))
        rows = value if isinstance(value, list) else [value]
        return [coerce_xml(item, items) for item in rows]
    if "object" in kinds and isinstance(schema, dict):
        if value is None and "null" not in kinds:
            value = {}
        properties = schema.get("properties")
        if isinstance(value, dict) and isinstance(properties, dict):
            return {key: coerce_xml(item, properties.get(key)) for key, item in value.items()}
        return value
    return scalar(value, kinds) if value is None or isinstance(value, str) else value


def coerce_csv(rows: list[dict[str, Any]], schema: Any) -> list[dict[str, Any]]:
    """Rows with every cell read as the type of its column in `items.properties`. A missing cell stays None."""
    items = schema.get("items") if isinstance(schema, dict) else None
    properties = items.get("properties") if isinstance(items, dict) else None
    columns = properties if isinstance(properties, dict) else {}
    return [
        {key: cell if cell is None else scalar(cell, types_of(columns.get(key))) for key, cell in row.items()}
        for row in rows
    ]
