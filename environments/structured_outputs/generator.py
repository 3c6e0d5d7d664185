"""Seeded extraction tasks: a sentence, a brief form of the schema, one or two worked examples, an answer to write.

The schema pins values to the document's neighbourhood (a range around the number, an enumeration with distractors, a
pattern), so neither an empty object nor a copied example passes: an example whose answer would pass is redrawn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from environments.structured_outputs.schemas import compiled
from environments.structured_outputs.words import WORDS, Words
from gym_servers.environment import Split

JsonSchema = dict[str, Any]
MAX_TOKENS = 96


@dataclass(frozen=True)
class Field:
    """One key of a record: its value in the document, its schema, and what the prompt says of it."""

    key: str
    value: Any
    schema: JsonSchema
    note: str


@dataclass(frozen=True)
class Example:
    """A document with the answer that it asks for. `schema` is that of the parsed value."""

    document: str
    keys: str
    schema: JsonSchema
    value: Any
    text: str


@dataclass(frozen=True)
class Family:
    """A kind of task: its format, how hard it is, how many worked examples an easy and a hard task of it shows."""

    make: Callable[[random.Random, Words, bool], Example]
    schema_type: str
    base: float
    shots: tuple[int, int] = field(default=(2, 1))


def person_name(rng: random.Random, words: Words) -> Field:
    value = f"{rng.choice(words.first)} {rng.choice(words.last)}"
    schema = {"type": "string", "pattern": "^[A-Z][a-z]+ [A-Z][a-z]+$", "minLength": 7}
    return Field(words.keys["name"], value, schema, "first and last name")


def whole(rng: random.Random, words: Words, key: str, low: int, high: int) -> Field:
    value = rng.randrange(low, high) // 2 * 2 + words.parity
    start = value // 10 * 10
    schema = {"type": "integer", "minimum": start, "maximum": start + 9}
    return Field(words.keys[key], value, schema, f"integer from {start} to {start + 9}")


def price(rng: random.Random, words: Words) -> Field:
    value = rng.randrange(4, 90) + rng.choice(words.cents) / 100
    start = int(value) // 10 * 10
    schema = {"type": "number", "minimum": start, "exclusiveMaximum": start + 10}
    return Field(words.keys["price"], value, schema, f"number from {start} to {start + 10}")


def choice(rng: random.Random, words: Words, key: str, pool: tuple[str, ...]) -> Field:
    options = rng.sample(pool, 3)
    value = rng.choice(options)
    return Field(words.keys[key], value, {"type": "string", "enum": options}, "one of " + ", ".join(options))


def date(rng: random.Random, words: Words) -> Field:
    year, month = rng.randrange(2001, 2030), rng.choice(words.months)
    value = f"{year}-{month}-{rng.randrange(1, 29):02d}"
    schema = {"type": "string", "format": "date", "pattern": f"^{year}-"}
    return Field(words.keys["date"], value, schema, f"a date in {year}, YYYY-MM-DD")


def record(fields: list[Field]) -> tuple[JsonSchema, dict[str, Any], str]:
    """Schema, value and prompt note of an object with these fields."""
    schema = {
        "type": "object",
        "properties": {item.key: item.schema for item in fields},
        "required": [item.key for item in fields],
        "additionalProperties": False,
    }
    notes = "; ".join(f"{item.key} ({item.note})" for item in fields)
    return schema, {item.key: item.value for item in fields}, notes


def person(rng: random.Random, words: Words, hard: bool) -> Example:
    fields = [person_name(rng, words), whole(rng, words, "age", 18, 80)]
    text = f"{fields[0].value} is {fields[1].value} years old"
    if hard:
        fields.append(choice(rng, words, "city", words.cities))
        text += f" and lives in {fields[2].value}"
    schema, value, notes = record(fields)
    return Example(text + ".", notes, schema, value, json.dumps(value))


def event(rng: random.Random, words: Words, hard: bool) -> Example:
    fields = [choice(rng, words, "event", words.events), date(rng, words)]
    text = f"The {fields[0].value} takes place on {fields[1].value}"
    if hard:
        fields.append(choice(rng, words, "city", words.cities))
        text += f" in {fields[2].value}"
    schema, value, notes = record(fields)
    return Example(text + ".", notes, schema, value, json.dumps(value))


def product_fields(rng: random.Random, words: Words, hard: bool) -> tuple[list[Field], str]:
    fields = [choice(rng, words, "item", words.items), price(rng, words)]
    text = f"The {fields[0].value} costs {fields[1].value:.2f} dollars"
    if hard:
        fields.append(whole(rng, words, "count", 10, 90))
        text += f" and {fields[2].value} are in stock"
    return fields, text + "."


def product(rng: random.Random, words: Words, hard: bool) -> Example:
    fields, text = product_fields(rng, words, hard)
    schema, value, notes = record(fields)
    return Example(text, notes, schema, value, json.dumps(value))


def nested(rng: random.Random, words: Words, hard: bool) -> Example:
    inner = [person_name(rng, words), whole(rng, words, "age", 18, 80)]
    outer = [choice(rng, words, "team", words.teams)]
    text = f"{inner[0].value}, aged {inner[1].value}, works in the {outer[0].value} team"
    if hard:
        outer.append(choice(rng, words, "city", words.cities))
        text += f" in {outer[1].value}"
    schema, value, notes = record(inner)
    person_field = Field(words.keys["person"], value, schema, f"object with {notes}")
    schema, value, notes = record([person_field, *outer])
    return Example(text + ".", notes, schema, value, json.dumps(value))


def list_of_strings(rng: random.Random, words: Words, hard: bool) -> Example:
    count = 4 if hard else 3
    values = rng.sample(words.items, count)
    allowed = sorted({*values, *rng.sample(words.items, 2)})
    items = {"type": "array", "minItems": count, "maxItems": count, "uniqueItems": True}
    items["items"] = {"type": "string", "enum": allowed}
    names = Field(words.keys["list"], values, items, f"list of {count} different strings")
    color = choice(rng, words, "color", words.colors)
    schema, value, notes = record([names, color])
    text = f"The {color.value} box holds a {', a '.join(values[:-1])} and a {values[-1]}."
    return Example(text, notes, schema, value, json.dumps(value))


def yaml_record(rng: random.Random, words: Words, hard: bool) -> Example:
    fields = [person_name(rng, words), choice(rng, words, "city", words.cities)]
    text = f"{fields[0].value} moved to {fields[1].value}"
    if hard:
        fields.append(whole(rng, words, "age", 18, 80))
        text += f" at the age of {fields[2].value}"
    schema, value, notes = record(fields)
    return Example(text + ".", notes, schema, value, "\n".join(f"{key}: {item}" for key, item in value.items()))


def toml_record(rng: random.Random, words: Words, hard: bool) -> Example:
    fields, text = product_fields(rng, words, hard)
    schema, value, notes = record(fields)
    return Example(text, notes, schema, value, "\n".join(f"{k} = {json.dumps(v)}" for k, v in value.items()))


def xml_record(rng: random.Random, words: Words, hard: bool) -> Example:
    fields = [choice(rng, words, "team", words.teams), whole(rng, words, "count", 10, 90)]
    text = f"The {fields[0].value} team ordered {fields[1].value} boxes"
    if hard:
        fields.append(choice(rng, words, "color", words.colors))
        text += f" in {fields[2].value}"
    inner, value, notes = record(fields)
    root = words.keys["payload"]
    schema, value, notes = record([Field(root, value, inner, f"root element with {notes}")])
    body = "".join(f"<{key}>{item}</{key}>" for key, item in value[root].items())
    return Example(text + ".", notes, schema, value, f"<{root}>{body}</{root}>")


def csv_rows(rng: random.Random, words: Words, hard: bool) -> Example:
    count = 3 if hard else 2
    names = rng.sample(words.items, count)
    amounts = [whole(rng, words, "count", 10, 90) for _ in names]
    allowed = sorted({*names, *rng.sample(words.items, 2)})
    low, high = min(a.value for a in amounts), max(a.value for a in amounts)
    columns = [
        Field(words.keys["item"], "", {"type": "string", "enum": allowed}, "string"),
        Field(
            words.keys["count"],
            0,
            {"type": "integer", "minimum": low, "maximum": high},
            f"integer from {low} to {high}",
        ),
    ]
    row, _, notes = record(columns)
    schema = {"type": "array", "items": row, "minItems": count, "maxItems": count, "uniqueItems": True}
    value = [{columns[0].key: n, columns[1].key: a.value} for n, a in zip(names, amounts, strict=True)]
    lines = [",".join(row["properties"])] + [f"{n},{a.value}" for n, a in zip(names, amounts, strict=True)]
    text = "In stock: " + ", ".join(f"{a.value} of the {n}" for n, a in zip(names, amounts, strict=True)) + "."
    return Example(text, f"header and {count} different rows of {notes}", schema, value, "\n".join(lines))


FAMILIES: dict[str, Family] = {
    "person_json": Family(person, "json", 0.1),
    "event_json": Family(event, "json", 0.2),
    "product_json": Family(product, "json", 0.2),
    "nested_json": Family(nested, "json", 0.6, (2, 2)),
    "list_json": Family(list_of_strings, "json", 0.4, (2, 2)),
    "yaml_record": Family(yaml_record, "yaml", 0.2),
    "csv_rows": Family(csv_rows, "csv", 0.5, (2, 2)),
    "toml_record": Family(toml_record, "toml", 0.3),
    "xml_record": Family(xml_record, "xml", 0.5, (2, 2)),
    "tool_call": Family(product, "json", 0.7),
}


def ask(example: Example, family: str) -> str:
    """The user's message for one document."""
    if family == "tool_call":
        return f"Text: {example.document}\nRecord it with one call of the tool. Fields: {example.keys}."
    kind = FAMILIES[family].schema_type.upper()
    return f"Text: {example.document}\nAnswer with {kind} only. Keys: {example.keys}."


