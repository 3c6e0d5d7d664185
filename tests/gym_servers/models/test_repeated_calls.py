"""A call that is repeated is sampled once; one that nobody waits for is ended, and its tokens are in the books, untrained."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from live_server import Recording, World, eventually, masked, model_world
from openai import OpenAI

from gym_servers.client import Answered, Client
from gym_servers.models.scripted import END_ID, Asked, CodePoints, scripted_logprob
from gym_servers.protocol import OmnigymError

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
PATH = "/chat/completions"


def path_of(world: World, rollout: str = "r") -> str:
    return world.base(rollout).removeprefix(world.url) + PATH


@contextmanager
def half_a_call(world: World, headers: str = "") -> Iterator[None]:
    """A call that is under way; at the end of the context its client hangs up."""
    body = json.dumps(ASK)
    port = int(world.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST {path_of(world)} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        eventually(lambda: world.state()["open_calls"] == 1)
        yield


class LosesTheFirst(Client):
    """A client whose connection breaks once, after the server has answered."""

    lost = 0

    async def _exchange(self, url: str, data: bytes, headers: dict[str, str], seconds: float) -> Answered:
        found = await super()._exchange(url, data, headers, seconds)
        if not self.lost:
            self.lost += 1
            raise ConnectionResetError("lost")
        return found


@pytest.mark.parametrize("form", ["/chat/completions", "/responses"])
def test_an_answer_that_was_lost_is_given_again_not_sampled_again(form: str) -> None:
    engine = Recording(lambda asked: f"seed {asked.seed}")
    with model_world(engine) as world:

        async def call() -> bytes:
            async with LosesTheFirst() as client:
                body = {"input": "?"} if form == "/responses" else ASK
                reply = await client.post(world.base() + form, body, seconds=60)
                assert client.lost == 1
                return reply.body

        assert b"seed 0" in asyncio.run(call())
        assert b"seed 1000003" in asyncio.run(call())  # another key is another call
        export = world.close()
    assert [len(generation.token_ids) for _, generation in engine.calls] == [7, 13]
    assert (export.usage["requests"], export.calls, len(export.segments), export.dropped) == (2, 2, 2, 0)


def test_a_repeated_call_waits_for_the_first() -> None:
    engine = Recording(["answer"], seconds=1.0)
    with model_world(engine) as world, ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(world.http.post, path_of(world), json=ASK, headers={"Idempotency-Key": "k"}) for _ in range(3)
        ]
        answers = {call.result().text for call in calls}
        export = world.close()
    assert len(answers) == 1
    assert (len(engine.calls), len(export.segments)) == (1, 1)


def test_a_failure_is_not_stored_under_its_key() -> None:
    def script(asked: Asked) -> str:
        if asked.request_id == "call-1":
            raise OmnigymError("the engine stumbled")
        return "answer"

    with model_world(Recording(script)) as world:
        key = {"Idempotency-Key": "k"}
        assert world.http.post(path_of(world), json=ASK, headers=key).status_code == 400
        assert world.http.post(path_of(world), json=ASK, headers=key).status_code == 200


class BreaksOnce(httpx.HTTPTransport):
    """Loses the first answer."""

    broken = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if not self.broken:
            response.read()
            self.broken = True
            raise httpx.ReadError("lost")
        return response


def test_the_plain_openai_client_repeats_without_a_key() -> None:
    """It says how often it tried. The same body, sent anew, is another call."""
    engine = Recording(lambda asked: f"seed {asked.seed}")
    with model_world(engine) as world, httpx.Client(transport=BreaksOnce(), trust_env=False) as http:
        client = OpenAI(api_key="-", base_url=world.base(), http_client=http, max_retries=2)
        texts = [
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
            .choices[0]
            .message.content
            for _ in range(2)
        ]
        export = world.close()
    assert texts == ["seed 0", "seed 1000003"]
    assert (len(engine.calls), export.calls) == (2, 2)


def test_a_call_whose_client_is_gone_is_ended_and_dropped() -> None:
    engine = Recording(["x" * 100_000], seconds=60.0)
    with model_world(engine) as world:
        with half_a_call(world):
            time.sleep(0.2)
        eventually(lambda: world.state()["open_calls"] == 0)
        export = world.close()
    (_, generation) = engine.calls[0]
    assert 0 < len(generation.token_ids) < 100_000
    assert (export.dropped, export.segments, export.finish_reasons) == (len(generation.token_ids), [], ["abort"])


def test_who_waits_for_a_call_that_is_given_up_is_told_to_send_it_again() -> None:
    engine = Recording(["x" * 100_000], seconds=60.0)
    with model_world(engine) as world, ThreadPoolExecutor(1) as pool:
        with half_a_call(world, "Idempotency-Key: k\r\n"):
            waiting = pool.submit(world.http.post, path_of(world), json=ASK, headers={"Idempotency-Key": "k"})
            time.sleep(0.5)
        reply = waiting.result()
        assert (reply.status_code, reply.json()["retryable"], len(engine.calls)) == (503, True, 1)
        engine.seconds = 0.0
        again = world.http.post(path_of(world), json=ASK, headers={"Idempotency-Key": "k"})
        assert again.status_code == 200
        assert len(masked(world.close())) == 1


def test_tokens_of_a_call_that_its_deadline_ends_are_counted() -> None:
    engine = Recording(["x" * 100_000], seconds=60.0)
    with model_world(engine) as world:
        reply = world.http.post(path_of(world), json=ASK, headers={"X-Deadline-Seconds": "0.5"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "timeout")
        export = world.close()
    (_, generation) = engine.calls[0]
    assert 0 < len(generation.token_ids) == export.dropped == export.usage["sampled_tokens"]
    assert (export.usage["requests"], export.calls, export.segments) == (1, 1, [])


def test_the_first_half_of_a_budget_is_counted_where_the_second_fails() -> None:
    def script(asked: Asked) -> str:
        if asked.request_id == "call-2":
            raise OmnigymError("the engine stumbled")
        return "thoughts..."

    engine = Recording(script)
    with model_world(engine) as world:
        switched = {"reasoning": True, "reasoning_budget": 5}
        reply = world.http.post(path_of(world), json={**ASK, "chat_template_kwargs": switched})
        assert reply.status_code == 400
        export = world.close()
    prompt, first = engine.calls[0]
    assert first.logprobs[0] == scripted_logprob(0, 0, ord("t"))
    assert export.usage == {"prompt_tokens": len(prompt), "sampled_tokens": 5, "requests": 1}
    assert (export.dropped, export.segments) == (5, [])


def test_an_answer_that_cannot_be_taken_apart_is_counted() -> None:
    class Broken(CodePoints):
        def decode(self, ids: Any) -> str:
            if list(ids) == [ord("x"), END_ID]:
                raise RuntimeError("no such text")
            return super().decode(ids)

    with model_world(Recording(["x"], tokenizer=Broken())) as world:
        assert world.http.post(path_of(world), json=ASK).status_code == 500
        assert world.close().dropped == 2


def test_an_answer_that_is_whole_when_nobody_waits_any_more_is_not_trained() -> None:
    class Deaf(Recording):
        async def abort(self, request_ids: Any) -> None:
            """It finishes what it began."""

    engine = Deaf(["whole"], seconds=1.0)
    with model_world(engine) as world:
        reply = world.http.post(path_of(world), json=ASK, headers={"X-Deadline-Seconds": "0.3"})
        assert reply.status_code == 503
        export = world.close()
    assert engine.calls[0][1].finish_reason == "stop"
    assert (export.dropped, export.segments, export.finish_reasons) == (6, [], ["abort"])
