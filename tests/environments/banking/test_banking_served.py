"""Whole conversations over real HTTP: the collector, a scripted policy, the desk, and a user that is scripted or played by a model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit_toys import serving
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from environments.banking.desk import TOOLS
from environments.banking.server import Banking, BankingSettings
from environments.banking.simulated import STOP
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

ROWS = [*Banking().generate(200, 21, "train")]


def row_of(family: str, level: int) -> dict[str, Any]:
    return next(row for row in ROWS if (row["family"], row["level"]) == (family, level))


def xml(name: str, **arguments: Any) -> str:
    written = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


def collect(script: Callable[[Asked], str], row: dict[str, Any], environment: Banking | None = None) -> Rollout:
    engine = ScriptedEngine(script)
    bank = build_resources([environment or Banking()], workers=1)
    with serving(bank) as url, serving(build_model_server(engine, ModelSettings(secret="s"))) as model:
        collector = Collector({"banking": f"{url}/banking"}, f"{model}/v1", secret="s")

        async def run() -> list[Rollout]:
            return [r async for r in collector.collect([RolloutRequest(row, "t", "banking", "g")])]

        (rollout,) = asyncio.run(run())
    assert sum(sum(segment.mask) for segment in rollout.segments) == rollout.usage["sampled_tokens"]
    return rollout


def asker(asked: Asked) -> str:
    """An agent that knows nothing but what it is told and reads, and so has to ask."""
    said = asked.prompt.split("<|im_start|>user\n")
    heard = "\n".join(said[1:])
    last = said[-1]
    who = re.search(r"C\d+", heard)
    words = [word for word in re.findall(r"code word,? (?:is )?(\w+)|(\w+) is my code word", heard)]
    if not who or not words:
        return "Hello. What is your customer number, and what is your code word?"
    if "verify_identity" not in asked.prompt.split("</tools>")[1]:
        return xml("verify_identity", customer_id=who[0], code_word=next(filter(None, words[-1])))
    if '"verified":true' in last:
        return xml("list_cards", customer_id=who[0])
    ending = re.search(r"ending in (\d{4})", heard)
    if not ending:
        return "Thank you. Which card is it?"
    cards = json.loads(re.search(r"\[\{\"card_id.*?\}\]", heard)[0])  # type: ignore[index]
    card = next(one for one in cards if one["last4"] == ending[1])
    if "unblock_card>" not in asked.prompt.split("</tools>")[1] and card["block_reason"] in (
        "wrong_pin",
        "customer_request",
    ):
        return xml("unblock_card", card_id=card["card_id"])
    return "Your card is unblocked. Is there anything else?"


def test_an_agent_that_asks_earns_the_reward() -> None:
    rollout = collect(asker, row_of("unblock_card", 2))
    assert (rollout.failure, rollout.reward) == (None, 1.0), rollout.explanation
    said = [item["content"] for item in rollout.output if item.get("role") == "user"]
    assert len(said) == 4
    assert not re.search(r"C\d|ending", said[0])  # it says who it is, and which card, only when asked
    assert re.search(r"C\d", said[1]) and "ending" not in said[1]
    assert "ending" in said[2]
    assert [one.name for one in rollout.tool_calls] == ["verify_identity", "list_cards", "unblock_card"]


def test_a_hand_over_ends_the_conversation() -> None:
    turns = [xml("transfer_to_human", reason_code="out_of_scope"), "never said"]
    rollout = collect(lambda asked: turns[asked.turn], row_of("out_of_scope", 2))
    assert (rollout.reward, rollout.steps, rollout.output[-1]["output"]) == (1.0, 1, "a person takes over")


def test_an_agent_that_only_talks_earns_nothing_and_the_user_goes() -> None:
    rollout = collect(lambda asked: "Nice weather.", row_of("block_card", 1))
    assert (rollout.reward, rollout.steps, rollout.failure) == (0.0, 3, None)
    assert rollout.output[-1]["content"] == "This leads nowhere. Goodbye."


def test_the_user_is_not_spoken_to_for_ever() -> None:
    environment = Banking(BankingSettings(max_turns=5))
    rollout = collect(lambda asked: "What is your code word?", row_of("block_card", 1), environment)
    assert (rollout.reward, rollout.steps, rollout.failure) == (0.0, 5, None)


# -- a model plays the user ------------------------------------------------------------------------------------------


def played(url: str, path: str = "/v1/chat/completions") -> Banking:
    return Banking(BankingSettings(user_url=f"{url}{path}", user_model="player", user_seconds=60))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_model_server_plays_the_user(path: str) -> None:
    row = row_of("unblock_card", 2)
    facts, card = row["user"]["facts"], row["user"]["goals"][0]["facts"]["card"]
    row = {key: value for key, value in row.items() if key != "user"}  # as published rows come
    heard: list[str] = []

    def player(asked: Asked) -> str:
        heard.append(asked.prompt)
        lines = [
            "Please unblock my card.",
            f"My customer number is {facts['customer_id']} and my code word is {facts['code_word']}.",
            f"<think>the card</think>It is {card}.",
            f"Thank you. {STOP}",
        ]
        return lines[asked.turn]

    with serving(build_model_server(ScriptedEngine(player), ModelSettings(secret="other"))) as url:
        rollout = collect(asker, row, played(url, path))
    assert (rollout.failure, rollout.reward) == (None, 1.0), rollout.explanation
    assert [item["content"] for item in rollout.output if item.get("role") == "user"][2:] == [
        f"It is {card}.",
        "Thank you.",
    ]
    assert "You play a customer" in heard[0] and facts["code_word"] in heard[0]
    assert all("verify_identity" not in prompt and "<policy>" not in prompt for prompt in heard)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([""], "no label in 2 replies"),
        (["Agent: your card is unblocked."], "no label in 2 replies"),
        ([STOP], "no label in 2 replies"),
        (
            ["Please unblock my card.", "<tool_call>\n<function=unblock_card>\n</function>\n</tool_call>"],
            "simulated user",
        ),
    ],
)
def test_a_model_that_does_not_play_the_user_is_a_failure(lines: list[str], why: str) -> None:
    engine = ScriptedEngine(lambda asked: lines[min(asked.turn, len(lines) - 1)])
    with serving(build_model_server(engine, ModelSettings(secret="other"))) as url:
        rollout = collect(lambda asked: "How can I help?", row_of("unblock_card", 2), played(url))
    assert rollout.reward is None and rollout.failure is not None
    assert rollout.failure.kind == "simulator_failed" and why in rollout.failure.message
    assert rollout.steps == len(lines) - 1  # nothing was sampled again


def test_a_model_that_once_fails_to_play_is_asked_again() -> None:
    said: list[int] = []

    def player(asked: Asked) -> str:
        said.append(1)
        return "" if len(said) == 1 else "Hello." if asked.turn == 0 else f"Bye. {STOP}"

    with serving(build_model_server(ScriptedEngine(player), ModelSettings(secret="other"))) as url:
        rollout = collect(lambda asked: "No.", row_of("unblock_card", 2), played(url))
    assert (rollout.failure, rollout.reward, len(said)) == (None, 0.0, 3)


def test_a_user_out_of_reach_is_a_failure() -> None:
    def refuse(request: Any) -> JSONResponse:
        return JSONResponse({"error": {"message": "no such model"}}, 404)

    app = Starlette(routes=[Route("/v1/chat/completions", refuse, methods=["POST"])])
    with serving(app) as url:
        rollout = collect(lambda asked: "No.", row_of("unblock_card", 2), played(url))
    assert rollout.failure is not None and rollout.failure.kind == "simulator_failed"
    assert "no such model" in rollout.failure.message and rollout.steps == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"user_url": "http://x/v1"},
        {"user_url": "http://x/v1/responses"},
        {"user_model": "m"},
        {"users": 1},
        {"max_turns": 0},
    ],
)
def test_settings_that_fit_nowhere(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BankingSettings(**wrong)


# -- whatever comes, it is no 500 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk() -> Iterator[TestClient]:
    with TestClient(build_resources([Banking()], workers=1), raise_server_exceptions=False) as client:
        yield client


def test_bad_requests_are_refused_by_name(desk: TestClient) -> None:
    row = row_of("unblock_card", 2)
    desk.cookies.clear()
    for field in ("database", "ground_truth", "user"):
        reply = desk.post("/banking/seed_session", json={key: value for key, value in row.items() if key != field})
        assert reply.status_code == 422
        message = reply.json()["error"]["message"]
        assert f"'{field}'" in message and row["task_id"] in message
    assert desk.post("/banking/list_cards", json={"customer_id": "C1"}).status_code == 503
    deep = "[" * 100_000
    for path in ("seed_session", "user_turn", "verify", "list_cards"):
        assert desk.post(f"/banking/{path}", content=deep).status_code == 422
    assert desk.post("/banking/seed_session", json=row).status_code == 200


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_requests_of_a_session_are_answered_and_replayed(desk: TestClient, data: st.DataObject) -> None:
    """No 500, and what the rollout's own calls give on a fresh state is the verdict of the session."""
    rows = [row for row in ROWS if row["level"] >= 2]
    row = rows[data.draw(st.integers(0, len(rows) - 1))]
    desk.cookies.clear()
    session = {"X-Session-Id": desk.post("/banking/seed_session", json=row).json()["session_id"]}
    right = {call["name"]: call["arguments"] for call in row["ground_truth"]}
    ids = [name for table in row["database"].values() for name in table]
    output: list[dict[str, Any]] = []
    for number in range(data.draw(st.integers(0, 6))):
        name = data.draw(st.sampled_from([*TOOLS, *right, *right, "user_turn"]))
        if name == "user_turn":
            turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": JSON})
            messages = data.draw(st.one_of(JSON, st.lists(turn, max_size=3)))
            body = json.dumps({"messages": messages})
        elif name in right and data.draw(st.booleans()):
            body = json.dumps(right[name])
        else:
            fields = TOOLS[name].arguments.model_fields
            body = json.dumps({field: data.draw(st.one_of(st.sampled_from(ids), JSON)) for field in fields})
        reply = desk.post(f"/banking/{name}", content=body, headers=session)
        assert reply.status_code in (200, 422), reply.text
        if name != "user_turn":
            output.append({"type": "function_call", "call_id": str(number), "name": name, "arguments": body})
            output.append({"type": "function_call_output", "call_id": str(number), "output": reply.text})
    body = {**row, "response": {"output": output}}
    graded = desk.post("/banking/verify", json=body, headers=session)
    desk.cookies.clear()
    alone = desk.post("/banking/verify", json=body)
    assert graded.status_code == alone.status_code == 200
    assert graded.json()["reward"] == alone.json()["reward"]
    assert graded.json()["parts"] == alone.json()["parts"]
