"""The 27 tools: what they answer on a small database that is written out here, and on anything at all."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.workplace_assistant.database import Database, Record, Visit, load
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import TOOLS, call, declarations
from gym_servers.resources import tool_output
from gym_servers.tools import ToolRefused


def email(key: str, who: str, subject: str, time: str, body: str = "text") -> Record:
    values = (key, "inbox", who, subject, time, body)
    return dict(
        zip(("email_id", "inbox/outbox", "sender/recipient", "subject", "sent_datetime", "body"), values, strict=True)
    )


def event(key: str, name: str, who: str, start: str, duration: str) -> Record:
    return dict(event_id=key, event_name=name, participant_email=who, event_start=start, duration=duration)


def task(key: str, name: str, who: str, where: str, due: str) -> Record:
    return dict(task_id=key, task_name=name, assigned_to_email=who, list_name=where, due_date=due, board="Design")


def customer(key: str, name: str, contact: str | None, status: str) -> Record:
    return {
        **dict(customer_id=key, assigned_to_email="ann@x.org", customer_name=name, customer_email=None),
        **dict(customer_phone=None, last_contact_date=contact, product_interest="Software", status=status),
        **dict(follow_up_by="2024-02-01", notes=""),
    }


def small() -> Workplace:
    d = date(2024, 1, 1)
    base = Database(
        "small",
        "2024-01-05 12:00:00",
        ("ann@x.org", "bob.ann@x.org"),
        {
            "emails": {
                "00000001": email("00000001", "ann@x.org", "Big plan", "2024-01-01 10:00:00"),
                "00000007": email("00000007", "bob.ann@x.org", "Small plan", "2024-01-03 23:30:00", "a big.*text"),
            },
            "events": {
                "00000002": event("00000002", "Talk", "ann@x.org", "2024-01-02 09:00:00", "60"),
                "00000003": event("00000003", "Walk", "bob.ann@x.org", "2024-01-02 11:00:00", "30"),
            },
            "tasks": {"00000004": task("00000004", "Fix it", "ann@x.org", "Backlog", "2024-01-09")},
            "customers": {
                "00000005": customer("00000005", "Cy Doe", "2024-01-04 08:00:00", "Lead"),
                "00000006": customer("00000006", "Di Doe", None, "Won"),
            },
        },
        (
            Visit("0001", d, "3", 10, "direct", True),
            Visit("0002", d, "1", 20, "referral", False),
            Visit("0001", date(2024, 1, 3), "2", 5, "direct", False),
        ),
    )
    return Workplace(base)


def ids(found: Any, name: str, key: str) -> list[str]:
    return [record[key] for record in found[name]]


def test_the_directory_finds_by_words() -> None:
    find = "company_directory_find_email_address"
    assert call(small(), find, {"name": "ANN"}) == ["ann@x.org", "bob.ann@x.org"]
    assert call(small(), find, {"name": "Ann Bob"}) == ["bob.ann@x.org"]
    assert call(small(), find, {"name": "."}) == ["ann@x.org", "bob.ann@x.org"]  # a dot is a dot, and both have one
    assert call(small(), find, {}) == "Name not provided."


def test_emails_are_found_by_all_words_in_any_column_and_by_day() -> None:
    def search(**arguments: Any) -> Any:
        return call(small(), "email_search_emails", arguments)

    assert ids(search(query="plan"), "emails", "email_id") == ["00000007", "00000001"]  # the latest first
    assert ids(search(query="BIG small"), "emails", "email_id") == ["00000007"]
    assert search(query="b.g") == "No emails found."
    assert ids(search(query=".*"), "emails", "email_id") == ["00000007"]
    assert ids(search(date_max="2024-01-03"), "emails", "email_id") == ["00000007", "00000001"]  # to the end of the day
    assert ids(search(date_min="2024-01-02"), "emails", "email_id") == ["00000007"]
    assert search(page_size=1, page=9)["pagination"] == {"total_emails": 2, "page": 2, "page_size": 1, "total_pages": 2}
    for wrong in ({"date_min": "soon"}, {"page_size": 0}, {"page_size": -3}, {"query": "x" * 201}):
        with pytest.raises(ToolRefused):
            search(**wrong)


def test_what_is_sent_is_found_and_answers_go_to_the_other_side() -> None:
    state = small()
    assert (
        call(state, "email_send_email", {"recipient": "B@X.org", "subject": "S", "body": "T"})
        == "Email sent successfully."
    )
    assert call(state, "email_reply_email", {"email_id": "00000007", "body": "Yes"}) == "Email replied successfully."
    assert (
        call(state, "email_forward_email", {"email_id": "00000001", "recipient": "c@x.org"})
        == "Email forwarded successfully."
    )
    sent = call(state, "email_search_emails", {"date_min": "2024-01-05"})["emails"]
    assert [
        (one["email_id"], one["inbox/outbox"], one["sender/recipient"], one["subject"], one["body"]) for one in sent
    ] == [
        ("8", "outbox", "b@x.org", "S", "T"),
        ("9", "outbox", "bob.ann@x.org", "Small plan", "Yes"),
        ("10", "outbox", "c@x.org", "FW: Big plan", "text"),
    ]
    assert {one["sent_datetime"] for one in sent} == {"2024-01-05 12:00:00"}
    assert call(state, "email_delete_email", {"email_id": "8"}) == "Email deleted successfully."
    assert call(state, "email_delete_email", {"email_id": "8"}) == "Email not found."


def test_events_are_found_by_when_they_end_and_start() -> None:
    def search(**arguments: Any) -> list[str]:
        found = call(small(), "calendar_search_events", arguments)
        return found if isinstance(found, str) else ids(found, "events", "event_id")

    assert search() == ["00000003", "00000002"]
    assert search(time_min="2024-01-02 10:00:00") == ["00000003", "00000002"]  # the talk ends at ten
    assert search(time_min="2024-01-02 10:00:01") == ["00000003"]
    assert search(time_max="2024-01-02 10:59:59") == ["00000002"]
    assert search(query="walk ann") == ["00000003"]
    assert search(query="nobody") == "No events found."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"event_start": "2024-01-02T10:00:00Z"}, "Invalid event_start format. Expected YYYY-MM-DD HH:MM:SS."),
        ({"event_start": "10 o'clock"}, "Invalid event_start format. Expected YYYY-MM-DD HH:MM:SS."),
        ({"duration": "-5"}, "Invalid duration format. Expected a number of minutes."),
        ({"duration": "1.5"}, "Invalid duration format. Expected a number of minutes."),
        ({"duration": "٣"}, "Invalid duration format. Expected a number of minutes."),
        ({"participant_email": "ann"}, "Invalid participant email address."),
        ({"event_name": None}, "Event name not provided."),
        ({"duration": 45}, "00000004"),
        ({"duration": 45.0}, "00000004"),
    ],
)
def test_a_new_event_must_make_sense(change: dict[str, Any], said: str) -> None:
    state = small()
    fine = {"event_name": "N", "participant_email": "Ann@x.org", "event_start": "2024-01-09 09:00:00", "duration": "45"}
    assert call(state, "calendar_create_event", {**fine, **change}) == said
    if said == "00000004":
        assert state.get("events", said) == event(said, "N", "ann@x.org", "2024-01-09 09:00:00", "45")
    else:
        assert not state.changes


def test_analytics_count_by_day() -> None:
    state = small()
    assert call(state, "analytics_total_visits_count", {}) == {"2024-01-01": 2, "2024-01-03": 1}
    assert call(state, "analytics_engaged_users_count", {}) == {"2024-01-01": 1, "2024-01-03": 0}
    source = {"traffic_source": "referral"}
    assert call(state, "analytics_traffic_source_count", source) == {"2024-01-01": 1, "2024-01-03": 0}
    assert call(state, "analytics_get_average_session_duration", {"time_max": "2024-01-02"}) == {"2024-01-01": 15.0}
    seen = call(state, "analytics_get_visitor_information_by_id", {"visitor_id": 1})
    assert seen == "Visitor not found."  # 1 is not "0001"
    assert len(call(state, "analytics_get_visitor_information_by_id", {"visitor_id": "0001"})) == 2
    plot = {"time_min": "2024-01-01", "time_max": "2024-01-03", "value_to_plot": "user_engaged", "plot_type": "line"}
    assert call(state, "analytics_create_plot", plot) == "plots/2024-01-01_2024-01-03_user_engaged_line.png"
    assert call(state, "analytics_create_plot", {**plot, "plot_type": "pie"}).startswith(
        "Plot type must be one of 'bar'"
    )
    assert len(state.plots) == 1


def test_tasks_and_customers_are_found_changed_and_made() -> None:
    state = small()
    assert (
        call(state, "project_management_search_tasks", {"list_name": "back", "task_name": "FIX"})[0]["task_id"]
        == "00000004"
    )
    update = {"task_id": "00000004", "field": "assigned_to_email", "new_value": "BOB.ann@x.org"}
    assert call(state, "project_management_update_task", update) == "Task updated successfully."
    assert call(state, "project_management_search_tasks", {"assigned_to_email": "ann@x.org", "board": "Design"})
    assert state.get("tasks", "00000004") == task("00000004", "Fix it", "bob.ann@x.org", "Backlog", "2024-01-09")
    assert small().get("tasks", "00000004") == task("00000004", "Fix it", "ann@x.org", "Backlog", "2024-01-09")

    def search(**arguments: Any) -> Any:
        found = call(state, "customer_relationship_manager_search_customers", arguments)
        return found if isinstance(found, str) else ids(found, "customers", "customer_id")

    assert search(customer_name="doe") == ["00000005", "00000006"]
    assert search(last_contact_date_max="2024-01-04") == ["00000005"]  # who was never spoken to has no date
    assert search(last_contact_date_min="2024-01-05") == "No customers found."
    assert search(status="won", product_interest="software") == ["00000006"]
    with pytest.raises(ToolRefused, match="argument 'follow_up_by_min': 'x' is not a date"):
        search(follow_up_by_min="x")


def test_an_episode_makes_a_bounded_number_of_records_of_bounded_size() -> None:
    state = small()
    made = {"recipient": "a@b.c", "subject": "S", "body": "B" * 10_000}
    for _ in range(199):
        assert call(state, "email_send_email", made) == "Email sent successfully."
    plot = {"time_min": "2024-01-01", "time_max": "2024-01-03", "value_to_plot": "user_engaged", "plot_type": "line"}
    call(state, "analytics_create_plot", plot)
    for name, arguments in (("email_send_email", made), ("analytics_create_plot", plot)):
        with pytest.raises(ToolRefused, match="200 records and plots were made already"):
            call(state, name, arguments)
    with pytest.raises(ToolRefused, match="argument 'body': Value error, must have at most 10000 characters"):
        call(small(), "email_send_email", {**made, "body": "B" * 10_001})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["00000004", "00000007", "ann@x.org", "2024-01-02", "9999-12-31 23:59:59", "99999", "Backlog", "status", "Won"]
    ),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=100)
@given(st.data())
def test_whatever_a_tool_gets_it_answers_or_refuses(data: st.DataObject) -> None:
    state = small()
    for _ in range(3):
        name = data.draw(st.sampled_from(sorted(TOOLS)))
        known = list(TOOLS[name].arguments.model_fields)
        arguments = data.draw(st.dictionaries(st.sampled_from(known), VALUES))
        before = pickle.dumps((state.changes, state.made, state.plots))
        try:
            tool_output(call(state, name, arguments))
        except ToolRefused:
            assert pickle.dumps((state.changes, state.made, state.plots)) == before
        if TOOLS[name].read_only:
            assert pickle.dumps((state.changes, state.made, state.plots)) == before


def test_descriptions_say_what_every_argument_is() -> None:
    for declared in declarations().values():
        assert declared["description"].endswith(".")
        for field in declared["parameters"]["properties"].values():
            assert field.keys() == {"type", "description"}


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(one) for key, one in value.items() if key != "description" or not isinstance(one, str)}
    return value


@pytest.mark.conformance
def test_names_and_parameters_are_the_published_ones(conformance: Path) -> None:
    published = json.loads((conformance / "workplace_assistant/tools.json").read_text())
    assert len(published) == 27
    assert [_bare(tool) for tool in published] == [_bare(tool) for tool in declarations().values()]


@pytest.mark.conformance
def test_recorded_tool_outputs(conformance: Path, conform: Callable[[str, dict[str, bool], str], None]) -> None:
    base = load(str(conformance / "workplace_assistant/db"))
    found: dict[str, bool] = {}
    for line in (conformance / "workplace_assistant/tool_calls.jsonl").read_text().splitlines():
        case = json.loads(line)
        state, agrees = Workplace(base), True
        for step in case["steps"]:
            try:
                kind, body = tool_output(call(state, step["tool"], step["arguments"]))
            except ToolRefused as error:
                kind, body = "text/plain", str(error).encode()
            got = body.decode() if kind == "text/plain" else json.loads(body)
            agrees = agrees and got == step["output"]
        found[case["id"]] = agrees
    assert len(found) == 90
    conform("workplace_assistant/tool_calls.jsonl", found, "environments/workplace_assistant/README.md")
