"""Requests as NeMo-Gym's clients send them, replayed over real HTTP, and its answers as our client meets them.

nemo_gym_requests.jsonl is written by hand from the documented forms: BaseSeedSessionRequest, BaseVerifyRequest (a row with a whole
Responses object, token fields on its items), tools as `POST /<tool>` with their arguments as the body, a session as a cookie.
Each line is one conversation with a client of its own: `steps` in order, each with what its answer must hold.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit_toys import Model, TillEnvironment, call, installed, message, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gym_servers.agents.tool_loop import reward_of
from gym_servers.base import ServerSettings
from gym_servers.protocol import Rollout
from gym_servers.registry import load_environment
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

CASES = [json.loads(line) for line in (Path(__file__).parent / "nemo_gym_requests.jsonl").read_text().splitlines()]
REAL = ("competition_math", "instruction_following", "structured_outputs")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with (
        installed(tmp_path_factory.mktemp("toys")),
        serving(build_resources([load_environment("competition_math")], workers=1)) as one,
        serving(build_resources([*map(load_environment, REAL), TillEnvironment()], workers=1)) as many,
    ):
        yield {"competition_math": one, "many": many}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_recorded_request_is_served(servers: dict[str, str], case: dict[str, Any]) -> None:
    with httpx.Client(base_url=servers[case["server"]], timeout=60, trust_env=False) as client:
        for step in case["steps"]:
            reply = client.request(step.get("method", "POST"), step["path"], json=step.get("json"))
            assert reply.status_code == step["status"], reply.text
            assert ("set-cookie" in reply.headers) == step.get("sets_cookie", False)
            if "text" in step:
                assert reply.text == step["text"]
                continue
            answer = reply.json()
            assert {key: answer.get(key) for key in step["expect"]} == step["expect"]
            if step["path"].endswith("/verify") and reply.status_code == 200:
                assert {key: answer[key] for key in step["json"]} == step["json"]  # nothing is lost or changed
                assert isinstance(answer["reward"], float)
            if reply.status_code >= 400:
                assert set(answer["error"]) == {"type", "message", "request_id"}
                assert "reward" not in answer


class Theirs:
    """A resources server as NeMo-Gym's are: FastAPI's 422, `{}` for a seeded session, a cookie, only its own fields answered."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.cookies: list[str | None] = []
        routes = [
            Route(f"/{f.__name__}", f, methods=["POST"]) for f in (self.seed_session, self.get_weather, self.verify)
        ]
        self.app = Starlette(routes=routes)

    async def seed_session(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        response = JSONResponse({})
        response.set_cookie("weather_session", "eyJzIjogMX0=.sig")
        return response

    async def get_weather(self, request: Request) -> Response:
        self.cookies.append(request.cookies.get("weather_session"))
        body = await request.json()
        if "city" not in body:
            return JSONResponse(
                {"detail": [{"type": "missing", "loc": ["body", "city"], "msg": "Field required"}]}, 422
            )
        return JSONResponse({"city": body["city"], "weather_description": "cold"})

    async def verify(self, request: Request) -> Response:
        self.cookies.append(request.cookies.get("weather_session"))
        body = await request.json()
        self.bodies.append(body)
        needed = {"id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice", "tools"}
        if not needed <= set(body["response"]):
            return JSONResponse({"detail": [{"loc": ["body", "response"], "msg": "Field required"}]}, 422)
        return JSONResponse({**body, "reward": 1.0, "extracted_answer": "cold"})


def test_our_collector_runs_on_a_server_of_theirs() -> None:
    theirs, model = Theirs(), Model()
    turns = [[call("get_weather", "{}")], [call("get_weather", '{"city": "Oslo"}')], message("cold")]
    model.turns = lambda body, n: turns[n - 1]
    tools = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": True}]
    row = {"responses_create_params": {"input": "Weather in Oslo?", "tools": tools}, "id": 3}

    async def collect(url: str, model_url: str) -> Rollout:
        collector = Collector({"weather": url}, f"{model_url}/v1", secret="s")
        (rollout,) = [one async for one in collector.collect([RolloutRequest(row, "t", "weather")])]
        return rollout

    with serving(theirs.app) as url, serving(model.app) as model_url:
        rollout = asyncio.run(collect(url, model_url))
    assert (rollout.reward, rollout.failure) == (1.0, None)
    assert "Field required" in rollout.tool_calls[0].output  # the model sees why its call was refused
    assert rollout.tool_calls[1].output == '{"city":"Oslo","weather_description":"cold"}'
    assert theirs.bodies[0] == row
    assert set(theirs.cookies) == {"eyJzIjogMX0=.sig"}
    assert theirs.bodies[1]["response"]["output"] == rollout.output


def collected(url: str, environment_url: str, token: str | None = None) -> Rollout:
    async def run() -> Rollout:
        collector = Collector({"weather": environment_url}, f"{url}/v1", secret="s", token=token, retries=1)
        row = {"responses_create_params": {"input": "Weather?"}, "expected_answer": "4"}
        (rollout,) = [one async for one in collector.collect([RolloutRequest(row, "t", "weather")])]
        return rollout

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (
            {"reward": 0.0, "mask_sample": True, "failure_kind": "judge_failed", "failure_reason": "no label"},
            "judge_failed",
        ),
        ({"reward": 0.0, "mask_sample": True}, "verifier_crash"),
        ({"reward": None}, "verifier_crash"),
        ({"reward": "1"}, "verifier_crash"),
        ({}, "verifier_crash"),
        (500, "verifier_crash"),
    ],
)
def test_a_failure_of_theirs_is_no_reward(verdict: Any, kind: str) -> None:
    """Their judge's failure comes as a reward of 0 with `mask_sample`."""

    async def verify(request: Request) -> Response:
        if isinstance(verdict, int):
            return Response("Internal Server Error", verdict)
        return JSONResponse({**(await request.json()), **verdict})

    async def seed_session(request: Request) -> Response:
        return JSONResponse({})

    routes = [Route("/verify", verify, methods=["POST"]), Route("/seed_session", seed_session, methods=["POST"])]
    with serving(Starlette(routes=routes)) as theirs, serving(Model().app) as model_url:
        rollout = collected(model_url, theirs)
    assert rollout.reward is None and rollout.failure is not None and rollout.failure.kind == kind


