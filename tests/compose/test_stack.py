"""The stack in a real engine: up from nothing, verdicts through the gateway, hardening seen from inside, kills, restarts, scaling, down.

About six minutes. The tests of this file share one stack, and the last takes it down.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from compose_load import Load, cases
from compose_stack import Stack, base_image, compose_command, run
from conftest import agrees, need
from typer.testing import CliRunner

from gym_servers import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SERVED = {
    "answers": ["competition_math", "instruction_following", "mcqa", "structured_outputs"],
    "workplace": ["workplace_assistant"],
    "banking": ["banking"],
    "judged": ["long_context_qa", "multi_challenge", "open_qa"],
    "code": ["competition_code", "math_with_python"],
}
ENVIRONMENTS = sorted(name for names in SERVED.values() for name in names)
SERVICES = [*SERVED, "gateway", "redis"]
RECORDED = ["competition_code", "competition_math", "instruction_following", "mcqa", "structured_outputs"]
NO_DIFFERENCE = {"num_processes", "debug"}
"""Settings of the reference that change no verdict of ours."""


@pytest.fixture(scope="module")
def stack(environments_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    compose = compose_command(tmp_path_factory.mktemp("compose"))
    one = Stack(compose, environments_image, base_image("redis", "REDIS_IMAGE"))
    try:
        one.up()
        yield one
    except BaseException:
        print(one.compose("logs", "--tail", "40", check=False))
        raise
    finally:
        one.down()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {stack.token}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=300, trust_env=False) as one:
        yield one


@pytest.fixture
def load(stack: Stack) -> Iterator[Load]:
    stack.wait_healthy()
    with Load(stack.url, stack.token, [name for name in ENVIRONMENTS if name not in SERVED["judged"]]) as one:
        yield one
    one.check()


# -- verdicts ----------------------------------------------------------------------------------------------------


def test_it_lists_every_environment_and_answers_nobody_without_the_token(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIGYM_TOKEN", stack.token)
    told = CliRunner().invoke(cli.build(), ["env", "list", "--json", "--url", stack.url])
    listed = {one["name"]: one for one in json.loads(told.output)}
    assert sorted(listed) == ENVIRONMENTS
    assert listed["banking"]["url"] == f"{stack.url}/banking" and listed["banking"]["agent"] == "conversation"
    for path in ("/environments", "/mcqa/tools", "/metrics"):
        assert httpx.get(stack.url + path, trust_env=False).status_code == 401


def verdicts(client: httpx.Client, environment: str, lines: list[dict[str, Any]]) -> list[httpx.Response]:
    def ask(line: dict[str, Any]) -> httpx.Response:
        path = "verify_group" if "rollouts" in line["request"] else "verify"
        return client.post(f"/{environment}/{path}", json=line["request"])

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, lines))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_recorded_cases_get_their_verdicts_through_the_gateway(client: httpx.Client, environment: str) -> None:
    lines = cases(environment)
    assert len(lines) >= 20
    wrong = []
    for line, reply in zip(lines, verdicts(client, environment, lines), strict=True):
        expected, got = line["expected"], reply.json()
        if "error" in expected:
            right = reply.status_code == 422 and re.search(expected["error"], got["error"]["message"])
        else:
            right = reply.status_code == 200 and all(got[key] == value for key, value in expected.items())
        if not right:
            wrong.append((line["id"], expected, reply.status_code, reply.text[-300:]))
    assert not wrong


@pytest.mark.conformance
@pytest.mark.parametrize("environment", RECORDED)
def test_conformance_through_the_gateway(
    client: httpx.Client, environment: str, conformance: Path, conform: Callable[[str, dict[str, bool], str], None]
) -> None:
    """Of the recorded cases those that need no setting of their own: a service's settings are one for all requests."""
    file = f"verify/{environment}.jsonl"
    lines = [json.loads(line) for line in (conformance / file).read_text().splitlines()]
    lines = [line for line in lines if not set(line.get("server_config") or {}) - NO_DIFFERENCE]
    pairs = zip(lines, verdicts(client, environment, lines), strict=True)
    agree = {line["id"]: agrees(reply.json(), line["expected"]) for line, reply in pairs}
    conform(f"{file} (gateway)", agree, f"environments/{environment}/README.md")


# -- what a container may do -------------------------------------------------------------------------------------


