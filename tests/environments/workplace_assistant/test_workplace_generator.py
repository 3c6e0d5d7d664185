"""Generated tasks: seeded, varied, graded, disjoint between the splits, and each asks for a change."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from environments.workplace_assistant.company import PEOPLE, address
from environments.workplace_assistant.database import load
from environments.workplace_assistant.generator import KINDS, generate
from environments.workplace_assistant.making import CLIENTS, COLUMN, EVENT_NAMES, SUBJECTS, TASK_NAMES, TEXTS
from environments.workplace_assistant.toolset import TOOLS, declarations
from environments.workplace_assistant.verifier import WorkplaceRow, differences, expected

Line = dict[str, Any]
TRAIN, HELDOUT = list(generate(300, 0, "train")), list(generate(150, 0, "heldout"))


def request(row: Line) -> str:
    text: str = row["responses_create_params"]["input"][-1]["content"]
    return text


def values(rows: list[Line]) -> set[str]:
    """Every value of every call of the ground truths."""
    return {value for row in rows for true in row["ground_truth"] for value in json.loads(true["arguments"]).values()}


def test_the_same_seed_gives_the_same_rows_whatever_their_number() -> None:
    assert list(generate(40, 0, "train")) == TRAIN[:40]
    assert list(generate(40, 1, "train")) != TRAIN[:40]


def test_people_records_and_texts_of_the_splits_are_disjoint() -> None:
    for words in (SUBJECTS, TEXTS, EVENT_NAMES, TASK_NAMES, CLIENTS, PEOPLE):
        assert not set(words["train"]) & set(words["heldout"])
    mail = {split: {address(person) for person in people} for split, people in PEOPLE.items()}
    base = load("")
    for split, rows in (("train", TRAIN), ("heldout", HELDOUT)):
        used = values(rows)
        assert used & mail[split]
        assert not used & mail["heldout" if split == "train" else "train"]
        for row in rows:
            for true in row["ground_truth"]:
                for name, value in json.loads(true["arguments"]).items():
                    table = {
                        "email_id": "emails",
                        "event_id": "events",
                        "task_id": "tasks",
                        "customer_id": "customers",
                    }.get(name)
                    if table:
                        assert base.tables[table][value][COLUMN[table]] in mail[split]  # type: ignore[index]
    dates = [{v for v in values(rows) if v.startswith("2025-0") and len(v) == 10} for rows in (TRAIN, HELDOUT)]
    plots = [
        {json.loads(t["arguments"])["time_min"] for row in rows for t in row["ground_truth"] if "plot" in t["name"]}
        for rows in (TRAIN, HELDOUT)
    ]
    assert all(dates) and all(plots) and not plots[0] & plots[1]


def test_difficulty_is_graded_and_every_kind_comes() -> None:
    assert all(0.0 <= row["difficulty"] <= 1.0 for row in TRAIN + HELDOUT)
    assert min(row["difficulty"] for row in TRAIN) <= 0.05 and max(row["difficulty"] for row in TRAIN) >= 0.9
    assert {maker.__name__ for kind in KINDS for maker in kind.makers} == {row["family"] for row in TRAIN}
    assert {1, 2, 3, 4, 5, 6} == {row["steps"] for row in TRAIN}
    assert {row["tools"] for row in TRAIN} == {"all", "relevant"}


def test_requests_are_varied() -> None:
    assert len({request(row) for row in TRAIN}) >= 0.97 * len(TRAIN)
    openings = Counter(request(row).split()[0] for row in TRAIN)
    assert len(openings) > 15 and openings.most_common(1)[0][1] < 0.3 * len(TRAIN)


def test_every_task_changes_something_with_tools_that_it_offers() -> None:
    for row in TRAIN + HELDOUT:
        assert differences(expected(WorkplaceRow.model_validate(row), load("")))
        offered = row["responses_create_params"]["tools"]
        assert (len(offered) == len(TOOLS)) == (row["tools"] == "all")
        assert all(tool == declarations()[tool["name"]] for tool in offered)


def test_an_easy_request_names_every_value() -> None:
    easy = [row for row in TRAIN if row["difficulty"] <= 0.3 and row["steps"] == 1]
    for row in easy:
        (true,) = row["ground_truth"]
        for name, value in json.loads(true["arguments"]).items():
            assert name == "field" or value in request(row), (request(row), true)


def test_worked_examples_do_something_else() -> None:
    shown = [row for row in TRAIN if len(row["responses_create_params"]["input"]) > 2]
    assert shown
    for row in shown:
        calls = [item for item in row["responses_create_params"]["input"] if item.get("type") == "function_call"]
        assert len(calls) == 2
        truth = row["ground_truth"][0]
        assert all((item["name"], item["arguments"]) != (truth["name"], truth["arguments"]) for item in calls)
        assert all(item["name"] == truth["name"] for item in calls)
