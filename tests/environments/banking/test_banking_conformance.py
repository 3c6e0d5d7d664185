"""What of the recorded conversations has a counterpart here, and the form of published rows.

The reference simulates tools by a model and judges the transcript by one; ours has a database. So of conversational_tool_use.jsonl only
what makes words a user's, and what ends a conversation, can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments.banking.server import Banking, BankingSettings
from environments.banking.simulated import read
from gym_servers.protocol import RowError

TOOLS = [tool.declaration() for tool in Banking().tools()]
pytestmark = pytest.mark.conformance
COUNTERPARTS = {
    "conv_tool_use/test/000": "the user's stop ends it, the agent's does not",
    "conv_tool_use/test/001": "a user that opens with the stop is at fault, and the rollout is masked",
    "conv_tool_use/first_user/39": "the same",
    "conv_tool_use/first_user/40": "the same with the other indicator",
}


def agrees(case: dict[str, Any]) -> bool:
    """Whether each of the user's turns is what the reference takes it for."""
    if "content" in case:
        return (read(case["content"], opening=True) is None) == ("invalid_reason" in case["expected"])
    words = [turn["text"] for turn in case["trajectory_messages"] if turn["source"] == "user"]
    turns = [read(text, opening=number == 0) for number, text in enumerate(words)]
    masked = case["expected"]["instance_config"]["mask_sample"]
    complete = case["expected"]["terminal_state"] == "complete"
    return (None in turns) == masked and (turns[-1] is not None and turns[-1].done) == complete


def test_recorded_users(conformance: Path, conform: Callable[[str, dict[str, bool], str], None]) -> None:
    file = "conversational_tool_use.jsonl"
    cases = {case["id"]: case for case in map(json.loads, (conformance / file).read_text().splitlines())}
    assert len(cases) == 32
    conform(file, {name: agrees(cases[name]) for name in COUNTERPARTS}, "environments/banking/README.md")


def test_published_rows_run_once_they_have_a_database(conformance: Path) -> None:
    file = conformance / "rows" / "conversational_tool_use_example.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 5
    ours = next(iter(Banking().generate(1, 0, "train")))
    played = Banking(BankingSettings(user_url="http://127.0.0.1:1/v1/responses", user_model="m"))
    for row in rows:
        with pytest.raises(RowError, match="field 'database'"):
            played.check_row(row)
        whole = {**row, "database": ours["database"], "ground_truth": ours["ground_truth"]}
        with pytest.raises(RowError, match="the desk has no"):
            played.seed(played.check_row(whole))
        whole["responses_create_params"] = {**row["responses_create_params"], "tools": TOOLS}
        told = played.seed(played.check_row(whole)).user
        assert row["customer_scenario"]["reason_for_contact"] in told
        with pytest.raises(RowError, match="field 'user' is missing"):
            Banking().seed(Banking().check_row(whole))
