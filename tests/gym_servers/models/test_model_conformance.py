"""The converter and the token splice against the recorded cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gym_servers.models.converter import chat_to_response, items_to_messages, responses_to_chat
from gym_servers.models.ledger import splice_prefix

FOLDER = Path(__file__).resolve().parents[3].parent / "shared/conformance"
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not FOLDER.exists(), reason=f"no conformance cases at {FOLDER}"),
]
# a template that strips reasoning starts a new segment here (spec/algorithm.md, section 4)
OURS = {"splice/04"}


def cases(name: str) -> list[dict[str, Any]]:
    path = FOLDER / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [without_ids(v) for v in value]
    if isinstance(value, dict):
        out = {k: without_ids(v) for k, v in value.items()}
        if isinstance(out.get("id"), str) and out["id"].startswith(("rs_", "msg_")):
            out["id"] = out["id"].split("_")[0]
        return out
    return value


@pytest.mark.parametrize("case", cases("token_prefix_splice.jsonl"), ids=lambda c: c["id"])
def test_splice(case: dict[str, Any]) -> None:
    args = (
        case["model_prefix_token_ids"],
        case["template_prefix_token_ids"],
        case["template_token_ids"],
        case.get("eos_token_id"),
    )
    if case["id"] in OURS:
        assert splice_prefix(*args) is None
    elif "raises" in case["expected"]:
        with pytest.raises(ValueError, match="cannot splice"):
            splice_prefix(*args)
    else:
        assert splice_prefix(*args) == case["expected"]["tokens"]


@pytest.mark.parametrize("case", cases("responses_converter.jsonl"), ids=lambda c: c["id"])
def test_converter(case: dict[str, Any]) -> None:
    expected, tokens = case["expected"], case["return_token_id_information"]
    if case["direction"].startswith("responses"):
        if "raises" in expected:
            with pytest.raises(ValueError if expected["raises"] != "NotImplementedError" else NotImplementedError):
                responses_to_chat(case["input"], token_fields=tokens)
        else:
            assert responses_to_chat(case["input"], token_fields=tokens) == expected["chat_params"]
        return
    completion = {
        "choices": [{"message": case["message"], "finish_reason": case["finish_reason"]}],
        "usage": case.get("usage"),
    }
    got = chat_to_response(completion, reasoning=case["uses_reasoning_parser"], token_fields=tokens)
    assert without_ids({k: got[k] for k in expected}) == without_ids(expected)


@pytest.mark.parametrize("case", cases("responses_trajectory_roundtrip.jsonl"), ids=lambda c: c["id"])
def test_trajectory(case: dict[str, Any]) -> None:
    got = items_to_messages(case["input"], token_fields=case["return_token_id_information"])
    assert got == case["expected"]["messages"]
