"""structured_outputs: its own cases, the conformance cases, and its generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    assert copied == 140


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


@pytest.mark.conformance
def test_conformance_agrees_or_is_listed_with_its_reason(conformance: Path, pool: WorkerPool) -> None:
    readme = (FOLDER / "README.md").read_text().split("## Disagreements with the reference")[1]
    cases = [json.loads(line) for line in (conformance / "verify/structured_outputs.jsonl").read_text().splitlines()]
    wrong = [case["id"] for case in cases if grade(case, pool).reward != case["expected"]["reward"]]
    print(f"structured_outputs: {len(cases) - len(wrong)} of {len(cases)} agree")
    assert len(cases) == 80
    assert [name for name in wrong if f"| {name} |" not in readme] == []
