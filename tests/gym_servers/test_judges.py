"""The client of judges and simulated users: what it sends, what it makes of replies, and how it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gym_servers.judges import ModelClient, Prompt, label_reader, quoted
from gym_servers.protocol import FailureError, OmnigymError

HELLO = [{"role": "user", "content": "hello"}]
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Endpoint:
    """A model's endpoint that answers as it is told, and counts."""

    def __init__(self, answer: Answer, seconds: float = 0.0) -> None:
        self.answer, self.seconds = answer, seconds
        self.bodies: list[dict[str, Any]] = []
        self.open = self.most_open = 0

    async def __call__(self, request: Request) -> JSONResponse:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.bodies.append(await request.json())
        await asyncio.sleep(self.seconds)
        self.open -= 1
        status, body = self.answer(self.bodies[-1])
        return JSONResponse(body, status)

    def app(self) -> Starlette:
        paths = ("/v1/chat/completions", "/v1/responses")
        return Starlette(routes=[Route(path, self.__call__, methods=["POST"]) for path in paths])


def chat(text: Any) -> Answer:
    return lambda _: (200, {"choices": [{"message": {"role": "assistant", "content": text}}]})


def asked(endpoint: Endpoint, path: str = "/v1/chat/completions", times: int = 1, **settings: Any) -> list[str]:
    """What `text` returns, `times` at once."""

    async def run(url: str) -> list[str]:
        client = ModelClient("the user", f"{url}{path}", "m", **{"seconds": 60, **settings})
        await client.open()
        try:
            return await asyncio.gather(*[client.text(HELLO) for _ in range(times)])
        finally:
            await client.close()

    with serving(endpoint.app()) as url:
        return asyncio.run(run(url))


def test_both_forms_are_asked_by_name_and_reasoning_is_removed() -> None:
    endpoint = Endpoint(chat("<think>hm</think>Good day"))
    assert asked(endpoint, max_tokens=7) == ["Good day"]
    assert endpoint.bodies == [{"model": "m", "messages": HELLO, "max_tokens": 7}]
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Good day"}]},
    ]
    endpoint = Endpoint(lambda _: (200, {"output": output}))
    assert asked(endpoint, "/v1/responses", max_tokens=7) == ["Good day"]
    assert endpoint.bodies == [{"model": "m", "input": HELLO, "max_output_tokens": 7}]


def test_questions_beyond_the_bound_wait_and_their_wait_does_not_count() -> None:
    endpoint = Endpoint(chat("x"), seconds=0.3)
    assert asked(endpoint, times=12, concurrency=3, seconds=60) == ["x"] * 12
    assert endpoint.most_open == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        return chat("x")({}) if len(endpoint.bodies) == 3 else (status, {"error": {"message": "busy"}})

    endpoint = Endpoint(answer)
    assert asked(endpoint) == ["x"]


@pytest.mark.parametrize(
    ("status", "body", "retryable", "tries"),
    [
        (401, {"error": {"type": "unauthorized", "message": "no"}}, False, 1),
        (404, {"detail": "no"}, False, 1),
        (422, {"error": {"type": "bad_row", "message": "no"}}, False, 1),
        (500, {"error": {"message": "broken"}}, True, 5),
        (200, {"choices": []}, True, 1),
        (200, {"choices": [{"message": {"content": None}}]}, True, 1),
        (200, [1], True, 1),
    ],
)
def test_every_refusal_is_a_failure_of_the_clients_kind(status: int, body: Any, retryable: bool, tries: int) -> None:
    endpoint = Endpoint(lambda _: (status, body))
    with pytest.raises(FailureError, match="the user at http://127") as caught:
        asked(endpoint, kind="simulator_failed")
    assert (caught.value.failure.kind, caught.value.failure.retryable) == ("simulator_failed", retryable)
    assert len(endpoint.bodies) == tries


def test_a_slow_or_an_absent_model_is_a_failure() -> None:
    with pytest.raises(FailureError, match="no answer within 0.5 s") as caught:
        asked(Endpoint(chat("x"), seconds=3), seconds=0.5)
    assert caught.value.failure.kind == "judge_failed"
    with pytest.raises(OmnigymError, match="'NO_SUCH_TOKEN', which is not set"):
        ModelClient("the user", "http://127.0.0.1:9/v1/responses", "m", token_variable="NO_SUCH_TOKEN")


def test_a_label_is_asked_for_twice() -> None:
    async def run(url: str, replies: list[str]) -> tuple[int, str]:
        client = ModelClient("judge", f"{url}/v1/chat/completions", "m", seconds=60)
        await client.open()
        try:
            return await client.ask(HELLO, lambda reply: len(reply) if reply.startswith("=") else None)
        finally:
            await client.close()

    for replies, found in ((["=a"], (2, "=a")), (["x", "=ab"], (3, "=ab")), (["x", "y", "=a"], None)):
        left = iter(replies)
        endpoint = Endpoint(lambda _, left=left: chat(next(left))({}))  # type: ignore[misc]
        with serving(endpoint.app()) as url:
            if found is None:
                with pytest.raises(FailureError, match="no label in 2 replies; the last ends in 'y'"):
                    asyncio.run(run(url, replies))
                assert len(endpoint.bodies) == 2
            else:
                assert asyncio.run(run(url, replies)) == found


READ = label_reader({"[[A=B]]": True, "[[A!=B]]": False})


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("[[A=B]]", True),
        ("hm [[A!=B]] hm\n  **[[A=B]]**.\n", True),
        ("[[A=B]]\nno\n[[A!=B]]", False),
        ("they are [[A=B]], I say", True),
        ("[[A!=B]] then [[A=B]]", None),
        ("[[a=b]]", None),
        ("[[A!=B]] no", False),
        ("I cannot say [[A=B]]", None),
        ("[[A=B]]? I can't say [[A=B]]", None),
        ("They are not alike.\nI say [[A!=B]] here", False),
        ("I am not sure.\n[[A=B]]", True),
        ("A=B", None),
        ("", None),
    ],
)
def test_which_label_a_reply_has(reply: str, label: bool | None) -> None:
    assert READ(reply) is label


def test_a_label_within_another_word_is_none() -> None:
    read = label_reader({"CORRECT": True, "INCORRECT": False})
    assert read("It is INCORRECT so") is False
    assert read("CORRECTED") is None


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("The answer is CORRECT", True),
        ("It does not differ.\nThe answer is CORRECT", True),
        ("The answer is not CORRECT", None),
        ("The answer isn't CORRECT.", None),
        ("It is NOT INCORRECT", None),
        ("neither CORRECT nor wrong", None),
    ],
)
def test_a_negated_label_is_none(reply: str, label: bool | None) -> None:
    assert label_reader({"CORRECT": True, "INCORRECT": False})(reply) is label


@given(st.lists(st.sampled_from(["<|", "<", "|", "[[", "[", "A=B", "]]", "\n", "x", "<<||", "[[["])).map("".join))
def test_quoted_text_holds_neither_marker_nor_label(text: str) -> None:
    data = quoted(text)
    assert "<|" not in data and "[[" not in data and READ(data) is None
    assert data.replace(" ", "") == text


def test_values_of_a_prompt_are_data(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps({"system": "s {x}", "user": "{x} and {y} {{z}}"}))
    filled = Prompt(path, ("x", "y"), ("x",)).messages({"x": "{y}", "y": "{0.__class__}"})
    assert filled == [
        {"role": "system", "content": "s {x}"},
        {"role": "user", "content": "{y} and {0.__class__} {z}"},
    ]
