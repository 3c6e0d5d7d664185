"""JSON schemas from data: made strict, compiled with a linear-time regex engine, nothing ever fetched."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

MAX_SCHEMA_CHARS = 262_144
REGEX_BYTES = 2_000_000
MAX_BRANCHES = 10_000
QUICK_NODES = 400
QUICK_DEPTH = 16
QUICK_PATTERN_CHARS = 128
QUICK_PATTERN_STATES = 512
"""Most characters that a pattern may have once its counted repetitions are written out, nested as badly as can be."""
_REPEAT = re.compile(r"\{([0-9]{1,4})(?:,([0-9]{0,4}))?\}")
QUICK_FORBIDDEN = frozenset(
    {
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "$schema",
        "$id",
        "id",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "dependencies",
        "dependentSchemas",
        "patternProperties",
        "uniqueItems",
        "contains",
        "unevaluatedProperties",
        "unevaluatedItems",
    }
)
"""Keywords whose presence sends a schema to the limited worker: they can multiply work, or look elsewhere."""

ONE = ("items", "additionalItems", "contains", "unevaluatedItems", "unevaluatedProperties", "additionalProperties")
MANY = ("items", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
SAME_INSTANCE = ("allOf", "anyOf", "oneOf")
ALTERNATIVES = ("anyOf", "oneOf")
SAME_INSTANCE_ONE = ("then", "else")
SAME_INSTANCE_NAMED = ("dependentSchemas", "dependencies")


class SchemaError(ValueError):
    """A schema that cannot be used: not JSON, not a schema, a reference outside of itself, too large a regex."""


def branches_by_keyword(schema: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Subschemas that speak of the same instance as `schema` (combinators, then/else, dependent schemas), by keyword."""
    found: dict[str, list[Any]] = {}
    for key in SAME_INSTANCE:
        value = schema.get(key)
        found[key] = value if isinstance(value, list) else []
    for key in SAME_INSTANCE_ONE:
        found[key] = [schema.get(key)]
    for key in SAME_INSTANCE_NAMED:
        value = schema.get(key)
        found[key] = list(value.values()) if isinstance(value, dict) else []
    return {key: [item for item in items if isinstance(item, dict)] for key, items in found.items()}


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """`branches_by_keyword`, in one list."""
    return [branch for found in branches_by_keyword(schema).values() for branch in found]


def property_names(schema: dict[str, Any]) -> set[str]:
    """Names in `properties` of `schema` and of its same-instance branches."""
    own = schema.get("properties")
    names = set(own) if isinstance(own, dict) else set()
    for branch in branches(schema):
        names |= property_names(branch)
    return names


def make_strict(schema: Any, around: frozenset[str] = frozenset()) -> None:
    """In place: wherever there are `properties`, all are required and no others allowed.

    A branch of a combinator speaks of the same object as the schema around it, so each tolerates the other's names
    (`around`); closing every branch alone would make `allOf` of two objects impossible. Branches of one `anyOf` or `oneOf`
    are alternatives: what only another of them names is no part of the object. `not` and `if` stay as they are: a stricter
    condition there would allow more.
    """
    if not isinstance(schema, dict):
        return
    inner = frozenset(property_names(schema))
    own = schema.get("properties")
    names = list(own) if isinstance(own, dict) else None
    by_keyword = branches_by_keyword(schema)
    named = {key: [property_names(branch) for branch in found] for key, found in by_keyword.items()}
    count = Counter(name for sets in named.values() for mine in sets for name in mine)
    for key, found in by_keyword.items():
        alternatives = Counter(name for mine in named[key] for name in mine) if key in ALTERNATIVES else None
        for branch, mine in zip(found, named[key], strict=True):
            apart = Counter(mine) if alternatives is None else alternatives
            others = {name for name, times in count.items() if times > apart[name]}
            make_strict(branch, around.union(names or (), others))
    for key in ONE:
        make_strict(schema.get(key))
    for key in MANY:
        value = schema.get(key)
        for item in value if isinstance(value, list) else []:
            make_strict(item)
    for key in NAMED:
        value = schema.get(key)
        for item in value.values() if isinstance(value, dict) else []:
            make_strict(item)
    if names is not None and isinstance(own, dict):
        schema["required"] = names
        schema["additionalProperties"] = False
        for name in sorted((around | inner) - set(names)):
            own[name] = {}
        if not names:
            del schema["required"]  # draft 4 forbids an empty list


