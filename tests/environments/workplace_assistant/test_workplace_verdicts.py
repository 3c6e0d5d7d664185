"""The verdict of workplace_assistant: recorded cases, gold answers and hacks, and what it must not depend on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.workplace_assistant.database import load
from environments.workplace_assistant.probes import calls_made
from environments.workplace_assistant.server import WorkplaceAssistant
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import TOOLS, call
from environments.workplace_assistant.verifier import WorkplaceRow, differences
from gym_servers.protocol import Item, RowError, Verdict, function_calls
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

ENVIRONMENT = WorkplaceAssistant()
CASES = [json.loads(line) for line in (ENVIRONMENT.folder() / "cases.jsonl").read_text().splitlines()]
ROWS = [*ENVIRONMENT.generate(60, 5, "train"), *ENVIRONMENT.generate(40, 5, "heldout")]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


def grade(case: dict[str, Any], pool: WorkerPool) -> Verdict:
    row = {key: value for key, value in case["request"].items() if key != "response"}
    return asyncio.run(judge(ENVIRONMENT, row, case["request"]["response"]["output"], pool))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], pool: WorkerPool) -> None:
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            grade(case, pool)
    else:
        assert grade(case, pool).reward == case["expected"]["reward"]


def verdict(row: dict[str, Any], output: list[Item]) -> Verdict:
    return ENVIRONMENT.verify(ENVIRONMENT.check_row(row), output)


def test_the_perfect_agent_earns_all_the_silent_one_nothing_and_no_hack_anything() -> None:
    names: set[str] = set()
    for row in ROWS:
        parsed = ENVIRONMENT.check_row(row)
        assert verdict(row, ENVIRONMENT.gold(parsed)).reward == 1.0, row["family"]
        assert verdict(row, []).reward == 0.0
        for name, output in ENVIRONMENT.probes(parsed).items():
            names.add(name)
            assert verdict(row, output).reward == 0.0, (row["family"], name)
    assert names == {
        *("every_tool", "solved_and_every_tool_more", "solved_and_an_event_made_anew", "solved_twice", "nothing"),
        *("calls_without_arguments", "calls_as_text_only", "calls_that_were_cut_off", "tools_not_offered"),
    }


def test_the_state_of_the_session_decides_and_comes_to_the_same_as_the_calls() -> None:
    for row in ROWS[:30]:
        parsed = ENVIRONMENT.check_row(row)
        assert isinstance(parsed, WorkplaceRow)
        untouched, solved = ENVIRONMENT.seed(parsed), ENVIRONMENT.seed(parsed)
        for true in parsed.ground_truth:
            call(solved, true.name, true.arguments)
        gold = ENVIRONMENT.gold(parsed)
        assert ENVIRONMENT.verify_state(parsed, gold, solved) == ENVIRONMENT.verify_state(parsed, gold, None)
        assert ENVIRONMENT.verify_state(parsed, gold, untouched).reward == 0.0  # words of calls are not calls
        assert ENVIRONMENT.verify_state(parsed, [], solved).reward == 1.0


def test_explanations_name_what_is_missing_and_what_was_not_asked() -> None:
    row = {"ground_truth": [{"name": "email_delete_email", "arguments": {"email_id": "00000018"}}]}
    found = verdict(
        row, [{"type": "function_call", "name": "email_delete_email", "arguments": '{"email_id": "00000019"}'}]
    )
    assert found.explanation == "missing: deleted email_id 00000018. not asked: deleted email_id 00000019"
    assert found.parts == {"expected": 1, "missing": 1, "unexpected": 1}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call"},
        {"type": "function_call", "name": ["email_delete_email"], "call_id": {"a": 1}, "arguments": "{}"},
        {"type": "function_call", "name": "email_delete_email", "arguments": {"email_id": "00000018"}},
        {"type": "function_call", "name": "email_delete_email", "arguments": "[" * 100_000},
        {"type": "function_call", "name": "email_send_email", "arguments": json.dumps({"body": "x" * 70_000})},
        {"type": "function_call", "name": "email_delete_email", "arguments": '{"email_id": {"a": []}}'},
        {"type": "function_call_output", "call_id": None, "output": 5},
        {},
    ],
)
def test_malformed_items_are_no_calls(item: Item) -> None:
    row = {"ground_truth": [{"name": "email_delete_email", "arguments": {"email_id": "00000018"}}]}
    assert verdict(row, [item]).reward == 0.0


NAMES = st.sampled_from(["A", "B", "C"])
CREATES = st.one_of(
    NAMES.map(lambda n: ("email_send_email", {"recipient": "a@b.c", "subject": n, "body": n})),
    NAMES.map(
        lambda n: (
            "calendar_create_event",
            {"event_name": n, "participant_email": "a@b.c", "event_start": "2025-04-14 10:00:00", "duration": "30"},
        )
    ),
    NAMES.map(
        lambda n: (
            "customer_relationship_manager_add_customer",
            {"customer_name": n, "assigned_to_email": "a@b.c", "status": "Lead"},
        )
    ),
    NAMES.map(
        lambda n: (
            "analytics_create_plot",
            {"time_min": "2025-03-01", "time_max": "2025-03-02", "value_to_plot": "total_visits", "plot_type": "bar"},
        )
    ),
)


@settings(max_examples=60)
@given(st.lists(CREATES, min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(0, 5))
def test_it_is_a_function_of_the_multiset_of_independent_creates(
    creates: list[tuple[str, dict[str, Any]]], r: random.Random, drop: int
) -> None:
    row = {"ground_truth": [{"name": name, "arguments": arguments} for name, arguments in creates]}
    shuffled = r.sample(creates, len(creates))
    made = calls_made(load(""), shuffled, set(TOOLS))
    assert verdict(row, made).reward == 1.0
    fewer = shuffled[: drop % len(creates)] + shuffled[drop % len(creates) + 1 :]
    assert verdict(row, calls_made(load(""), fewer, set(TOOLS))).reward == 0.0
    assert verdict(row, calls_made(load(""), [*shuffled, creates[0]], set(TOOLS))).reward == 0.0


def test_ids_of_what_was_made_and_removed_are_never_given_again() -> None:
    state = Workplace(load(""))
    event = {"event_name": "X", "participant_email": "a@b.c", "event_start": "2025-04-14 10:00:00", "duration": 30}
    assert call(state, "calendar_create_event", event) == "00000300"
    assert call(state, "calendar_delete_event", {"event_id": "00000300"}) == "Event deleted successfully."
    assert not differences(state)
    assert call(state, "calendar_create_event", event) == "00000301"


@pytest.mark.parametrize("drop", ["ground_truth"])
def test_a_row_without_a_field_says_which(drop: str) -> None:
    row = {key: value for key, value in {**ROWS[0], "task_id": "t7"}.items() if key != drop}
    with pytest.raises(RowError, match=f"environment 'workplace_assistant' task 't7': field '{drop}': Field required"):
        ENVIRONMENT.check_row(row)


def test_the_gold_s_calls_are_those_of_the_row() -> None:
    gold = ENVIRONMENT.gold(ENVIRONMENT.check_row(ROWS[3]))
    made = [{"name": item["name"], "arguments": item["arguments"]} for item in function_calls(gold)]
    assert made == ROWS[3]["ground_truth"]
