"""A server that is told to stop: requests in flight are finished, or handed back when their time is over."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gym_servers.base import ServerSettings, answer, bind, build
from gym_servers.draining import DrainingServer


@pytest.mark.parametrize("finishes", [True, False])
def test_what_is_in_flight_is_finished_or_handed_back_as_retryable(finishes: bool) -> None:
    stopping = threading.Event()

    async def slow(request: Request) -> Response:
        while not (finishes and stopping.is_set()):
            await asyncio.sleep(0.01)
        return answer({"reward": 1.0})

    guard = build(Starlette(routes=[Route("/slow", slow, methods=["POST"])]), ServerSettings())
    sock = bind("127.0.0.1", 0)
    server = DrainingServer(guard, seconds=200 if finishes else 1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/slow"
    thread.start()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        asked = threads.submit(httpx.post, url, json={}, trust_env=False, timeout=200)
        while not guard.in_flight:
            time.sleep(0.01)
        server.handle_exit(signal.SIGTERM, None)
        stopping.set()
        reply = asked.result()
    thread.join()
    if finishes:
        assert (reply.status_code, reply.json()) == (200, {"reward": 1.0})
    else:
        assert (reply.status_code, reply.json()["retryable"]) == (503, True)
        assert reply.json()["error"]["type"] == "draining" and reply.headers["retry-after"]
