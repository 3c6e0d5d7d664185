"""The resources server over real HTTP, as its own process."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

COMMAND = [sys.executable, "-c", "from gym_servers.cli import main; main()", "env", "serve"]


def start(*arguments: str, **env: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    process, url = start("competition_math", OMNIGYM_TOKEN="t0ken")
    try:
        with httpx.Client(
            base_url=url, headers={"Authorization": "Bearer t0ken"}, timeout=60, trust_env=False
        ) as client:
            client.__dict__["pid"] = process.pid
            for _ in range(100):
                try:
                    client.get("/readyz")
                    break
                except httpx.ConnectError:
                    import time

                    time.sleep(0.1)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def body(text: str, **row: Any) -> dict[str, Any]:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
    return {
        "responses_create_params": {"input": "?"},
        "question": "?",
        "expected_answer": "4",
        "extra": "kept",
        **row,
        "response": {"output": output},
    }


@pytest.mark.parametrize("path", ["/verify", "/competition_math/verify"])
def test_the_answer_is_the_request_with_a_reward(server: httpx.Client, path: str) -> None:
    right = server.post(path, json=body("\\boxed{4}")).json()
    assert right["reward"] == 1.0
    assert right["extra"] == "kept"
    assert right["response"] == body("\\boxed{4}")["response"]
    assert server.post(path, json=body("\\boxed{5}")).json()["reward"] == 0.0


def test_a_verdict_that_needs_a_worker(server: httpx.Client) -> None:
    assert server.post("/verify", json=body("\\boxed{(x+1)^2}", expected_answer="x^2+2x+1")).json()["reward"] == 1.0


def test_a_bad_row_is_422_and_names_the_field(server: httpx.Client) -> None:
    request = body("4")
    del request["expected_answer"]
    reply = server.post("/verify", json=request)
    assert reply.status_code == 422
    assert "field 'expected_answer'" in reply.json()["error"]["message"]
    assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"response": {"output": "x"}, "expected_answer": "4"}', b"\xff"]
)
def test_a_bad_body_is_422(server: httpx.Client, content: bytes) -> None:
    assert server.post("/verify", content=content).status_code == 422


def test_a_response_that_failed_upstream_is_503_never_a_reward(server: httpx.Client) -> None:
    reply = server.post("/verify", json={**body("4"), "response": {"error": {"code": "server_error"}}})
    assert reply.status_code == 503
    assert reply.json()["retryable"] is True
    assert "retry-after" in reply.headers
    assert "reward" not in reply.json()


def test_no_token_no_verdict(server: httpx.Client) -> None:
    reply = server.post("/verify", json=body("\\boxed{4}"), headers={"Authorization": "Bearer wrong"})
    assert reply.status_code == 401
    assert server.get("/healthz", headers={"Authorization": ""}).status_code == 200


def test_an_unknown_path_and_a_wrong_method_have_the_envelope(server: httpx.Client) -> None:
    assert server.post("/nothing", json={}).json()["error"]["type"] == "not_found"
    assert server.get("/verify").json()["error"]["type"] == "method_not_allowed"


def test_a_body_over_the_limit_is_413_and_the_server_lives_on(server: httpx.Client) -> None:
    assert server.post("/verify", content=b"x" * ((16 << 20) + 1)).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b"x" * (1 << 20)

    assert server.post("/verify", content=chunks()).status_code == 413
    assert server.post("/verify", json=body("\\boxed{4}")).json()["reward"] == 1.0


def test_the_same_idempotency_key_gets_the_stored_verdict(server: httpx.Client) -> None:
    first = server.post("/verify", json=body("\\boxed{4}"), headers={"Idempotency-Key": "a"}).json()
    again = server.post("/verify", json=body("\\boxed{5}"), headers={"Idempotency-Key": "a"}).json()
    assert (first["reward"], again["reward"]) == (1.0, 1.0)


def test_many_at_once_get_their_own_verdicts(server: httpx.Client) -> None:
    def ask(k: int) -> bool:
        return bool(
            server.post("/verify", json=body(f"\\boxed{{{k}}}", expected_answer="7")).json()["reward"] == float(k == 7)
        )

    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        assert all(threads.map(ask, range(200)))


def test_requests_are_counted(server: httpx.Client) -> None:
    assert 'omnigym_requests_total{status="200"}' in server.get("/metrics").text


def test_no_authentication_is_for_loopback_only() -> None:
    done = subprocess.run([*COMMAND, "--auth", "none", "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "loopback only" in done.stderr


def test_a_busy_port_is_named(server: httpx.Client) -> None:
    port = str(server.base_url.port)
    done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_a_stopped_server_leaves_no_process() -> None:
    import psutil

    process, url = start("competition_math", "--auth", "none")
    try:
        httpx.post(f"{url}/verify", json=body("\\boxed{x}", expected_answer="x+1"), timeout=60, trust_env=False)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_every_answer_of_the_file_command_and_the_server_agree(server: httpx.Client) -> None:
    from environments.competition_math.server import CompetitionMath

    for line in (CompetitionMath.folder() / "cases.jsonl").read_text().splitlines()[:40]:
        case = json.loads(line)
        assert server.post("/verify", json=case["request"]).json()["reward"] == case["expected"]["reward"], case["id"]
