"""structured_outputs: its own cases, and its generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from environments.structured_outputs import generator
from environments.structured_outputs.schemas import pattern_states, small
from environments.structured_outputs.server import StructuredOutputs
from environments.structured_outputs.verifier import StructuredSettings
from gym_servers.protocol import RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

FOLDER = StructuredOutputs.folder()
CASES = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


def grade(case: dict[str, Any], pool: WorkerPool) -> Verdict:
    row = {key: value for key, value in case["request"].items() if key != "response"}
    settings = StructuredSettings.model_validate(case.get("server_config") or {})
    return asyncio.run(judge(StructuredOutputs(settings), row, case["request"]["response"]["output"], pool))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], pool: WorkerPool) -> None:
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            grade(case, pool)
    else:
        assert grade(case, pool).reward == case["expected"]["reward"]


def test_generated_tasks_are_deterministic_and_their_gold_is_right(pool: WorkerPool) -> None:
    environment = StructuredOutputs()
    rows = list(environment.generate(90, 3, "train"))
    assert rows == list(environment.generate(90, 3, "train"))
    assert rows != list(environment.generate(90, 4, "train"))
    for row in rows:
        gold = environment.gold(environment.check_row(row))
        assert gold is not None
        verdict = asyncio.run(judge(environment, row, gold, pool))
        assert verdict.reward == 1.0, (row["family"], verdict.explanation)


@pytest.mark.parametrize("lazy", ["", "{}", "[]", "null", "name: x", "I cannot help with that."])
def test_a_degenerate_answer_earns_nothing_on_any_generated_task(lazy: str, pool: WorkerPool) -> None:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": lazy}]}]
    for row in StructuredOutputs().generate(9, 1, "heldout"):
        assert asyncio.run(judge(StructuredOutputs(), row, output, pool)).reward == 0.0


def test_an_answer_that_copies_the_worked_example_earns_nothing(pool: WorkerPool) -> None:
    copied = 0
    for row in StructuredOutputs().generate(180, 5, "heldout"):
        for turn in row["responses_create_params"]["input"]:
            if turn["role"] == "assistant":
                output = [
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": turn["content"]}],
                    }
                ]
                assert asyncio.run(judge(StructuredOutputs(), row, output, pool)).reward == 0.0, (row["family"], turn)
                copied += 1
    assert copied == 160  # of 20 tasks a family: csv_people has two, json_person_bare and xml_product none


def test_short_json_answers_to_generated_tasks_need_no_worker() -> None:
    environment = StructuredOutputs()
    rows = [environment.check_row(row) for row in environment.generate(90, 3, "train")]
    decided = {row.model_dump()["schema_type"]: environment.quick(row, environment.gold(row) or []) for row in rows}
    assert decided.pop("json") is not None
    assert decided == {"yaml": None, "toml": None, "xml": None, "csv": None}


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("^[a-z]+$", 8),
        ("^[A-Za-z]{2,20}$", 16 * 20),
        ("(a{3}){4,}", 10 * 3 * 4),
        ("a{0}", 4),
        ("\\p{L}", float("inf")),
        ("a{12345}", float("inf")),
        ("{", float("inf")),
    ],
)
def test_the_size_of_a_pattern_counts_its_repetitions(pattern: str, states: float) -> None:
    assert pattern_states(pattern) == states
    assert small({"properties": {"a": {"pattern": pattern}}}) == (states <= 512)


def test_patterns_that_multiply_are_left_to_the_worker() -> None:
    assert not small({"pattern": "(a{30}){30}"})
    assert not small({"pattern": "a" * 129})


def test_train_and_heldout_share_no_task() -> None:
    environment = StructuredOutputs()
    train = {row["gold_answer"] for row in environment.generate(900, 0, "train")}
    assert not train & {row["gold_answer"] for row in environment.generate(900, 0, "heldout")}


def shown_schema(row: dict[str, Any]) -> dict[str, Any]:
    """The schema that the prompt shows: all that an agent knows who does not read the text."""
    asked = row["responses_create_params"]["input"][-1]["content"]
    schema: dict[str, Any] = json.loads(asked.split("Schema: ")[1].split("\nText: ")[0])
    return schema


def blind(schema: dict[str, Any], r: random.Random) -> Any:
    """A value that fits `schema`, with favourite words where any word does."""
    match schema["type"]:
        case "object":
            return {name: blind(inner, r) for name, inner in schema["properties"].items()}
        case "array":
            if schema["items"]["type"] == "string":
                return r.sample([*generator.CITIES["train"], "London", "Prague"], schema["minItems"])
            return [blind(schema["items"], r) for _ in range(schema["minItems"])]
        case "integer":
            return r.choice([schema["minimum"], schema["maximum"], r.randint(schema["minimum"], schema["maximum"])])
    return r.choice([*generator.NAMES["train"], *generator.THINGS["train"], "Maria", "pillow"])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_values_that_fit_the_shown_schema_but_are_not_read_from_the_text_earn_nothing(split: Any) -> None:
    environment, r = StructuredOutputs(), random.Random(2)
    write = {family: writer for family, *_, writer in generator.FAMILIES}
    tries: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for row in environment.generate(540, 4, split):
        schema, family = shown_schema(row), row["family"]
        values = blind(schema["properties"]["root"] if row["schema_type"] == "xml" else schema, r)
        shown = {**row, "schema_str": json.dumps(schema)}
        for kind, counter in ((shown, tries), (row, passed)):
            output = [{"type": "message", "content": [{"type": "output_text", "text": write[family](values)}]}]
            counter[family] += int(environment.verify(environment.check_row(kind), output).reward)
    assert all(tries[family] == 60 for family in write), "what is tried does fit the shown schema"
    assert all(passed[family] < 6 for family in write), passed
    assert sum(passed.values()) < 10


def test_a_row_grades_by_the_shown_schema_and_the_values_of_the_text() -> None:
    environment = StructuredOutputs()
    for row in environment.generate(90, 9, "train"):
        gold = environment.gold(environment.check_row(row))
        assert gold is not None
        shown = environment.check_row({**row, "schema_str": json.dumps(shown_schema(row))})
        assert environment.verify(shown, gold).reward == 1.0
