"""A model server over an OpenAI-compatible URL, over real HTTP: in front of the scripted server, and of one that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from live_server import Recording, serving

from gym_servers.base import ServerSettings
from gym_servers.deadline import HEADER
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.openai_url import UpstreamSettings, build_openai_url
from gym_servers.protocol import OmnigymError

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
ASK = {"messages": [{"role": "user", "content": "?"}]}


@contextmanager
def over(url: str, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Iterator[httpx.Client]:
    monkeypatch.setenv("JUDGE_KEY", "secret key")
    settings = UpstreamSettings(url=url, model="judge-1", key_variable="JUDGE_KEY", **values)
    with serving(build_openai_url(settings)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_both_forms_over_the_scripted_server(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Recording([f"<think>hm</think>I call.{CALL}", "fine"])
    upstream = build_model_server(engine, ModelSettings(secret="s"), ServerSettings(token="secret key"))
    with serving(upstream) as url, over(f"{url}/v1/", monkeypatch, reasoning=True) as client:
        sampling = {"temperature": 0.2, "top_p": 0.5, "seed": 3}
        asked = {"input": "?", "instructions": "judge", "tools": [TOOL], "max_output_tokens": 300, **sampling}
        answer = client.post("/v1/responses", json=asked).json()
        assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
        assert answer["output"][0]["summary"][0]["text"] == "hm"
        assert answer["output"][1]["content"][0]["text"] == "I call."
        assert answer["output"][2]["arguments"] == '{"a":1}'
        assert (answer["status"], answer["usage"]["output_tokens"]) == ("completed", len(engine.calls[0][1].token_ids))
        sampled = engine.samplings[0]
        assert (sampled.temperature, sampled.top_p, sampled.max_tokens) == (0.2, 0.5, 300)
        prompt = engine.tokenizer.decode(engine.calls[0][0])
        assert prompt.startswith("<|im_start|>system\njudge")
        done = {"type": "function_call_output", "call_id": answer["output"][2]["call_id"], "output": "7"}
        history = [{"role": "user", "content": "?"}, *answer["output"], done]
        answer = client.post("/v1/responses", json={**asked, "input": history}).json()
        assert answer["output"][0]["content"][0]["text"] == "fine"
        chat = client.post("/v1/chat/completions", json={**ASK, "stop": "x", "max_tokens": 2}).json()
        assert chat["choices"][0]["finish_reason"] == "length"
        cut = client.post("/v1/responses", json={"input": "?", "max_output_tokens": 2}).json()
        assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert client.get("/v1/models").json()["data"][0]["id"] == "judge-1"


def test_a_rollout_s_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with over("http://127.0.0.1:9/v1", monkeypatch) as client:
        for path in ("/r/abc.def/v1/responses", "/r/abc.def/v1/chat/completions", "/r/abc.def/close"):
            reply = client.post(path, json=ASK)
            assert reply.status_code == 400
            assert "keeps no ledger" in reply.json()["error"]["message"]


class Upstream:
    """Answers what `replies` says, one after another, then "ok"."""

    def __init__(self, *replies: Response) -> None:
        self.replies = list(replies)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.seconds = 0.0
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.reply)

    async def reply(self, request: Request) -> Any:
        self.bodies.append(await request.json())
        self.keys.append(request.headers["authorization"])
        self.times.append(time.monotonic())
        await asyncio.sleep(self.seconds)
        if self.replies:
            return self.replies.pop(0)
        return {"choices": [{"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]}


def error(status: int, **headers: str) -> Response:
    return JSONResponse({"error": {"message": "no luck", "type": "x"}}, status, headers)


def test_what_may_pass_is_tried_again_with_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(error(429, **{"Retry-After": "2"}), error(500), Response("bad gateway", 502))
    with serving(upstream.app) as url, over(f"{url}/v1", monkeypatch) as client:
        reply = client.post("/v1/responses", json={"input": "?", "seed": 5})
        assert reply.json()["output"][0]["content"][0]["text"] == "ok"
    assert len(upstream.bodies) == 4
    assert upstream.bodies[0] == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
        "seed": 5,
        "model": "judge-1",
    }
    assert all(body == upstream.bodies[0] for body in upstream.bodies)
    assert set(upstream.keys) == {"Bearer secret key"}
    assert upstream.times[1] - upstream.times[0] > 1.9  # as long as it was told


def test_tries_are_counted_and_a_last_failure_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(*[error(503) for _ in range(9)])
    with serving(upstream.app) as url, over(f"{url}/v1", monkeypatch, retries=2) as client:
        reply = client.post("/v1/chat/completions", json=ASK)
    assert (reply.status_code, reply.json()["retryable"], reply.json()["error"]["type"]) == (503, True, "model_error")
    assert "503: no luck" in reply.json()["error"]["message"]
    assert len(upstream.bodies) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_the_caller_s_and_is_not_tried_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(error(status))
    with serving(upstream.app) as url, over(f"{url}/v1", monkeypatch) as client:
        reply = client.post("/v1/chat/completions", json=ASK)
    assert reply.status_code == 400
    assert f"{status}: no luck" in reply.json()["error"]["message"]
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize("body", [b"not JSON", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_an_answer_without_a_message_is_a_failure_never_an_empty_answer(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(Response(body, 200))
    with serving(upstream.app) as url, over(f"{url}/v1", monkeypatch) as client:
        assert client.post("/v1/responses", json={"input": "?"}).status_code == 503


def test_the_caller_s_deadline_and_the_server_s_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream()
    upstream.seconds = 3.0
    with serving(upstream.app) as url:
        with over(f"{url}/v1", monkeypatch) as client:
            reply = client.post("/v1/chat/completions", json=ASK, headers={HEADER: "0.5"})
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "timeout")
            assert client.post("/v1/responses", json=ASK, headers={HEADER: "soon"}).status_code == 400
        with over(f"{url}/v1", monkeypatch, seconds=0.5) as client:
            assert "no answer within 0.5 s" in client.post("/v1/chat/completions", json=ASK).text


def test_an_upstream_that_is_not_there_is_a_retryable_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with over("http://127.0.0.1:9/v1", monkeypatch, retries=1) as client:
        reply = client.post("/v1/chat/completions", json=ASK)
        assert (reply.status_code, reply.json()["retryable"], reply.json()["error"]["type"]) == (
            503,
            True,
            "connection",
        )


def test_an_upstream_that_dies_in_mid_answer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(half, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    with over(url, monkeypatch, retries=1) as client:
        assert client.post("/v1/chat/completions", json=ASK).json()["error"]["type"] == "connection"
    loop.call_soon_threadsafe(loop.stop)


def test_without_a_key_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    settings = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    with pytest.raises(OmnigymError, match="JUDGE_KEY is not set: it holds the API key"):
        build_openai_url(UpstreamSettings(**settings, key_variable="JUDGE_KEY"))
    build_openai_url(UpstreamSettings(**settings, key_variable=""))
