"""Seeded extraction tasks: a sentence, a schema, an answer in the asked format; worked examples are the dial of difficulty.

Names and objects of train and held-out tasks are disjoint. The prompt shows a schema of types and ranges; the row's own schema, which
grades, also fixes the values that the text states: a value that the text does not state earns nothing, however well it fits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from environments.structured_outputs.schemas import Compiled

NAMES = {
    "train": ["Alice", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ivy", "Jonas", "Karen", "Leo"],
    "heldout": ["Maria", "Nico", "Olivia", "Peter", "Ruth", "Simon", "Tara", "Victor"],
}
CITIES = {
    "train": ["Paris", "Rome", "Berlin", "Madrid", "Oslo", "Vienna", "Lisbon", "Dublin"],
    "heldout": ["Prague", "Athens", "Warsaw", "Helsinki"],
}
THINGS = {
    "train": ["lamp", "chair", "book", "bottle", "table", "clock", "basket", "mirror"],
    "heldout": ["pillow", "candle", "ladder", "teapot"],
}

Made = tuple[str, dict[str, Any], Any]
"""document, schema that these values fit, the values that the document states"""


def _word(minimum: int = 2) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^[A-Za-z]{{{minimum},20}}$"}


def _near(value: int, width: int) -> dict[str, Any]:
    """An integer of the same range of `width` as `value`."""
    low = value - value % width
    return {"type": "integer", "minimum": low, "maximum": low + width - 1}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _person(r: random.Random, split: str) -> Made:
    name, age = r.choice(NAMES[split]), r.randint(20, 89)
    return f"{name} is {age} years old.", _object(name=_word(), age=_near(age, 10)), {"name": name, "age": age}


def _product(r: random.Random, split: str) -> Made:
    thing, price, stock = r.choice(THINGS[split]), r.randint(5, 99), r.randint(1, 60)
    schema = _object(item=_word(3), price=_near(price, 10), stock={"type": "integer", "minimum": 1, "maximum": 60})
    values = {"item": thing, "price": price, "stock": stock}
    return f"The {thing} costs {price} dollars and {stock} are in stock.", schema, values


def _trip(r: random.Random, split: str) -> Made:
    name, city, days = r.choice(NAMES[split]), r.choice(CITIES[split]), r.randint(4, 19)
    schema = _object(traveller=_object(name=_word()), city=_word(3), days=_near(days, 4))
    return f"{name} stays in {city} for {days} days.", schema, {"traveller": {"name": name}, "city": city, "days": days}


def _cities(r: random.Random, split: str) -> Made:
    chosen = r.sample(CITIES[split], 3)
    schema = _object(cities={"type": "array", "items": _word(3), "minItems": 3, "maxItems": 3, "uniqueItems": True})
    return f"The tour visits {chosen[0]}, {chosen[1]} and {chosen[2]}.", schema, {"cities": chosen}


def _rows(r: random.Random, split: str) -> Made:
    decade = r.randint(2, 8) * 10
    people = [{"name": name, "age": decade + r.randint(0, 9)} for name in r.sample(NAMES[split], 2)]
    schema = {"type": "array", "minItems": 2, "items": _object(name=_word(), age=_near(decade, 10))}
    return f"{people[0]['name']} is {people[0]['age']} and {people[1]['name']} is {people[1]['age']}.", schema, people


def _stated(schema: dict[str, Any], values: Any) -> dict[str, Any]:
    """`schema`, narrowed to `values`: the same numbers, the same words (their first letter in either case). A list of words may
    come in any order, a list of objects in the text's."""
    if isinstance(values, dict):
        return {**schema, "properties": {key: _stated(schema["properties"][key], values[key]) for key in values}}
    if isinstance(values, list) and isinstance(values[0], str):
        return {**schema, "items": {"type": "string", "pattern": "|".join(map(_spelled, values))}}
    if isinstance(values, list):  # `items` stays: it tells a CSV column's type
        rows = [_stated(schema["items"], value) for value in values]
        return {**schema, "prefixItems": rows, "minItems": len(rows), "maxItems": len(rows)}
    if isinstance(values, int):
        return {**schema, "const": values}
    return {**schema, "pattern": _spelled(values)}


def _spelled(word: str) -> str:
    return f"^[{word[0].upper()}{word[0].lower()}]{word[1:]}$"


def _json(values: Any) -> str:
    return json.dumps(values)


def _yaml(values: Any) -> str:
    return "\n".join(f"{key}: {value}" for key, value in values.items())


def _toml(values: Any) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def _csv(values: Any) -> str:
    return "\n".join([",".join(values[0]), *(",".join(str(value) for value in row.values()) for row in values)])


def _xml(values: Any) -> str:
    return "<root>" + "".join(f"<{key}>{value}</{key}>" for key, value in values.items()) + "</root>"


FAMILIES: list[tuple[str, float, int, str, Callable[[random.Random, str], Made], Callable[[Any], str]]] = [
    ("json_person", 0.1, 1, "json", _person, _json),
    ("yaml_person", 0.2, 1, "yaml", _person, _yaml),
    ("json_product", 0.3, 1, "json", _product, _json),
    ("json_list", 0.4, 1, "json", _cities, _json),
    ("csv_people", 0.5, 2, "csv", _rows, _csv),
    ("toml_product", 0.6, 1, "toml", _product, _toml),
    ("json_nested", 0.7, 1, "json", _trip, _json),
    ("json_person_bare", 0.8, 0, "json", _person, _json),
    ("xml_product", 0.9, 0, "xml", _product, _xml),
]
"""name, difficulty, worked examples, format, maker, writer"""


def _wrapped(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"root": schema}} if kind == "xml" else schema


def _ask(document: str, schema: dict[str, Any], kind: str) -> str:
    return (
        f"Extract the data from the text as {kind.upper()} that matches this JSON schema. Answer with the {kind.upper()} only.\n"
        f"Schema: {json.dumps(schema)}\nText: {document}"
    )


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). Worked examples are train tasks whose answer
    fails the task's own schema: copying one earns nothing."""
    for k in range(n):
        r = random.Random(f"structured_outputs|{seed}|{split}|{k}")
        family, difficulty, shots, kind, make, write = FAMILIES[k % len(FAMILIES)]
        document, schema, values = make(r, split)
        graded = _stated(schema, values)
        checked = Compiled(graded)
        turns = []
        for _ in range(shots):
            shown, shown_schema, shown_values = make(r, "train")
            while checked.problem(shown_values) is None:
                shown, shown_schema, shown_values = make(r, "train")
            turns.append({"role": "user", "content": _ask(shown, _wrapped(shown_schema, kind), kind)})
            turns.append({"role": "assistant", "content": write(shown_values)})
        turns.append({"role": "user", "content": _ask(document, _wrapped(schema, kind), kind)})
        yield {
            "responses_create_params": {"input": turns},
            "schema_str": json.dumps(_wrapped(graded, kind)),
            "schema_type": kind,
            "response_mode": "text",
            "gold_answer": write(values),
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "structured_outputs"},
        }
