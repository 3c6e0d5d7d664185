"""The cases of environments that have bad rows among them, over real HTTP: 422 that names environment and field, and the server lives on."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from gym_servers.registry import load_environment
from gym_servers.resources import build_resources

NAMES = ("mcqa", "reasoning_gym")
CASES = [
    (name, json.loads(line))
    for name in NAMES
    for line in (load_environment(name).folder() / "cases.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(build_resources([load_environment(name) for name in NAMES], workers=1), log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_every_case_is_graded_or_refused(url: str) -> None:
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for name, case in CASES:
            reply = client.post(f"/{name}/verify", json=case["request"])
            if "error" in case["expected"]:
                assert reply.status_code == 422, (case["id"], reply.text)
                message = reply.json()["error"]["message"]
                assert message.startswith(f"environment '{name}' task '") and re.search(
                    case["expected"]["error"], message
                )
            else:
                assert reply.status_code == 200, (case["id"], reply.text)
                assert reply.json()["reward"] == pytest.approx(case["expected"]["reward"])
                assert {key: reply.json()[key] for key in case["request"]} == case["request"]


@pytest.mark.parametrize("name", NAMES)
def test_each_field_missing_or_of_a_wrong_type(url: str, name: str) -> None:
    good = next(case["request"] for n, case in CASES if n == name and case["expected"].get("reward") == 1.0)
    wrong: list[Any] = [None, 3, "x" * 10, [1], {"a": [None]}, True, [[]] * 50]
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for field in good:
            bodies = [{key: value for key, value in good.items() if key != field}]
            bodies += [{**good, field: value} for value in wrong]
            for body in bodies:
                assert client.post(f"/{name}/verify", json=body).status_code in (200, 422)
        assert client.post(f"/{name}/verify", json=good).json()["reward"] == 1.0