def test_a_reward_beside_mask_sample_false_counts() -> None:
    assert reward_of({"reward": 0.5, "mask_sample": False}) == 0.5


def test_a_token_in_the_url_is_sent_instead_of_ours_and_never_shown() -> None:
    """Theirs may stand behind a password; ours takes its token so, from a client that knows no header."""
    ours = build_resources([load_environment("competition_math")], ServerSettings(token="their token/1"), workers=1)
    with serving(ours) as url, serving(Model().app) as model_url:
        host = url.removeprefix("http://")
        good = collected(model_url, f"http://omnigym:their%20token%2F1@{host}", token="our secret")
        assert (good.reward, good.failure) == (1.0, None)
        bad = collected(model_url, f"http://omnigym:wrong-one@{host}", token="our secret")
        assert bad.failure is not None and "401" in bad.failure.message
        assert "wrong-one" not in bad.failure.message and "token as the password" in bad.failure.message
        body = {"expected_answer": "4", "response": {"output": message("4")}}
        for credentials, status in (("their token/1", 200), ("", 401), ("their token", 401)):
            reply = httpx.post(f"{url}/verify", json=body, auth=("anyone", credentials), timeout=60, trust_env=False)
            assert reply.status_code == status
        for header in ("Basic x", "Basic !!", "basic Og==", "Bearer", "Bearer wrong"):
            reply = httpx.post(
                f"{url}/verify", json=body, headers={"Authorization": header}, timeout=60, trust_env=False
            )
            assert reply.status_code == 401


def test_their_server_is_never_sent_our_token() -> None:
    seen: list[str | None] = []

    async def seed_session(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return JSONResponse({}, 500)

    with serving(Starlette(routes=[Route("/seed_session", seed_session, methods=["POST"])])) as theirs:
        address = theirs.replace("http://", "http://me:pass@")
        with serving(Model().app) as model_url:
            collected(model_url, address, token="our secret")
    assert seen and set(seen) == {"Basic bWU6cGFzcw=="}
