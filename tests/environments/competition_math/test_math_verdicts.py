"""competition_math: its own cases and its generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from environments.competition_math.server import CompetitionMath
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