@contextlib.contextmanager
def server_of_the_host() -> Iterator[tuple[list[str], int]]:
    """A server on all addresses of this machine: (those at which it answers from here, its port)."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    every = [
        one.address
        for name, some in psutil.net_if_addrs().items()
        for one in some
        if one.family.name == "AF_INET" and name != "lo"
    ]
    try:
        answering = []
        for address in every:  # others' bridges may come and go
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://{address}:{port}/", trust_env=False, timeout=10)
                answering.append(address)
        assert answering
        yield answering, port
    finally:
        server.shutdown()


def reached(stack: Stack, container: str, targets: list[tuple[str, int]]) -> list[str]:
    """Those of `targets` that a process in the container can connect to, all tried at once."""
    tries = " ".join(
        f"(timeout 3 bash -c 'exec 3<>/dev/tcp/{host}/{port}' 2>/dev/null && echo reached {host}:{port}) &"
        for host, port in targets
    )
    return re.findall(r"reached (\S+)", stack.inside(container, f"{tries} wait"))


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_no_way_out_not_even_to_the_host(stack: Stack, service: str) -> None:
    (container,) = stack.containers(service)
    networks = container["NetworkSettings"]["Networks"].values()
    with server_of_the_host() as (addresses, port):
        targets = [(address, port) for address in addresses]
        targets += [(one["Gateway"], port) for one in networks if one["Gateway"]]
        targets += [("1.1.1.1", 443), ("8.8.8.8", 53)]
        assert reached(stack, container["Id"], targets) == []


def test_the_service_that_runs_programs_meets_the_gateway_alone(stack: Stack) -> None:
    (code,) = stack.containers("code")
    others = []
    for service in SERVICES:
        for one in stack.containers(service):
            others += [(net["IPAddress"], service) for net in one["NetworkSettings"]["Networks"].values()]
    ports = {"redis": 6379}
    targets = [(address, ports.get(service, 8000)) for address, service in others]
    allowed = {address for address, service in others if service in ("gateway", "code")}
    got = {one.partition(":")[0] for one in reached(stack, code["Id"], targets)}
    assert got and got <= allowed
    (answers,) = stack.containers("answers")
    assert any(one.endswith(":6379") for one in reached(stack, answers["Id"], targets))  # what is not refused is found


@pytest.mark.parametrize("service", SERVICES)
def test_no_write_no_privilege_and_limits(stack: Stack, service: str) -> None:
    (container,) = stack.containers(service)
    inside = stack.inside(
        container["Id"],
        """
        id -u; id -g
        grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '
        for place in / /etc /usr /opt /home /var/tmp /run /root /run/omnigym/keys /run/omnigym/token; do
          (echo x > $place/written) 2>/dev/null && echo "WROTE $place"
        done
        (echo x > /run/omnigym/token/token) 2>/dev/null && echo WROTE token
        mkdir -p /tmp/t && printf '#!/bin/sh\\necho RAN' > /tmp/t/x && chmod +x /tmp/t/x && /tmp/t/x 2>/dev/null
        mount -t tmpfs none /mnt 2>/dev/null && echo MOUNTED
        cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null | head -1
        cat /proc/1/comm
        exit 0
        """,
    ).split("\n")
    assert inside[:2] == ["1000", "1000"]
    status = dict(line.split(": ") for line in inside if ": " in line)
    assert {value for key, value in status.items() if key.startswith("Cap")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not [line for line in inside if re.match("WROTE|RAN|MOUNTED", line)]
    host = container["HostConfig"]
    assert host["PidsLimit"] in range(1, 1025) and str(host["PidsLimit"]) in inside
    assert host["Memory"] == host["MemorySwap"] > 0 and host["NanoCpus"] > 0 and not host["Privileged"]
    assert inside[-2] in ("docker-init", "tini")
    for bindings in (host["PortBindings"] or {}).values():
        assert {one["HostIp"] for one in bindings} == {"127.0.0.1"}
    assert bool(host["PortBindings"]) == (service == "gateway")


def test_too_many_processes_end_at_the_limit(stack: Stack) -> None:
    """A fork bomb in the container of programs: the limit holds, and the service answers as before."""
    (code,) = stack.containers("code")
    script = "n=0; while [ $n -lt 700 ]; do sleep 20 & n=$((n+1)); done 2>&1; wait"
    started = subprocess.run(
        ["docker", "exec", code["Id"], "timeout", "15", "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert "Cannot fork" in started.stdout + started.stderr or "Resource temporarily" in started.stdout + started.stderr
    stack.inside(
        code["Id"],
        'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = sleep ] && kill -9 ${p#/proc/}; done; exit 0',
        check=False,
    )
    stack.wait_healthy()


def test_the_doctor_passes_inside_and_fails_where_a_layer_is_missing(stack: Stack) -> None:
    (code,) = stack.containers("code")
    assert json.loads(stack.inside(code["Id"], "omnigym sandbox doctor --json"))["held"] is True
    assert "failed" in stack.inside(code["Id"], "omnigym sandbox doctor --without landlock || echo failed")


def test_no_secret_where_it_can_be_read(stack: Stack) -> None:
    """Of token, session secret and Redis's password: nothing in images, settings, process lists or logs; files for the owner alone."""
    (gateway,) = stack.containers("gateway")
    (answers,) = stack.containers("answers")
    listed = stack.inside(answers["Id"], "stat -c '%a %u' /run/omnigym/*/* && cat /run/omnigym/keys/redis.conf").split(
        "\n"
    )
    assert set(listed[:4]) == {"400 1000"}
    files = ("token/token", "keys/secret", "keys/redis-password")
    secrets = [stack.inside(answers["Id"], f"cat /run/omnigym/{file}").strip() for file in files]
    assert len(set(secrets)) == 3 and min(map(len, secrets)) >= 40
    shown = run("docker", "history", "--no-trunc", stack.image) + run("docker", "image", "inspect", stack.image)
    shown += json.dumps(stack.containers()) + stack.compose("logs") + stack.compose("config")
    for one in stack.containers():
        shown += run("docker", "top", one["Id"], "-eo", "pid,args") + stack.inside(one["Id"], "env")
    assert not [secret for secret in secrets if secret in shown]
    for service in ("code", "gateway"):
        (one,) = stack.containers(service)
        assert "keys" not in {mount["Destination"].rpartition("/")[2] for mount in one["Mounts"]}
    assert stack.inside(gateway["Id"], "ls /run/omnigym/keys").strip() == ""


