"""Whole episodes over real HTTP, and sessions: what they hold, when they end, who shares them."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit_toys import serving
from scripted_office import Line, call_text, office, perfect

from environments.workplace_assistant.database import load
from environments.workplace_assistant.generator import generate
from environments.workplace_assistant.probes import calls_made
from environments.workplace_assistant.server import WorkplaceAssistant, WorkplaceSettings
from environments.workplace_assistant.toolset import TOOLS, declarations
from environments.workplace_assistant.verifier import differences, replayed
from gym_servers.replay import replay
from gym_servers.resources import SESSION_HEADER, build_resources
from gym_servers.sessions import MemorySessions, session_name

ROWS = list(generate(20, 11, "train"))
SECRET = "of the deployment"


def test_the_perfect_agent_earns_everything_in_whole_episodes() -> None:
    with office(ROWS, perfect) as made:
        rollouts = made.collect()
        assert [(rollout.reward, rollout.failure) for rollout in rollouts] == [(1.0, None)] * len(ROWS)
        assert len(made.sessions) == 0
    for row, rollout in zip(ROWS, rollouts, strict=True):
        assert len(rollout.tool_calls) == len(row["ground_truth"])
        assert not any(call.error for call in rollout.tool_calls)
        assert rollout.segments and all(segment.sampled for segment in rollout.segments)
    for rollout in rollouts[7:10]:  # several steps
        again = asyncio.run(replay(WorkplaceAssistant(), rollout))
        assert again.differences(rollout) == []
        assert len(again.calls) == len(rollout.tool_calls) and again.changes


def test_the_silent_agent_and_one_that_only_talks_earn_nothing() -> None:
    def talks(row: Line, turn: int) -> str:
        return f"I called {json.dumps(row['ground_truth'])}" if row is ROWS[0] else ""

    with office(ROWS, talks) as made:
        assert {rollout.reward for rollout in made.collect()} == {0.0}


def test_an_agent_recovers_from_what_tools_tell_it_and_stops_at_six_steps() -> None:
    row = next(row for row in ROWS if len(row["ground_truth"]) == 1 and row["tools"] == "all")
    wrong = [
        call_text("no_such_tool", {}),
        call_text("email_search_emails", {"date_min": "soon"}),
        call_text("email_search_emails", {"from": "x"}),
        call_text("email_delete_email", {}),
    ]

    def turns(given: Line, turn: int) -> str:
        return wrong[turn] if turn < 4 else perfect(given, turn - 4)

    with office([row], turns) as made:
        (rollout,) = made.collect()
    assert [call.output for call in rollout.tool_calls[:4]] == [
        f"Error: there is no tool 'no_such_tool'. Tools: {', '.join(sorted(TOOLS))}",
        "Error: argument 'date_min': 'soon' is not a date. Format: YYYY-MM-DD",
        "Error: tool 'email_search_emails': argument 'from': Extra inputs are not permitted. "
        "Arguments: query, date_min, date_max, page, page_size",
        "Email ID not provided.",
    ]
    assert (rollout.steps, rollout.reward, rollout.truncated) == (6, 1.0, False)
    with office([row], lambda given, turn: call_text("email_search_emails", {})) as made:
        (rollout,) = made.collect()
    assert (rollout.steps, rollout.reward) == (6, 0.0)


def test_tools_that_are_not_offered_change_nothing() -> None:
    row = next(
        row
        for row in ROWS
        if row["steps"] == 1 and "email_delete_email" not in str(row["responses_create_params"]["tools"])
    )
    every = [call_text("email_delete_email", {"email_id": "00000018"}), perfect(row, 0), "Done."]
    with office([row], lambda given, turn: every[turn]) as made:
        (rollout,) = made.collect()
    assert rollout.tool_calls[0].output.startswith("Error: there is no tool 'email_delete_email'")
    assert rollout.reward == 1.0


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[httpx.Client, httpx.Client, MemorySessions]]:
    """Two servers of one deployment with one session store."""
    sessions = MemorySessions()
    apps = [build_resources([WorkplaceAssistant()], workers=1, sessions=sessions, secret=SECRET) for _ in range(2)]
    with serving(apps[0]) as one, serving(apps[1]) as two:
        with (
            httpx.Client(base_url=f"{one}/workplace_assistant", timeout=120, trust_env=False) as first,
            httpx.Client(base_url=f"{two}/workplace_assistant", timeout=120, trust_env=False) as second,
        ):
            yield first, second, sessions


def opened(client: httpx.Client, row: Line) -> dict[str, str]:
    reply = client.post("/seed_session", json=row)
    client.cookies.clear()
    assert reply.status_code == 200, reply.text
    assert reply.json()["max_steps"] == 6
    return {SESSION_HEADER: reply.json()["session_id"]}


IDS = ["00000018", "00000019", "00000300", "00000017", "500", "nobody"]
VALUES = st.sampled_from(
    [*IDS, "event_name", "subject", "status", "Lost", "list_name", "Completed", "2025-04-14", "a@b.c", "30"]
)
CALLS = st.sampled_from(sorted(TOOLS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.fixed_dictionaries({key: VALUES for key in declarations()[name]["parameters"]["required"]}),
    )
)


@settings(max_examples=25)
@given(st.lists(CALLS, max_size=8), st.integers(0, 255))
def test_any_calls_lead_to_one_state_in_process_and_over_http_on_two_servers(
    shared: tuple[httpx.Client, httpx.Client, MemorySessions], calls: list[tuple[str, dict[str, Any]]], which: int
) -> None:
    clients, sessions = shared[:2], shared[2]
    row = {"responses_create_params": {"input": []}, "ground_truth": []}
    header = opened(clients[0], row)
    for number, (name, arguments) in enumerate(calls):
        reply = clients[(which >> number) & 1].post(f"/{name}", json=arguments, headers=header)
        assert reply.status_code in (200, 422), reply.text
    found = asyncio.run(sessions.load(session_name(header[SESSION_HEADER], "workplace_assistant", SECRET)))
    assert found is not None
    state = pickle.loads(found.state)
    parsed = WorkplaceAssistant().check_row(row)
    here = replayed(parsed, calls_made(load(""), calls, set(TOOLS)), load(""), 65536)
    assert (state.changes, state.made, state.plots) == (here.changes, here.made, here.plots)
    verdict = clients[1].post("/verify", json={**row, "response": {"output": []}}, headers=header).json()
    assert verdict["reward"] == float(not differences(here))


def test_a_session_is_gone_after_its_verdict(shared: tuple[httpx.Client, httpx.Client, MemorySessions]) -> None:
    client, other, sessions = shared
    before, header = len(sessions), opened(client, ROWS[0])
    assert len(sessions) == before + 1
    (true,) = ROWS[0]["ground_truth"]
    assert other.post(f"/{true['name']}", json=json.loads(true["arguments"]), headers=header).status_code == 200
    body = {**ROWS[0], "response": {"output": []}}
    assert client.post("/verify", json=body, headers=header).json()["reward"] == 1.0
    assert len(sessions) == before
    reply = client.post("/email_search_emails", json={}, headers=header)
    assert reply.status_code == 503 and "the session has ended or expired" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ground_truth": None}, "field 'ground_truth'"),
        ({"ground_truth": [{"name": "x", "arguments": {}}]}, "field 'ground_truth.0.name': .*there is no tool 'x'"),
        ({"ground_truth": [{"name": "email_delete_email"}]}, "field 'ground_truth.0.arguments': Field required"),
        ({"ground_truth": [{"arguments": "{}"}]}, "field 'ground_truth.0.name': Field required"),
        ({"ground_truth": [{"name": "email_delete_email", "arguments": "[" * 10_000}]}, "ground_truth.0.arguments"),
        ({"ground_truth": [{"name": "email_delete_email", "arguments": {"email_id": []}}]}, "argument 'email_id'"),
        ({"responses_create_params": []}, "field 'responses_create_params'"),
        ({"category": 5}, "field 'category'"),
        ({"ground_truth": [{"name": ["x"], "arguments": "{}"}]}, "field 'ground_truth.0.name'"),
    ],
)
def test_a_bad_row_is_a_422_that_names_the_field(
    shared: tuple[httpx.Client, httpx.Client, MemorySessions], change: Line, said: str
) -> None:
    row = {**ROWS[0], "task_id": "t9", **change}
    for path, body in (("/seed_session", row), ("/verify", {**row, "response": {"output": []}})):
        reply = shared[0].post(path, json=body)
        assert reply.status_code == 422, reply.text
        assert re.search(
            f"environment 'workplace_assistant' task 't9'.*{said}", reply.json()["error"]["message"], re.DOTALL
        )


@pytest.mark.parametrize("tools", [5, "all", [5], [{"name": ["x"]}], [None], {"a": 1}])
def test_strange_declarations_of_tools_are_no_500(
    shared: tuple[httpx.Client, httpx.Client, MemorySessions], tools: Any
) -> None:
    row = {"responses_create_params": {"input": [], "tools": tools}, "ground_truth": []}
    for path, body in (("/seed_session", row), ("/verify", {**row, "response": {"output": []}})):
        assert shared[0].post(path, json=body).status_code in (200, 422)


def test_the_server_refuses_what_the_task_does_not_offer_whatever_the_agent(
    shared: tuple[httpx.Client, httpx.Client, MemorySessions],
) -> None:
    row = {**ROWS[0], "ground_truth": [{"name": "email_delete_email", "arguments": {"email_id": "00000018"}}]}
    row["responses_create_params"] = {"input": [], "tools": [declarations()["email_delete_email"]]}
    header = opened(shared[0], row)
    reply = shared[0].post("/email_reply_email", json={"email_id": "00000018", "body": "B"}, headers=header)
    assert reply.status_code == 422
    said = "there is no tool 'email_reply_email' for this task. Tools: email_delete_email"
    assert reply.json()["error"]["message"] == said
    assert shared[1].post("/email_delete_email", json={"email_id": "00000018"}, headers=header).status_code == 200
    body = {**row, "response": {"output": []}}
    assert shared[1].post("/verify", json=body, headers=header).json()["reward"] == 1.0


@pytest.mark.parametrize("calls", [101, 20_000])
def test_a_ground_truth_that_is_too_long_is_refused(
    shared: tuple[httpx.Client, httpx.Client, MemorySessions], calls: int
) -> None:
    row = {**ROWS[0], "ground_truth": [{"name": "email_delete_email", "arguments": "{}"}] * calls}
    reply = shared[0].post("/seed_session", json=row)
    assert reply.status_code == 422 and "field 'ground_truth'" in reply.json()["error"]["message"]


def test_arguments_beyond_the_limit_are_refused(shared: tuple[httpx.Client, httpx.Client, MemorySessions]) -> None:
    header = opened(shared[0], ROWS[0])
    reply = shared[0].post("/email_search_emails", json={"query": "x" * 70_000}, headers=header)
    assert reply.status_code == 422 and "longer than 65536 bytes" in reply.json()["error"]["message"]


def test_a_server_over_a_folder_that_does_not_fit_says_so_and_is_not_ready(tmp_path: Path) -> None:
    environment = WorkplaceAssistant(WorkplaceSettings(database=str(tmp_path)))
    with (
        serving(build_resources([environment], workers=1)) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        ready = client.get("/readyz", timeout=60)
        assert ready.status_code == 503 and "emails.csv: cannot be read" in ready.json()["reason"]
        reply = client.post("/seed_session", json=ROWS[0])
        assert reply.status_code == 400 and "emails.csv: cannot be read" in reply.json()["error"]["message"]


@pytest.mark.conformance
def test_published_rows_run_as_they_are(
    conformance: Path, conform: Callable[[str, dict[str, bool], str], None]
) -> None:
    folder = conformance / "workplace_assistant"
    rows = [json.loads(line) for line in (folder / "example_rows.jsonl").read_text().splitlines()]
    tools = json.loads((folder / "tools.json").read_text())
    for row in rows:
        row["responses_create_params"].setdefault("tools", tools)
    with office(rows, perfect, WorkplaceAssistant(WorkplaceSettings(database=str(folder / "db")))) as made:
        rollouts = made.collect()
    found = {f"row/{row['id']}": rollout.reward == 1.0 for row, rollout in zip(rows, rollouts, strict=True)}
    assert len(found) == 5
    conform("workplace_assistant/example_rows.jsonl", found, "environments/workplace_assistant/README.md")
