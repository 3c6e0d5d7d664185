"""The gateway over real HTTP, in front of toy environments and of an upstream that tells what it got."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from kit_toys import GroupToySettings, Shortest, TillEnvironment, ToySettings, installed, message, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from gym_servers import cli, gateway
from gym_servers.base import Guard, ServerSettings
from gym_servers.gateway import build_gateway
from gym_servers.protocol import OmnigymError
from gym_servers.resources import build_resources

TOKEN = "t0ken"
SETTINGS = ServerSettings(token=TOKEN, max_body_bytes=1 << 20)


class Echo:
    """An upstream that lists one environment, `echo`, and tells what it got. hold: what a request to /echo/hold waits for."""

    def __init__(self, name: str = "echo") -> None:
        self.name, self.requests, self.hold = name, 0, threading.Event()
        self.app = Starlette(
            routes=[
                Route("/environments", self.listing),
                Route("/readyz", self.ready),
                Route("/echo/hold", self.held, methods=["POST"]),
                Route("/echo/parts", self.parts),
                Route("/echo/{path:path}", self.echo, methods=["GET", "POST"]),
            ]
        )

    async def listing(self, request: Request) -> Response:
        return JSONResponse([{"name": "echo", "agent": "tool_loop", "reward": "single", "description": self.name}])

    async def ready(self, request: Request) -> Response:
        return JSONResponse({})

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        self.requests += 1
        told = {
            "who": self.name,
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.scope["query_string"].decode(),
            "headers": [[k.decode(), v.decode()] for k, v in request.headers.raw],
            "size": len(body),
        }
        response = JSONResponse(told, 418 if "teapot" in request.url.path else 200)
        response.set_cookie("first", "1")
        response.set_cookie("second", "2")
        return response

    async def held(self, request: Request) -> Response:
        self.requests += 1
        self.loop = asyncio.get_running_loop()
        while not self.hold.is_set():
            await asyncio.sleep(0.02)
        return JSONResponse({"who": self.name})

    async def parts(self, request: Request) -> Response:
        async def stream() -> Any:
            yield b"first "
            await asyncio.to_thread(self.hold.wait, 60)
            yield b"second"

        return StreamingResponse(stream())


@contextlib.contextmanager
def client_of(app: Guard) -> Iterator[httpx.Client]:
    with (
        serving(app) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False) as client,
    ):
        yield client


def eventually(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not check():
        assert time.monotonic() < end, "it did not come about within 60 s"
        time.sleep(0.05)


@pytest.fixture
def echo() -> Iterator[tuple[Echo, httpx.Client]]:
    upstream = Echo()
    with serving(upstream.app) as url, client_of(build_gateway([url], SETTINGS)) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield upstream, client
        upstream.hold.set()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with installed(tmp_path_factory.mktemp("toys")):
        till = build_resources([TillEnvironment(ToySettings())], SETTINGS, 1, secret="s")
        shortest = build_resources([Shortest(GroupToySettings())], SETTINGS, 1, secret="s")
        with serving(till) as one, serving(shortest) as two, client_of(build_gateway([one, two], SETTINGS)) as client:
            eventually(lambda: client.get("/readyz").status_code == 200)
            yield client


def test_it_lists_what_its_upstreams_have_and_where_it_is_reached(toys: httpx.Client) -> None:
    listed = {one["name"]: one for one in toys.get("/environments").json()}
    assert set(listed) == {"kit_till", "kit_shortest"}
    assert listed["kit_shortest"]["reward"] == "group" and listed["kit_till"]["agent"] == "tool_loop"
    assert listed["kit_till"]["url"] == f"{toys.base_url}/kit_till".replace("//kit", "/kit")
    assert toys.get(listed["kit_till"]["url"] + "/tools").json()[0]["name"] == "deposit"


def test_the_command_shows_what_a_server_lists(toys: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(toys.base_url)
    monkeypatch.setenv("OMNIGYM_TOKEN", TOKEN)
    shown = CliRunner().invoke(cli.build(), ["env", "list", "--url", url])
    assert shown.exit_code == 0 and "kit_till" in shown.output and "kit_shortest" in shown.output
    told = json.loads(CliRunner().invoke(cli.build(), ["env", "list", "--json", "--url", url]).output)
    assert [one["name"] for one in told] == ["kit_shortest", "kit_till"]
    monkeypatch.setenv("OMNIGYM_TOKEN", "another")
    refused = CliRunner().invoke(cli.build(), ["env", "list", "--url", url])
    assert isinstance(refused.exception, OmnigymError) and "OMNIGYM_TOKEN" in str(refused.exception)
    nobody = CliRunner().invoke(cli.build(), ["env", "list", "--url", "http://127.0.0.1:1"])
    assert isinstance(nobody.exception, OmnigymError) and "127.0.0.1:1/environments" in str(nobody.exception)


@pytest.mark.parametrize("by", ["cookie", "header"])
def test_a_session_through_the_gateway(toys: httpx.Client, by: str) -> None:
    toys.cookies.clear()
    seeded = toys.post("/kit_till/seed_session", json={"target": 7, "start": 5})
    if by == "header":
        toys.cookies.clear()
    headers = {"X-Session-Id": seeded.json()["session_id"]} if by == "header" else {}
    assert toys.post("/kit_till/deposit", json={"amount": 2}, headers=headers).json() == {"amount": 7}
    body = {"target": 7, "start": 5, "response": {"output": message("done")}}
    assert toys.post("/kit_till/verify", json=body, headers=headers).json()["reward"] == 1.0
    toys.cookies.clear()


def test_a_repeated_key_gets_the_first_answer(toys: httpx.Client) -> None:
    def body(text: str) -> dict[str, Any]:
        return {"task": {"answer": "a"}, "rollouts": [{"response": {"output": message(text)}}]}

    headers = {"Idempotency-Key": "one"}
    assert toys.post("/kit_shortest/verify_group", json=body("a"), headers=headers).json()["rewards"] == [1.0]
    assert toys.post("/kit_shortest/verify_group", json=body("b"), headers=headers).json()["rewards"] == [1.0]
    assert toys.post("/kit_shortest/verify_group", json=body("b")).json()["rewards"] == [0.0]


def test_errors_of_an_upstream_come_through_as_they_are(toys: httpx.Client) -> None:
    bad = toys.post("/kit_till/verify", json={"start": 1, "response": {"output": []}}, headers={"X-Request-Id": "mine"})
    assert bad.status_code == 422 and "target" in bad.json()["error"]["message"]
    assert bad.json()["error"]["request_id"] == bad.headers["x-request-id"] == "mine"
    unknown = toys.post("/kit_tills/verify", json={})
    assert unknown.status_code == 404 and "kit_shortest, kit_till" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/environments", "/kit_till/tools", "/metrics", "/nothing/here"])
def test_nothing_without_the_token(toys: httpx.Client, path: str) -> None:
    for given in ({"Authorization": "Bearer other"}, {"Authorization": ""}):
        refused = toys.get(path, headers=given)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "unauthorized"


def test_what_passes_and_what_does_not(echo: tuple[Echo, httpx.Client]) -> None:
    _, client = echo
    headers = [("X-Two", "1"), ("X-Two", "2"), ("Connection", "keep-alive"), ("TE", "x"), ("X-Deadline-Seconds", "30")]
    told = client.post("/echo/a%2Fb/%20?q=%2F&q=2", content=b"x" * 70_000, headers=headers)
    got = told.json()
    assert (got["method"], got["path"], got["query"], got["size"]) == (
        "POST",
        "/echo/a%2Fb/%20",
        "q=%2F&q=2",
        70_000,
    )
    names = [name for name, _ in got["headers"]]
    assert [value for name, value in got["headers"] if name == "x-two"] == ["1", "2"]
    assert "te" not in names and names.count("x-deadline-seconds") == 1 and names.count("host") == 1
    assert 0 < float(dict(got["headers"])["x-deadline-seconds"]) <= 30
    assert dict(got["headers"])["x-request-id"]
    assert [value.split(";")[0] for value in told.headers.get_list("set-cookie")] == ["first=1", "second=2"]
    assert client.get("/echo/teapot").status_code == 418
    assert client.get("/echo/x").json()["size"] == 0


def test_a_body_in_chunks_and_one_that_is_too_large(echo: tuple[Echo, httpx.Client]) -> None:
    upstream, client = echo
    assert client.post("/echo/x", content=iter([b"ab"] * 1000)).json()["size"] == 2000
    for body in (b"x" * (2 << 20), iter([b"x" * 65536] * 32)):
        refused = client.post("/echo/x", content=body)
        assert refused.status_code == 413 and refused.json()["error"]["type"] == "body_too_large"
    assert client.get("/echo/x").status_code == 200
    assert upstream.requests == 2


def test_an_answer_streams(echo: tuple[Echo, httpx.Client]) -> None:
    upstream, client = echo
    with client.stream("GET", "/echo/parts") as response:
        parts = response.iter_raw()
        assert next(parts) == b"first "  # the upstream waits: what it said so far is here
        upstream.hold.set()
        assert b"".join(parts) == b"second"


def test_a_deadline_ends_a_call(echo: tuple[Echo, httpx.Client]) -> None:
    _, client = echo
    late = client.post("/echo/hold", json={}, headers={"X-Deadline-Seconds": "0.3"})
    assert late.status_code == 503 and late.json()["retryable"] is True
    assert late.json()["error"]["type"] == "timeout" and late.headers["retry-after"] == "1"


def _unused() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_upstream_that_is_down_is_named_and_can_come_again() -> None:
    port = _unused()
    there = Echo()
    with (
        serving(there.app) as up,
        client_of(build_gateway([up, f"http://127.0.0.1:{port}"], SETTINGS)) as client,
    ):
        eventually(lambda: client.get("/echo/x").status_code == 200)  # one that is down takes nothing from the other
        ready = client.get("/readyz")
        assert ready.status_code == 503 and f"127.0.0.1:{port}" in ready.json()["reason"]
        unknown = client.post("/kit_till/verify", json={})  # perhaps the one that is down has it
        assert unknown.status_code == 503 and unknown.json()["retryable"] is True
        assert unknown.headers["retry-after"] == "1" and f"127.0.0.1:{port}" in unknown.json()["error"]["message"]
        till = build_resources([TillEnvironment(ToySettings())], SETTINGS, 1)
        server = uvicorn.Server(uvicorn.Config(till, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            eventually(lambda: client.get("/readyz").status_code == 200)
            assert client.get("/kit_till/tools").status_code == 200
        finally:
            server.should_exit = True
            thread.join()
        gone = client.get("/kit_till/tools")  # known by now, and lost
        assert gone.status_code == 503 and gone.json()["error"]["type"] == "environment_down"
        assert gone.json()["retryable"] is True and gone.headers["retry-after"] == "1"
        assert client.get("/echo/x").status_code == 200


def test_two_upstreams_with_one_environment_are_not_ready() -> None:
    one, two = Echo(), Echo()
    with serving(one.app) as a, serving(two.app) as b, client_of(build_gateway([a, b], SETTINGS)) as client:
        eventually(lambda: len(client.get("/environments").json()) == 2)
        ready = client.get("/readyz")
        assert ready.status_code == 503 and "'echo' is served by two upstreams" in ready.json()["reason"]


@contextlib.contextmanager
def replica(echo: Echo, address: str, port: int) -> Iterator[uvicorn.Server]:
    server = uvicorn.Server(
        uvicorn.Config(echo.app, host=address, port=port, log_level="critical", timeout_graceful_shutdown=0)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield server
    finally:
        for connection in list(server.server_state.connections):  # as a process that is killed leaves them
            echo.loop.call_soon_threadsafe(connection.transport.abort)
        server.should_exit = True
        eventually(lambda: not server.server_state.connections)
        echo.hold.set()
        thread.join()


def test_replicas_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with several addresses: every replica gets requests, a busy one fewer, one that is gone none; what it had is
    a retryable failure and was sent once."""
    addresses = ["127.0.0.2"]

    async def resolve(host: str, port: int) -> list[str]:
        assert host == "replicas.test"
        return list(addresses)

    monkeypatch.setattr(gateway, "resolve", resolve)
    one, two, port = Echo("one"), Echo("two"), _unused()
    with (
        client_of(build_gateway([f"http://replicas.test:{port}"], SETTINGS)) as client,
        replica(two, "127.0.0.3", port),
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        with replica(one, "127.0.0.2", port):
            eventually(lambda: client.get("/echo/x").status_code == 200)
            assert {client.get("/echo/x").json()["who"] for _ in range(5)} == {"one"}
            addresses.append("127.0.0.3")  # scaled out
            eventually(
                lambda: 'omnigym_upstream_addresses{upstream="http://replicas.test' in client.get("/metrics").text
            )
            one.requests = 0
            held = threads.submit(client.post, "/echo/hold", json={})
            eventually(lambda: one.requests + two.requests > 0)
            busy = "one" if one.requests else "two"
            eventually(lambda: client.get("/echo/x").json()["who"] != busy)
            assert {client.get("/echo/x").json()["who"] for _ in range(20)} == {"one", "two"} - {busy}
            one.hold.set()
            two.hold.set()
            assert held.result().json() == {"who": busy}
            one.hold.clear()
            two.hold.clear()
            one.requests = two.requests = 0
            calls = [threads.submit(client.post, "/echo/hold", json={}) for _ in range(4)]
            eventually(lambda: one.requests == two.requests == 2)
        two.hold.set()  # the first is gone with two calls in flight; its address is still in the name
        answers = [call.result() for call in calls]
        lost = [answer for answer in answers if answer.status_code != 200]
        assert len(lost) == 2 and all(answer.status_code == 503 and answer.json()["retryable"] for answer in lost)
        assert (one.requests, two.requests) == (2, 2)
        assert {client.get("/echo/x").json()["who"] for _ in range(20)} == {"two"}


@pytest.mark.parametrize(
    "urls", [[], ["http://a:1", "http://a:1"], ["https://a:1"], ["a:1"], ["http://u:p@a:1"], ["http://a:1/path"]]
)
def test_upstreams_that_are_none_are_refused(urls: list[str]) -> None:
    with pytest.raises(OmnigymError, match=r"upstream"):
        build_gateway(urls, SETTINGS)