# -- what happens to a deployment --------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_killed_under_load_gives_no_wrong_reward(stack: Stack, load: Load, service: str) -> None:
    (container,) = stack.containers(service)
    stack.kill(container["Id"])
    load.more(60)
    stack.wait_healthy()
    load.more(60)
    if service != "redis":
        assert load.lost == 0  # sessions are in Redis: whoever kills a server ends none


def open_session(client: httpx.Client) -> tuple[dict[str, Any], dict[str, str]]:
    """(a case whose reward is 1, the header of a session in which its calls were made)."""
    case = next(case for case in cases("workplace_assistant") if case["expected"].get("reward") == 1.0)
    row = {key: value for key, value in case["request"].items() if key != "response"}
    header = {"X-Session-Id": client.post("/workplace_assistant/seed_session", json=row).json()["session_id"]}
    for item in case["request"]["response"]["output"]:
        if item["type"] == "function_call":
            made = client.post(f"/workplace_assistant/{item['name']}", content=item["arguments"], headers=header)
            assert made.status_code == 200
    return case, header


def test_a_session_survives_its_server_and_redis(stack: Stack, client: httpx.Client) -> None:
    case, header = open_session(client)
    time.sleep(1.5)  # Redis writes once a second
    (workplace,) = stack.containers("workplace")
    stack.kill(workplace["Id"])
    stack.compose("stop", "redis")
    stack.compose("up", "-d", "--no-deps", "workplace")
    failed = client.post("/workplace_assistant/verify", json=case["request"], headers=header)
    assert failed.status_code == 503 and failed.json()["retryable"] is True and "reward" not in failed.json()
    assert failed.headers["retry-after"]
    stack.up()
    verdict = client.post("/workplace_assistant/verify", json=case["request"], headers=header)
    assert verdict.status_code == 200 and verdict.json()["reward"] == 1.0


def served_by(stack: Stack, service: str) -> list[int]:
    """How many requests each replica answered."""
    script = (
        "python -c \"import urllib.request as u; t=open('/run/omnigym/token/token').read(); "
        "print(u.urlopen(u.Request('http://127.0.0.1:8000/metrics', headers={'Authorization': 'Bearer '+t})).read().decode())\""
    )
    texts = [stack.inside(one["Id"], script) for one in stack.containers(service)]
    return [sum(int(float(n)) for n in re.findall(r'omnigym_requests_total\{status="200"\} (\S+)', t)) for t in texts]


def test_scaled_out_and_in_under_load(stack: Stack, client: httpx.Client, load: Load) -> None:
    stack.up("--scale", "workplace=4", "--no-recreate")
    before = served_by(stack, "workplace")
    assert len(before) == 4
    load.more(200)
    assert all(count > 5 for count in served_by(stack, "workplace")), "a replica gets no requests"
    assert 'omnigym_upstream_addresses{upstream="http://workplace:8000"} 4.0' in client.get("/metrics").text
    victim = stack.containers("workplace")[0]
    stack.kill(victim["Id"])  # sessions that the others serve live on, and its own too
    load.more(60)
    stack.compose("up", "-d", "--scale", "workplace=1", "--no-recreate")
    load.more(60)
    assert len(stack.containers("workplace")) == 1 and load.lost == 0


def test_a_stop_waits_for_what_is_in_flight(stack: Stack, client: httpx.Client) -> None:
    case = next(case for case in cases("competition_code") if case["expected"].get("reward") == 1.0)
    text = json.dumps(case["request"])
    assert "```python" in text
    slow = json.loads(text.replace("```python", "```python\\nimport time; time.sleep(4)", 1))
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.post, "/competition_code/verify", json=slow)
        time.sleep(2)
        stack.compose("stop", "code")
        verdict = call.result()
    assert verdict.status_code == 200 and verdict.json()["reward"] == 1.0
    gone = client.post("/competition_code/verify", json=case["request"])
    assert gone.status_code == 503 and gone.json()["retryable"] is True
    stack.up()
    assert client.post("/competition_code/verify", json=case["request"]).json()["reward"] == 1.0


def test_an_old_compose_reads_the_file(stack: Stack) -> None:
    old = shutil.which("docker-compose") or ""
    found = run(old, "version", "--short", check=False) if old else ""
    need("docker", found.startswith("1."), "docker-compose 1.x is not installed: Debian's package is")
    run(old, "config", "-q", **stack.variables)


def test_down_leaves_nothing(stack: Stack) -> None:
    assert stack.left()
    stack.down()
    assert stack.left() == []
    assert os.environ.get("BASE_IMAGE") or run("docker", "image", "inspect", stack.image)