def call_item(name: str, payload_key: str, value: Any, call_id: str) -> dict[str, Any]:
    """A function_call item that carries `value`."""
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": json.dumps({payload_key: value})}


def tool_fields(words: Words, schema: JsonSchema) -> dict[str, Any]:
    """The row fields and tool declaration of a tool-call task."""
    name, key = words.keys["tool"], words.keys["payload"]
    parameters = {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}
    tool = {
        "type": "function",
        "name": name,
        "description": "Record what the text says.",
        "parameters": parameters,
        "strict": True,
    }
    return {
        "tools": [tool],
        "row": {
            "response_mode": "tool_call",
            "tool_name": name,
            "tool_payload_key": key,
            "tool_schema_mode": "extraction_wrapper",
        },
    }


def example_turns(shot: Example, family: str, words: Words, number: int) -> list[dict[str, Any]]:
    """A worked example as chat items."""
    user = {"role": "user", "content": ask(shot, family)}
    if family != "tool_call":
        return [user, {"role": "assistant", "content": shot.text}]
    call = call_item(words.keys["tool"], words.keys["payload"], shot.value, f"call_{number}")
    return [user, call, {"type": "function_call_output", "call_id": f"call_{number}", "output": "recorded"}]


def task(rng: random.Random, split: Split, family: str) -> dict[str, Any]:
    """One row of `family`."""
    words, kind = WORDS[split], FAMILIES[family]
    hard = rng.random() < 0.5
    example = kind.make(rng, words, hard)
    schema_str = json.dumps(example.schema)
    checker = compiled(schema_str)
    turns: list[dict[str, Any]] = []
    for number in range(kind.shots[hard]):
        shot = kind.make(rng, words, hard)
        while checker.problem(shot.value) is None:
            shot = kind.make(rng, words, hard)
        turns += example_turns(shot, family, words, number)
    turns.append({"role": "user", "content": ask(example, family)})
    create: dict[str, Any] = {"input": turns, "max_output_tokens": MAX_TOKENS}
    row: dict[str, Any] = {
        "responses_create_params": create,
        "schema_str": schema_str,
        "schema_type": kind.schema_type,
        "family": family,
        "difficulty": round(kind.base + (0.2 if hard else 0.0), 2),
        "gold_answer": example.text,
    }
    if family == "tool_call":
        extra = tool_fields(words, example.schema)
        create["tools"] = extra["tools"]
        row |= extra["row"]
    return row


def generate(n: int, seed: int, split: Split, families: list[str]) -> Iterator[dict[str, Any]]:
    """`n` rows; row i depends on (seed, split, i, families) only."""
    for index in range(n):
        rng = random.Random(f"structured_outputs:{seed}:{split}:{index}")
        family = families[(index + seed) % len(families)]
        yield {"task_id": f"so-{split}-{seed}-{index}", **task(rng, split, family)}