def _target(root: Any, reference: Any) -> Any:
    """What a reference inside the document points to by its path; None for any other (by name, to elsewhere, to nothing)."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found = root
    for step in unquote(reference).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def check_branching(root: Any) -> None:
    """Raises SchemaError where one value would be compared with more than MAX_BRANCHES subschemas (combinators and references
    multiply), or where a reference leads back to itself without a step into the value. Recursive types are fine."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(schema: dict[str, Any]) -> int:
        """How many subschemas speak of the instance that `schema` speaks of."""
        if id(schema) in open_nodes:
            raise SchemaError("a reference leads back to itself: it says nothing of any value")
        if id(schema) not in sizes:
            open_nodes.add(id(schema))
            inside = [*branches(schema), *(schema.get(key) for key in ("not", "if"))]
            inside += [_target(root, schema.get(key)) for key in ("$ref", "$recursiveRef")]
            sizes[id(schema)] = 1 + sum(size(item) for item in inside if isinstance(item, dict))
            open_nodes.discard(id(schema))
        if sizes[id(schema)] > MAX_BRANCHES:
            raise SchemaError(f"one value would be compared with more than {MAX_BRANCHES} subschemas")
        return sizes[id(schema)]

    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            size(value)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def no_retrieval(uri: str) -> Any:
    """The retriever: nothing outside of the schema is read, be it a file or a network address."""
    raise ValueError(f"the schema refers to '{uri}'; only references inside the schema are followed")


def load_schema(text: str) -> Any:
    """The schema as a Python value. Raises SchemaError."""
    if len(text) > MAX_SCHEMA_CHARS:
        raise SchemaError(f"schema_str has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are read")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"schema_str is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise SchemaError(f"a schema is an object or a boolean, not {type(schema).__name__}")
    return schema


@lru_cache(maxsize=512)
def check_schema(text: str) -> None:
    """Whether `text` looks like a schema; what it means is for the worker to find out. Raises SchemaError."""
    load_schema(text)


class Compiled:
    """A strict schema as a Python value (for type coercion) with its validator."""

    def __init__(self, schema: Any) -> None:
        self.schema = copy.deepcopy(schema)
        try:
            check_branching(self.schema)
            make_strict(self.schema)
            self.validator = jsonschema_rs.validator_for(
                self.schema,
                validate_formats=True,
                retriever=no_retrieval,
                pattern_options=jsonschema_rs.RegexOptions(size_limit=REGEX_BYTES, dfa_size_limit=REGEX_BYTES),
            )
        except SchemaError:
            raise
        except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError) as error:
            raise SchemaError(f"not a usable schema: {str(error)[:300]}") from None

    def problem(self, value: Any) -> str | None:
        """The first thing wrong with `value`, None where it is valid."""
        try:
            self.validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            path = "/".join(str(part) for part in error.instance_path)
            return f"at '/{path}': {error.message[:300]}"
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return f"not a JSON value: {str(error)[:200]}"
        return None


@lru_cache(maxsize=512)
def compiled(text: str) -> Compiled:
    """The compiled schema of `text`; the least recently used of 512 is dropped. Raises SchemaError."""
    return Compiled(load_schema(text))


def pattern_states(pattern: str) -> float:
    """A bound on the size of `pattern` as an automaton: its characters times all its repetition counts; inf where a brace is
    no count: it may then name a class of thousands of characters."""
    counts = [max(int(low), int(high or 0), 1) for low, high in _REPEAT.findall(pattern)]
    if len(counts) != pattern.count("{"):
        return math.inf
    return len(pattern) * math.prod(counts)


def small(schema: Any) -> bool:
    """Whether compiling and applying `schema` is cheap for sure: few nodes, shallow, short patterns, no references
    and no combinators."""
    nodes = 0
    stack = [(schema, 0)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > QUICK_NODES or depth > QUICK_DEPTH:
            return False
        if isinstance(value, dict):
            if not QUICK_FORBIDDEN.isdisjoint(value):
                return False
            pattern = value.get("pattern")
            if isinstance(pattern, str) and (
                len(pattern) > QUICK_PATTERN_CHARS or pattern_states(pattern) > QUICK_PATTERN_STATES
            ):
                return False
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
    return True


@lru_cache(maxsize=2048)
def small_text(text: str) -> bool:
    """`small` for a schema's text; False for text over 16 kB or that is no schema."""
    if len(text) > 16_384:
        return False
    try:
        return small(load_schema(text))
    except SchemaError:
        return False
