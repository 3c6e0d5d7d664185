"""The deadline header: a request ends when its caller gives up, and so do the calls that it makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from kit_toys import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gym_servers import deadline
from gym_servers.base import Guard, ServerSettings, answer, build
from gym_servers.client import Client
from gym_servers.protocol import FailureError


class Chain:
    """`/outer` calls `/inner`, which says what it was given, after `seconds`."""

    def __init__(self) -> None:
        self.url = ""
        self.seconds = 0.0
        self.cancelled = 0
        routes = [Route(f"/{f.__name__}", f, methods=["POST"]) for f in (self.inner, self.outer)]
        self.guard: Guard = build(Starlette(routes=routes), ServerSettings(request_seconds=50))

    async def inner(self, request: Request) -> Response:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        left = deadline.moment() - time.monotonic()
        return answer({"header": request.headers.get("x-deadline-seconds"), "left": left})

    async def outer(self, request: Request) -> Response:
        async with Client() as client:
            return answer((await client.post(f"{self.url}/inner", {}, seconds=1000)).json())


@pytest.fixture
def chain() -> Iterator[Chain]:
    made = Chain()
    with serving(made.guard) as made.url:
        yield made


def post(chain: Chain, path: str, header: str | None = None) -> httpx.Response:
    headers = {} if header is None else {"X-Deadline-Seconds": header}
    return httpx.post(f"{chain.url}/{path}", json={}, headers=headers, timeout=60, trust_env=False)


def test_the_sooner_of_header_and_limit_holds(chain: Chain) -> None:
    assert 0 < post(chain, "inner", "20").json()["left"] <= 20
    assert 20 < post(chain, "inner", "900").json()["left"] <= 50
    assert 20 < post(chain, "inner").json()["left"] <= 50


def test_a_request_past_its_deadline_is_ended_and_may_come_again(chain: Chain) -> None:
    chain.seconds = 30
    began = time.monotonic()
    reply = post(chain, "inner", "0.2")
    assert time.monotonic() - began < 20
    assert (reply.status_code, reply.json()["error"]["type"], reply.json()["retryable"]) == (503, "timeout", True)
    assert "no answer within 0.2 s" in reply.json()["error"]["message"]
    assert chain.cancelled == 1
    assert chain.guard.in_flight == 0


def test_what_is_left_is_passed_on(chain: Chain) -> None:
    inner = post(chain, "outer", "30").json()
    assert 0 < float(inner["header"]) <= 30
    assert 30 < float(post(chain, "outer").json()["header"]) <= 50


@pytest.mark.parametrize("header", ["soon", "nan", "inf", ""])
def test_a_header_that_is_no_number_is_named(chain: Chain, header: str) -> None:
    reply = post(chain, "inner", header)
    assert reply.status_code == 400
    assert "X-Deadline-Seconds: must be a number of seconds" in reply.json()["error"]["message"]


def test_a_deadline_that_has_passed_calls_nobody(chain: Chain) -> None:
    async def run() -> Any:
        token = deadline.enter(time.monotonic() - 1)
        try:
            async with Client() as client:
                await client.post(f"{chain.url}/inner", {}, seconds=1000)
        finally:
            deadline.leave(token)

    with pytest.raises(FailureError) as late:
        asyncio.run(run())
    assert late.value.failure.kind == "timeout"
