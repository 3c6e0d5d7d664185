"""The converter and the token splice against the recorded cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gym_servers.models.converter import chat_to_response, items_to_messages, responses_to_chat
from gym_servers.models.ledger import splice_prefix

pytestmark = pytest.mark.conformance
Case = dict[str, Any]
Conform = Callable[[str, dict[str, bool], str], None]
DOCUMENT = "docs/architecture.md"


def run(file: str, agrees: Callable[[Case], bool], conformance: Path, conform: Conform, count: int) -> None:
    cases = [json.loads(line) for line in (conformance / file).read_text().splitlines()]
    assert len(cases) == count
    conform(file, {case["id"]: agrees(case) for case in cases}, DOCUMENT)


def without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [without_ids(v) for v in value]
    if isinstance(value, dict):
        out = {k: without_ids(v) for k, v in value.items()}
        if isinstance(out.get("id"), str) and out["id"].startswith(("rs_", "msg_")):
            out["id"] = out["id"].split("_")[0]
        return out
    return value


def splices(case: Case) -> bool:
    args = (
        case["model_prefix_token_ids"],
        case["template_prefix_token_ids"],
        case["template_token_ids"],
        case.get("eos_token_id"),
    )
    if "raises" in case["expected"]:
        with pytest.raises(ValueError, match="cannot splice"):
            splice_prefix(*args)
        return True
    return splice_prefix(*args) == case["expected"]["tokens"]


def converts(case: Case) -> bool:
    expected, tokens = case["expected"], case["return_token_id_information"]
    if case["direction"].startswith("responses"):
        if "raises" in expected:
            with pytest.raises(ValueError if expected["raises"] != "NotImplementedError" else NotImplementedError):
                responses_to_chat(case["input"], token_fields=tokens)
            return True
        return bool(responses_to_chat(case["input"], token_fields=tokens) == expected["chat_params"])
    completion = {
        "choices": [{"message": case["message"], "finish_reason": case["finish_reason"]}],
        "usage": case.get("usage"),
    }
    got = chat_to_response(completion, reasoning=case["uses_reasoning_parser"], token_fields=tokens)
    return bool(without_ids({k: got[k] for k in expected}) == without_ids(expected))


def keeps_trajectory(case: Case) -> bool:
    got = items_to_messages(case["input"], token_fields=case["return_token_id_information"])
    return bool(got == case["expected"]["messages"])


def test_splice(conformance: Path, conform: Conform) -> None:
    run("token_prefix_splice.jsonl", splices, conformance, conform, 11)


def test_converter(conformance: Path, conform: Conform) -> None:
    run("responses_converter.jsonl", converts, conformance, conform, 31)


def test_trajectory(conformance: Path, conform: Conform) -> None:
    run("responses_trajectory_roundtrip.jsonl", keeps_trajectory, conformance, conform, 2)
