"""Text in one of five formats to plain values. Runs in the killable worker; JSON of modest length also outside."""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from typing import Any
from xml.parsers import expat

import yaml

MAX_NODES = 50_000
"""Values in a YAML document after its aliases are expanded; expanding more would take memory without bound."""
CSV_FIELD_CHARS = 65_536


class ParseError(ValueError):
    """Text that is not in the asked format."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has one key twice")
    return made


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def parse_json(text: str) -> Any:
    """One JSON value and nothing else around it but white space; no NaN, no number beyond a float, no key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"not JSON: {str(error)[:200]}") from None


def expanded_size(root: yaml.Node) -> int:
    """Number of nodes that `root` stands for, aliases counted every time. Raises ParseError for a cycle or a repeated key."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) != len(keys):
                raise ParseError("not YAML: a mapping has one key twice")
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = min(1 + sum(sizes[id(child)] for child in children), MAX_NODES + 1)
        elif id(node) in open_nodes:
            raise ParseError("not a tree: an alias stands inside its own anchor")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            # A child that is already finished is skipped when popped; one still open is a cycle.
            stack.extend((child, False) for child in children if id(child) not in sizes)
    return sizes[id(root)]


def finite(value: Any) -> Any:
    """`value`, if it holds no NaN and no infinity, which JSON schemas cannot speak of. Raises ParseError."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ParseError(f"{item} is no finite number")
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return value


def parse_yaml(text: str) -> Any:
    """One YAML document of plain values; aliases may not blow it up."""
    try:
        loader = yaml.CSafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if expanded_size(node) > MAX_NODES:
                raise ParseError(f"aliases expand to more than {MAX_NODES} values")
            return finite(loader.construct_document(node))
        finally:
            loader.dispose()
    except ParseError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ParseError(f"not YAML: {' '.join(str(error).split())[:200]}") from None


def parse_toml(text: str) -> Any:
    """One TOML document."""
    try:
        return finite(tomllib.loads(text))
    except ParseError:
        raise
    except (ValueError, RecursionError, OverflowError) as error:
        raise ParseError(f"not TOML: {str(error)[:200]}") from None


class XmlTree:
    """Elements as dictionaries: `@name` attributes, `#text` beside children, repeated elements as lists.

    An element with neither attribute nor child is its stripped text, None where that is empty. A document type
    declaration is refused, so there are no entities but the five of XML.
    """

    def __init__(self) -> None:
        self.stack: list[tuple[dict[str, Any], list[str]]] = [({}, [])]
        parser = expat.ParserCreate(namespace_separator=None)
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = self.doctype
        parser.EntityDeclHandler = self.doctype
        parser.ExternalEntityRefHandler = self.external
        parser.buffer_text = True
        self.parser = parser

    def doctype(self, *_: Any) -> None:
        raise ParseError("a document type declaration is not allowed")

    def external(self, *_: Any) -> int:
        raise ParseError("an external entity is not allowed")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.stack.append(({f"@{key}": value for key, value in attributes.items()}, []))

    def characters(self, data: str) -> None:
        self.stack[-1][1].append(data)

    def end(self, name: str) -> None:
        children, pieces = self.stack.pop()
        text = "".join(pieces).strip()
        value: Any = children or text or None
        if children and text:
            children["#text"] = text
        parent = self.stack[-1][0]
        if name not in parent:
            parent[name] = value
        elif isinstance(parent[name], list):
            parent[name].append(value)
        else:
            parent[name] = [parent[name], value]


def parse_xml(text: str) -> Any:
    """`{root element: value}`; see XmlTree."""
    tree = XmlTree()
    try:
        tree.parser.Parse(text.encode("utf-8"), True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ParseError(f"not XML: {str(error)[:200]}") from None
    return tree.stack[0][0]


def parse_csv(text: str) -> Any:
    """Rows as dictionaries by the header line; every value is a string, None where a row is too short. A header alone is no
    answer: any line of prose would be one."""
    try:
        csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_CHARS))
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except (csv.Error, ValueError) as error:
        raise ParseError(f"not CSV: {str(error)[:200]}") from None
    names = reader.fieldnames or []
    if not rows or len(set(names)) != len(names):
        raise ParseError("not CSV: no row follows the header" if not rows else "not CSV: the header has one name twice")
    for row in rows:
        if None in row:
            raise ParseError("not CSV: a row has more values than the header has names")
    return rows


PARSERS = {"json": parse_json, "yaml": parse_yaml, "toml": parse_toml, "xml": parse_xml, "csv": parse_csv}
