"""Responses items <-> chat messages: the conformance cases, and a round trip."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gym_servers.models.converter import (
    UnsupportedRequest,
    chat_messages,
    chat_params,
    response_items,
    response_status,
    response_usage,
)


def test_one_turn_s_items_become_one_message_and_come_back() -> None:
    message = {
        "role": "assistant",
        "content": "<think>hm</think>hi",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    items = response_items(message)
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
    assert chat_messages({"input": [{"role": "user", "content": "x"}, *items]})[1] == message


def test_an_empty_answer_is_an_empty_message() -> None:
    assert response_items({"content": None})[0]["content"][0]["text"] == ""


@pytest.mark.parametrize(
    "bad", [{"input": 3}, {"input": [3]}, {"input": [{"type": "web_search_call"}]}, {"input": "x", "y": 1}]
)
def test_what_has_no_chat_form_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRequest):
        chat_params(bad)


def disagrees(case: dict[str, Any]) -> str:
    tokens = case["return_token_id_information"]
    expected = case["expected"]
    if "message" in case:
        items = response_items(case["message"], case["uses_reasoning_parser"], tokens)
        for item in items:
            item["id"] = re.sub(r"^(rs|msg)_[0-9a-f]{32}$", r"\1_<uuid>", item["id"])
        status, details = response_status(case["finish_reason"])
        got = {
            "output": items,
            "status": status,
            "incomplete_details": details,
            "usage": response_usage(case.get("usage")),
        }
        return "" if got == expected else f"{case['id']}: {got}"
    try:
        params = chat_params(case["input"], tokens)
    except UnsupportedRequest as error:
        return "" if "raises" in expected else f"{case['id']}: {error}"
    return "" if params == expected.get("chat_params") else f"{case['id']}: {params}"


@pytest.mark.conformance
def test_every_case_agrees(conformance: Path) -> None:
    cases = [json.loads(line) for line in (conformance / "responses_converter.jsonl").read_text().splitlines()]
    wrong = [text for case in cases if (text := disagrees(case))]
    print(f"responses_converter: {len(cases) - len(wrong)} of {len(cases)} agree")
    assert len(cases) == 31
    assert wrong == []


@pytest.mark.conformance
def test_every_trajectory_agrees(conformance: Path) -> None:
    cases = [
        json.loads(line) for line in (conformance / "responses_trajectory_roundtrip.jsonl").read_text().splitlines()
    ]
    agree = [
        chat_messages({"input": case["input"]}, case["return_token_id_information"]) == case["expected"]["messages"]
        for case in cases
    ]
    print(f"responses_trajectory_roundtrip: {sum(agree)} of {len(agree)} agree")
    assert agree == [True, True]
