"""competition_math: its own cases, the conformance cases, hostile answers, and its generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.competition_math.server import CompetitionMath
from environments.competition_math.verifier import decide
from gym_servers.protocol import RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

FOLDER = CompetitionMath.folder()
CASES = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    warm: list[tuple[str, tuple[Any, ...]]] = [("gym_servers.verification:prepare_environment", ("competition_math",))]
    with contextlib.closing(WorkerPool(1, warm=warm)) as made:
        yield made


def grade(case: dict[str, Any], pool: WorkerPool) -> Verdict:
    row = {key: value for key, value in case["request"].items() if key != "response"}
    return asyncio.run(judge(CompetitionMath(), row, case["request"]["response"]["output"], pool))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], pool: WorkerPool) -> None:
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            grade(case, pool)
    else:
        assert grade(case, pool).reward == case["expected"]["reward"]


def test_what_exhausts_a_worker_scores_zero(pool: WorkerPool) -> None:
    case = json.loads(json.dumps(CASES[0]))
    case["request"]["response"]["output"][0]["content"][0]["text"] = "\\boxed{\\sum_{k=1}^{10^8} 1/k}"
    assert grade(case, pool).reward == 0.0
    assert grade(CASES[0], pool).reward == 1.0


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.,/\\{}^_-+!%$()[]= boxedfrac", max_size=200), st.sampled_from(["4", "1/2", "x+1"]))
def test_no_text_breaks_the_part_that_runs_in_the_server(text: str, expected: str) -> None:
    decide(text, expected)


def test_generated_tasks_are_deterministic_varied_and_their_gold_is_right(pool: WorkerPool) -> None:
    environment = CompetitionMath()
    rows = list(environment.generate(90, 3, "train"))
    assert rows == list(environment.generate(90, 3, "train"))
    assert rows[:10] == list(environment.generate(10, 3, "train"))
    assert rows != list(environment.generate(90, 4, "train"))
    assert len({row["family"] for row in rows}) == 15
    for row in rows:
        gold = environment.gold(environment.check_row(row))
        assert gold is not None
        assert asyncio.run(judge(environment, row, gold, pool)).reward == 1.0


def test_train_and_heldout_share_no_question() -> None:
    environment = CompetitionMath()
    train = {row["question"] for row in environment.generate(900, 0, "train")}
    shown = {
        turn["content"]
        for row in environment.generate(900, 0, "train")
        for turn in row["responses_create_params"]["input"]
    }
    heldout = {row["question"] for row in environment.generate(900, 1, "heldout")}
    assert not train & heldout
    assert not any(text.startswith(tuple(heldout)) for text in shown)


@pytest.mark.conformance
def test_conformance_agrees_or_is_listed_with_its_reason(conformance: Path, pool: WorkerPool) -> None:
    readme = (FOLDER / "README.md").read_text().split("## Disagreements with the reference")[1]
    cases = [json.loads(line) for line in (conformance / "verify/competition_math.jsonl").read_text().splitlines()]
    wrong = [case["id"] for case in cases if grade(case, pool).reward != case["expected"]["reward"]]
    print(f"competition_math: {len(cases) - len(wrong)} of {len(cases)} agree")
    assert len(cases) == 106
    assert [name for name in wrong if f"| {name} |" not in readme] == []
    assert len(wrong) == 4
