"""structured_outputs: schemas and answers made to hang, kill or fool the grader, through real workers; drafts; published rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from environments.structured_outputs.server import StructuredOutputs
from environments.structured_outputs.verifier import StructuredRow, StructuredSettings
from gym_servers.protocol import Item, RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

ENVIRONMENT = StructuredOutputs(StructuredSettings(verify_cpu_seconds=0.5))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


def message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def grade(pool: WorkerPool, schema: Any, answer: str, kind: str = "json") -> Verdict:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    row = {"task_id": "t3", "schema_str": text, "schema_type": kind}
    return asyncio.run(judge(ENVIRONMENT, row, message(answer), pool))


def doubling(keyword: str) -> dict[str, Any]:
    """2**40 comparisons of one value, in 41 definitions."""
    names = {f"n{i}": {keyword: [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(40)}
    return {"$ref": "#/$defs/n0", "$defs": {**names, "n40": {"type": "integer"}}}


REFUSED: dict[str, Any] = {
    "not JSON": "{bad schema",
    "no schema": [1],
    "no type": {"type": "strin"},
    "doubling oneOf": doubling("oneOf"),
    "doubling anyOf": doubling("anyOf"),
    "doubling allOf": doubling("allOf"),
    "doubling below a property": {"type": "object", "properties": {"a": {"$ref": "#/$defs/n0"}}, **doubling("oneOf")},
    "reference to itself": {"$ref": "#"},
    "reference round a corner": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}},
    },
    "file": {"$ref": "file:///etc/passwd"},
    "dynamic file": {"$dynamicRef": "file:///etc/passwd#x"},
    "relative file": {"$ref": "other.json"},
    "schema of a file": {"$schema": "file:///etc/passwd", "type": "integer"},
    "broken regex": {"type": "string", "pattern": "("},
    "look-around": {"type": "string", "pattern": "^(?=(a+)+$)a"},
    "back-reference": {"type": "string", "pattern": r"^(a+)\1$"},
    "regex too large": {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"},
    "deep": '{"type":"object","properties":{"a":' * 2000 + '{"type":"integer"}' + "}}" * 2000,
    "long": '{"title": "' + "a" * 300_000 + '"}',
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_used_is_a_bad_row(name: str, pool: WorkerPool) -> None:
    kills = pool.kills
    with pytest.raises(RowError, match="environment 'structured_outputs' task 't3': field 'schema_str'"):
        grade(pool, REFUSED[name], "1")
    assert pool.kills == kills
    assert grade(pool, {"type": "integer"}, "1").reward == 1.0


def test_no_reference_is_ever_fetched(pool: WorkerPool) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/schema.json"
    try:
        for schema in ({"$ref": url}, {"$schema": url}, {"$id": url, "$ref": "other.json"}, {"allOf": [{"$ref": url}]}):
            with pytest.raises(RowError):
                grade(pool, schema, "1")
        assert grade(pool, {"type": "object"}, f'<!DOCTYPE a SYSTEM "{url}"><a>1</a>', "xml").reward == 0.0
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()


A = {"type": "object", "properties": {"a": {"type": "integer"}}}
FLOAT = {"type": "object", "properties": {"a": {"type": ["number", "null"]}}}
TABLE = {"type": "array", "items": A}
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
ENTITIES = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'

ZERO: dict[str, tuple[Any, str, str]] = {
    "catastrophic regex": ({"type": "string", "pattern": "^(a+)+$"}, "json", json.dumps("a" * 50_000 + "!")),
    "catastrophic choice": ({"type": "string", "pattern": "(a|a)*b"}, "json", json.dumps("a" * 50_000)),
    "catastrophic property names": (
        {"type": "object", "patternProperties": {f"^(a+)+{i}$": {} for i in range(200)}, "additionalProperties": False},
        "json",
        json.dumps({"a" * 3000: 1}),
    ),
    "regex from the model": ({"type": "string", "format": "regex"}, "json", json.dumps("(" * 3000)),
    "brackets": (A, "json", "[" * 60_000),
    "nested answer": ({"type": "object", "properties": {"a": {}}}, "json", '{"a":' * 8000 + "1" + "}" * 8000),
    "digits": (A, "json", '{"a":' + "9" * 5000 + "}"),
    "float overflow": (FLOAT, "json", '{"a":1e400}'),
    "NaN": (FLOAT, "json", '{"a":NaN}'),
    "Infinity": (FLOAT, "json", '{"a":-Infinity}'),
    "key twice": (A, "json", '{"a":"x","a":1}'),
    "byte-order mark": (A, "json", '\ufeff{"a":1}'),
    "lone surrogate": ({"type": "string"}, "json", '"\\ud800"'),
    "two values": (A, "json", '{"a":1} {"a":1}'),
    "billion laughs": ({"type": "object"}, "yaml", LAUGHS),
    "alias of itself": ({"type": "object"}, "yaml", "a: &a [*a]"),
    "two documents": (A, "yaml", "a: 1\n---\na: 1"),
    "yaml key twice": (A, "yaml", "a: x\na: 1"),
    "yaml NaN": (FLOAT, "yaml", "a: .nan"),
    "yaml python tag": ({}, "yaml", "!!python/object/apply:os.system ['touch MARK']"),
    "yaml date": ({"type": "object", "properties": {"a": {"type": "string"}}}, "yaml", "a: 2024-01-01"),
    "yaml digits": (A, "yaml", "a: " + "9" * 5000),
    "yaml blocks": (A, "yaml", "- " * 20_000 + "1"),
    "xml laughs": ({"type": "object"}, "xml", ENTITIES),
    "xml file": ({"type": "object"}, "xml", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'),
    "xml roots": ({"type": "object"}, "xml", "<a>1</a><a>1</a>"),
    "xml nested": (A, "xml", "<a>" * 9000 + "1" + "</a>" * 9000),
    "xml attributes": (A, "xml", "<a " + " ".join(f'x{i}="1"' for i in range(6000)) + ">1</a>"),
    "xml encoding": (A, "xml", '<?xml version="1.0" encoding="rot13"?><a>1</a>'),
    "xml digits": (A, "xml", "<a>" + "9" * 5000 + "</a>"),
    "xml arabic digits": (A, "xml", "<a>١</a>"),
    "xml underscore": (A, "xml", "<a>1_0</a>"),
    "toml nested": (A, "toml", "a = " + "[" * 20_000),
    "toml key twice": (A, "toml", "a = 1\na = 1"),
    "toml NaN": (FLOAT, "toml", "a = nan"),
    "toml digits": (A, "toml", "a = " + "9" * 5000),
    "toml tables": (A, "toml", "\n".join(f"[a{i}.b.c.d]" for i in range(3000))),
    "csv prose": ({"type": "array"}, "csv", "I am sorry, I cannot do that."),
    "csv header alone": (TABLE, "csv", "a\n\n"),
    "csv name twice": (TABLE, "csv", "a,a\nx,1"),
    "csv open quote": (TABLE, "csv", 'a\n"' + "x\n" * 30_000),
    "csv nul": (TABLE, "csv", "a\n\x001"),
    "csv digits": (TABLE, "csv", "a\n" + "9" * 5000),
    "empty": ({}, "json", ""),
    "empty yaml": ({}, "yaml", " \n"),
    "empty toml": ({}, "toml", ""),
    "empty csv": ({"type": "array"}, "csv", "\n"),
    "too long": ({}, "json", json.dumps("a" * 65_536)),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_hostile_answer_earns_nothing(name: str, pool: WorkerPool, tmp_path: Path) -> None:
    schema, kind, answer = ZERO[name]
    kills = pool.kills
    verdict = grade(pool, schema, answer.replace("MARK", str(tmp_path / "mark")), kind)
    assert verdict.reward == 0.0
    assert pool.kills == kills, "refused before it could exhaust a worker"
    assert list(tmp_path.iterdir()) == []


EXHAUSTING: dict[str, tuple[Any, str, str]] = {
    "yaml brackets": ({}, "yaml", "[" * 30_000),
    "toml path": ({}, "toml", ".".join(["a"] * 20_000) + " = 1"),
    "csv columns": ({}, "csv", ",".join(f"c{i}" for i in range(4000)) + "\n" + "1\n" * 20_000),
}


@pytest.mark.parametrize("name", EXHAUSTING)
def test_what_exhausts_a_worker_earns_nothing_and_the_pool_lives_on(name: str, pool: WorkerPool) -> None:
    schema, kind, answer = EXHAUSTING[name]
    assert grade(pool, schema, answer, kind).reward == 0.0
    assert grade(pool, A, '{"a": 1}').reward == 1.0


ONE: dict[str, tuple[Any, str, str]] = {
    "recursive type": (
        {"type": "object", "properties": {"l": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        "json",
        '{"l": {"l": {"l": null}}}',
    ),
    "unique items": ({"type": "array", "uniqueItems": True}, "json", json.dumps([[i] for i in range(5000)])),
    "large enum": ({"enum": list(range(30_000))}, "json", "29999"),
    "aliases": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        "yaml",
        "a: &x 1\nb: *x",
    ),
    "many elements": (
        {"type": "object", "properties": {"a": {"type": "array"}}},
        "xml",
        "<a>" + "<b/>" * 9000 + "</a>",
    ),
    "yaml byte-order mark": (A, "yaml", "\ufeffa: 1"),
    "xml byte-order mark": (A, "xml", "\ufeff<a>1</a>"),
    "standard entities": ({"type": "object", "properties": {"a": {"const": "<&>"}}}, "xml", "<a>&lt;&amp;&gt;</a>"),
}


@pytest.mark.parametrize("name", ONE)
def test_what_only_looks_hostile_is_graded(name: str, pool: WorkerPool) -> None:
    schema, kind, answer = ONE[name]
    assert grade(pool, schema, answer, kind).reward == 1.0


def test_alternatives_do_not_open_each_other(pool: WorkerPool) -> None:
    cat = {"properties": {"kind": {"const": "cat"}, "meow": {"type": "integer"}}}
    dog = {"properties": {"kind": {"const": "dog"}, "bark": {"type": "integer"}}}
    for keyword in ("oneOf", "anyOf"):
        schema = {"properties": {"id": {"type": "integer"}}, keyword: [cat, dog]}
        assert grade(pool, schema, '{"id": 1, "kind": "cat", "meow": 1}').reward == 1.0
        assert grade(pool, schema, '{"id": 1, "kind": "cat", "meow": 1, "bark": {"x": ["anything"]}}').reward == 0.0
    assert (
        grade(
            pool, {"allOf": [{"properties": {"id": {}}}, {"oneOf": [cat, dog]}]}, '{"id": 1, "kind": "dog", "bark": 2}'
        ).reward
        == 1.0
    )


DRAFTS = {
    "http://json-schema.org/draft-04/schema#": ({"minimum": 3, "exclusiveMinimum": True}, "4", "3"),
    "http://json-schema.org/draft-06/schema#": ({"exclusiveMinimum": 3, "contains": {}}, "4", "3"),
    "http://json-schema.org/draft-07/schema#": (
        {"if": {"type": "integer"}, "then": {"minimum": 3}, "else": False},
        "3",
        "2",
    ),
    "https://json-schema.org/draft/2019-09/schema": (
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        '{"a": 1, "b": 2}',
        '{"a": 1}',
    ),
    "https://json-schema.org/draft/2020-12/schema": (
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
        "[1]",
        "[1, 2]",
    ),
}
"""draft -> keywords that only mean this in that draft, a value that fits, one that does not"""


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_draft_is_read_by_its_own_rules(draft: str, pool: WorkerPool) -> None:
    schema, right, wrong = DRAFTS[draft]
    assert grade(pool, {"$schema": draft, **schema}, right).reward == 1.0
    assert grade(pool, {"$schema": draft, **schema}, wrong).reward == 0.0


def instance(schema: Any) -> Any:
    """A value that fits the plain schemas of published rows."""
    kinds = schema.get("type", "string")
    kind = next(k for k in ([kinds] if isinstance(kinds, str) else kinds) if k != "null")
    if "enum" in schema:
        return schema["enum"][0]
    if "format" in schema:
        return {"date": "2024-01-31", "uri": "http://a.b/"}[schema["format"]]
    if kind == "object":
        return {name: instance(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {}))]
    return {"string": "x", "integer": 1, "number": 1.5, "boolean": True}[kind]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


WRITERS: dict[str, Callable[[Any], str]] = {
    "json": json.dumps,
    "yaml": json.dumps,  # JSON is YAML
    "toml": lambda value: "\n".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()),
    "csv": lambda value: ",".join(value) + "\n" + ",".join("1" for _ in value),
}


@pytest.mark.conformance
@pytest.mark.parametrize("version", ["v3", "v4"])
def test_published_rows_load_and_an_answer_that_fits_is_graded(
    version: str, conformance: Path, conform: Callable[..., None], pool: WorkerPool
) -> None:
    file = f"rows/structured_outputs_{version}_example.jsonl"
    graded: dict[str, bool] = {}
    for number, line in enumerate((conformance / file).read_text().splitlines()):
        row = json.loads(line)
        parsed = ENVIRONMENT.check_row(row)
        assert isinstance(parsed, StructuredRow)
        value = instance(json.loads(parsed.schema_str))
        if parsed.response_mode == "tool_call":
            wrapped = value if parsed.tool_schema_mode == "direct" else {parsed.tool_payload_key: value}
            output = [{"type": "function_call", "name": parsed.tool_name, "arguments": json.dumps(wrapped)}]
        else:
            output = message(WRITERS[parsed.schema_type](value))
        verdict = asyncio.run(judge(ENVIRONMENT, row, output, pool))
        # A table is a list of rows: no CSV fits the schema of one object, in the reference too (structured/oracle/082).
        graded[f"{version}/{number}"] = verdict.reward == float(parsed.schema_type != "csv")
    assert len(graded) == 5
    conform(file, graded, "environments/structured_outputs/README.md")
