"""The agent server over real HTTP: POST /run takes a row and returns its rollout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from kit_toys import Model, Shortest, TillEnvironment, call, installed, message, serving

from gym_servers.agents.server import AgentSettings, build_agent
from gym_servers.base import ServerSettings
from gym_servers.protocol import Rollout
from gym_servers.resources import build_resources

TOOLS = [tool.declaration() for tool in TillEnvironment().tools()]
ROW = {"responses_create_params": {"input": "count", "tools": TOOLS}, "target": 3, "agent_ref": {"name": "kit_till"}}


class World:
    def __init__(self, agent: httpx.Client, model: Model, model_url: str, environments: str) -> None:
        self.agent, self.model, self.model_url, self.environments = agent, model, model_url, environments

    def run(self, row: dict[str, Any] = ROW, key: str | None = None, **rollout: Any) -> httpx.Response:
        body = {**row, **({"rollout": rollout} if rollout else {})}
        return self.agent.post("/run", json=body, headers={} if key is None else {"Idempotency-Key": key})


@pytest.fixture
def world(tmp_path: Any) -> Iterator[World]:
    model = Model()
    model.turns = lambda body, n: [call("deposit", '{"amount": 3}')] if len(body["input"]) == 1 else message("done")
    token = ServerSettings(token="t")
    with (
        installed(tmp_path),
        serving(build_resources([TillEnvironment(), Shortest()], token, workers=1)) as environments,
        serving(model.app) as model_url,
    ):
        urls = {name: f"{environments}/{name}" for name in ("kit_till", "kit_shortest")}
        settings = AgentSettings(urls, f"{model_url}/v1", sampling={"temperature": 0.5}, retries=0)
        with (
            serving(build_agent(settings, token)) as url,
            httpx.Client(base_url=url, headers={"Authorization": "Bearer t"}, timeout=60, trust_env=False) as client,
        ):
            yield World(client, model, model_url, environments)


def test_the_answer_is_nemo_gym_s_and_a_rollout(world: World) -> None:
    reply = world.run({**ROW, "id": 7}).json()
    assert (reply["reward"], reply["id"], reply["target"]) == (1.0, 7, 3)
    assert reply["responses_create_params"] == ROW["responses_create_params"]
    response = reply["response"]
    assert (response["object"], response["model"], response["id"]) == ("response", "scripted", "resp_2")
    assert [item["type"] for item in response["output"]] == ["function_call", "function_call_output", "message"]
    rollout = Rollout.model_validate(reply)
    assert (rollout.environment, rollout.text, rollout.steps) == ("kit_till", "done", 2)
    assert rollout.parts == {"amount": 3, "notes": [""]}
    assert rollout.tool_calls[0].output == '{"amount":3}'
    assert rollout.task == {**ROW, "id": 7}
    assert world.model.requests[0]["temperature"] == 0.5


def test_place_seed_and_attempt_may_be_given(world: World) -> None:
    reply = world.run(
        {**ROW, "agent_ref": {"name": "somebody"}},
        environment="elsewhere",
        environment_url=f"{world.environments}/kit_till/",
        model_url=f"{world.model_url}/v1",
        seed=11,
        attempt=2,
        group="g",
        sampling={"temperature": 0.9},
    ).json()
    assert (reply["reward"], reply["environment"], reply["attempt"], reply["group"]) == (1.0, "elsewhere", 2, "g")
    assert {(request["seed"], request["temperature"]) for request in world.model.requests} == {(11, 0.9)}


def test_a_failure_is_told_and_is_no_reward(world: World) -> None:
    world.model.turns = lambda body, n: [call("crash")]
    reply = world.run().json()
    assert reply["reward"] is None
    assert reply["failure"]["kind"] == "tool_crash"
    assert [item["type"] for item in reply["response"]["output"]] == ["function_call"]
    bad = world.run({"responses_create_params": {"input": "x"}}, environment="kit_till").json()
    assert (bad["reward"], bad["failure"]["kind"]) == (None, "bad_row")
    assert "field 'target'" in bad["failure"]["message"]


def test_the_reward_of_a_group_is_left_to_the_caller(world: World) -> None:
    world.model.turns = lambda body, n: message("4")
    reply = world.run({"responses_create_params": {"input": "x"}, "answer": "4"}, environment="kit_shortest").json()
    assert (reply["reward"], reply["failure"]) == (None, None)
    members = [{"response": reply["response"]}, {"response": {"output": message("=4")}}]
    body = {"task": reply["task"], "rollouts": members}
    headers = {"Authorization": "Bearer t"}
    url = f"{world.environments}/kit_shortest/verify_group"
    verdict = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False).json()
    assert verdict["rewards"] == [1.0, 0.0]


def test_a_repeated_request_samples_nothing(world: World) -> None:
    first = world.run(key="k").json()
    count = len(world.model.requests)
    assert world.run(key="k").json() == first
    assert len(world.model.requests) == count
    world.run(key="l")
    assert len(world.model.requests) == 2 * count


@pytest.mark.parametrize(
    ("row", "rollout", "said"),
    [
        (ROW, {"seeds": 1}, "field 'rollout.seeds': Extra inputs are not permitted; there are: environment,"),
        (ROW, {"seed": "x"}, "field 'rollout.seed': Input should be a valid integer"),
        (
            {"agent_ref": {"name": "nobody"}},
            {},
            "no environment for this task (asked for: 'nobody'; there are: kit_short",
        ),
    ],
)
def test_what_cannot_be_run_is_named(world: World, row: dict[str, Any], rollout: dict[str, Any], said: str) -> None:
    reply = world.run(row, **rollout)
    assert reply.status_code == 422
    assert said in reply.json()["error"]["message"]


def test_without_the_token_nothing_runs(world: World) -> None:
    assert world.agent.post("/run", json=ROW, headers={"Authorization": "Bearer x"}).status_code == 401
    assert world.model.requests == []


def test_the_command_serves_it(world: World) -> None:
    command = [sys.executable, "-c", "from gym_servers.cli import main; main()", "agent", "--port", "0"]
    arguments = ["--env", f"kit_till={world.environments}/kit_till", "--model", world.model_url]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMNIGYM_TOKEN": "t"},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        headers = {"Authorization": "Bearer t"}
        for _ in range(200):
            try:
                assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        reply = httpx.post(f"{url}/run", json={**ROW, "agent_ref": None}, headers=headers, timeout=60, trust_env=False)
        assert reply.json()["reward"] == 1.0  # the only environment is the default
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 or process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env", "kit_till"], "--env 'kit_till': must be NAME=URL"),
        (["--model", "smollm"], "--model 'smollm': must be a URL"),
        (["--auth", "none", "--host", "0.0.0.0"], "loopback only"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-c", "from gym_servers.cli import main; main()", "agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
