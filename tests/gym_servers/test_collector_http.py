"""The collector and the tool loop against servers over real HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.models.wire import LedgerExport, pack_ledger
from gym_servers.protocol import Rollout, Segment
from gym_servers.rollouts import Collector, NoProgress, RolloutRequest
from gym_servers.signing import check_rollout_id


class Fake:
    """A model server and an environment in one process; what they answer is set by a test."""

    def __init__(self) -> None:
        self.turns: Callable[[dict[str, Any], int], dict[str, Any]] = lambda body, n: self.say("4")
        self.verdicts: Callable[[dict[str, Any], int], Any] = lambda body, n: {"reward": 1.0}
        self.calls: dict[str, int] = {}
        self.lose: Callable[[str], bool] = lambda rollout: False
        self.verified: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.tools: list[tuple[dict[str, Any], str | None]] = []
        self.in_flight = self.most_in_flight = 0
        self.app = FastAPI()
        self.app.post("/r/{signed}/v1/responses")(self.responses)
        self.app.post("/r/{signed}/close")(self.close)
        self.app.post("/v1/responses")(self.plain)
        self.app.post("/env/seed_session")(self.seed)
        self.app.post("/env/verify")(self.verify)
        self.app.post("/env/add")(self.add)

    @staticmethod
    def say(text: str, **fields: Any) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text}]
        return {
            "output": [{"type": "message", "role": "assistant", "content": content}],
            "status": "completed",
            **fields,
        }

    @staticmethod
    def call(name: str, arguments: str) -> dict[str, Any]:
        item = {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments}
        return {"output": [item], "status": "completed"}

    async def responses(self, signed: str, request: Request) -> Any:
        rollout = check_rollout_id(signed, "s")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.005)
        self.in_flight -= 1
        self.calls[rollout] = self.calls.get(rollout, 0) + 1
        reply = self.turns(await request.json(), self.calls[rollout])
        return reply if isinstance(reply, dict) else JSONResponse(reply[1], reply[0])

    async def plain(self, request: Request) -> Any:
        """Without a ledger."""
        self.calls[""] = self.calls.get("", 0) + 1
        reply = self.turns(await request.json(), self.calls[""])
        return reply if isinstance(reply, dict) else JSONResponse(reply[1], reply[0])

    async def close(self, signed: str) -> Response:
        rollout = check_rollout_id(signed, "s")
        n = self.calls.get(rollout, 0)
        if self.lose(rollout):
            return Response(pack_ledger(LedgerExport(rollout_id=rollout, segments=[], usage={})))
        segment = Segment(token_ids=[1, 2, 3], mask=[0, 1, 1], lp_gen=[0, -1, -2])
        usage = {"prompt_tokens": n, "sampled_tokens": 2 * n, "requests": n}
        return Response(pack_ledger(LedgerExport(rollout_id=rollout, segments=[segment], usage=usage, calls=n)))

    async def seed(self) -> Response:
        response = JSONResponse({})
        response.set_cookie("session", "abc")
        return response

    async def add(self, request: Request) -> Any:
        body = await request.json()
        self.tools.append((body, request.cookies.get("session")))
        if not isinstance(body.get("a"), int):
            return JSONResponse({"error": {"type": "bad_row", "message": "field 'a' must be an integer"}}, 422)
        return {"sum": body["a"] + body["b"]}

    async def verify(self, request: Request) -> Any:
        body = await request.json()
        self.verified.append(body)
        self.keys.append(request.headers["idempotency-key"])
        reply = self.verdicts(body, len(self.verified))
        return reply if isinstance(reply, dict) else JSONResponse(reply[1], reply[0])


@pytest.fixture
def fake() -> Iterator[tuple[Fake, Collector]]:
    made = Fake()
    config = uvicorn.Config(made.app, port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made, Collector({"env": f"{url}/env"}, url, secret="s", limits=LoopLimits(steps=4), concurrency=8)
    server.should_exit = True
    thread.join()


def gather(collector: Collector, n: int = 1, **row: Any) -> list[Rollout]:
    rows = {"responses_create_params": {"input": "?", **row}}
    requests = [RolloutRequest(rows, f"t{k}", "env", f"g{k}", 0, seed=k) for k in range(n)]

    async def run() -> list[Rollout]:
        return [rollout async for rollout in collector.collect(requests)]

    return asyncio.run(run())


TOOLS = [{"type": "function", "name": "add", "parameters": {}}, {"type": "function", "name": "verify"}]


def test_a_rollout_has_its_reward_and_the_ledger_s_tokens(fake: tuple[Fake, Collector]) -> None:
    (rollout,) = gather(fake[1])
    assert (rollout.reward, rollout.failure, rollout.text) == (1.0, None, "4")
    assert rollout.segments[0].mask == [0, 1, 1]
    assert rollout.usage == {"prompt_tokens": 1, "sampled_tokens": 2, "requests": 1, "dropped_tokens": 0}
    assert fake[0].verified[0]["response"]["output"][0]["content"][0]["text"] == "4"


def test_without_a_ledger_usage_is_what_the_responses_say(fake: tuple[Fake, Collector]) -> None:
    """Two turns of an attempt that fails, then two of the one that counts; a server that says nothing adds nothing."""
    server, collector = fake
    collector.secret, collector.model_url = None, f"{collector.model_url}/v1"
    told = [
        {"input_tokens": 10, "output_tokens": 3},
        None,
        {"input_tokens": 10, "output_tokens": 4},
        {"input_tokens": 20},
    ]
    numbered: list[int] = []

    def turns(body: dict[str, Any], n: int) -> dict[str, Any]:
        numbered.append(n)
        if n == 2:
            return {**server.say(""), "error": {"message": "lost"}, "usage": {"input_tokens": 12, "output_tokens": "7"}}
        fields = {"usage": told[n - 1]}
        return {**server.call("add", '{"a": 1, "b": 2}'), **fields} if n % 2 else server.say("4", **fields)

    server.turns = turns
    (rollout,) = gather(collector, tools=TOOLS)
    assert (numbered, rollout.reward, rollout.segments) == ([1, 2, 3, 4], 1.0, [])
    assert rollout.usage == {"prompt_tokens": 52, "sampled_tokens": 7, "requests": 4, "dropped_tokens": 3}


def test_a_slow_model_is_waited_for_as_long_as_others_make_progress() -> None:
    """One clock for the model, the collector's no_progress_seconds: no call's own limit comes before it."""
    assert LoopLimits().model_seconds >= 86_400


def test_tools_run_in_the_session_and_mistakes_are_shown_to_the_model(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    steps = [
        server.call("add", '{"a": 1, "b": 2}'),
        server.call("verify", "{}"),
        server.call("add", "{broken"),
        server.call("add", '{"a": "x", "b": 2}'),
    ]
    server.turns = lambda body, n: steps[n - 1]
    (rollout,) = gather(collector, tools=TOOLS)
    outputs = [call.output for call in rollout.tool_calls]
    assert outputs[0] == '{"sum":3}'
    assert "no tool 'verify'" in outputs[1]
    assert "not valid JSON" in outputs[2]
    assert "field 'a' must be an integer" in outputs[3]
    assert [call.error for call in rollout.tool_calls] == [False, True, True, True]
    assert server.tools[0] == ({"a": 1, "b": 2}, "abc")
    assert len(server.verified) == 1  # `verify` called as a tool did not reach the server
    assert (rollout.steps, rollout.truncated, rollout.reward) == (4, False, 1.0)  # the step limit is scored


def test_a_verdict_that_failed_is_asked_for_again_and_nothing_is_sampled_again(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    server.verdicts = lambda body, n: (
        {"reward": 0.5} if n > 6 else (503, {"error": {"type": "verifier_crash", "message": "x"}, "retryable": True})
    )
    (rollout,) = gather(collector)
    assert rollout.reward == 0.5
    assert len(set(server.keys)) == 1
    assert list(server.calls.values()) == [1]
    assert all(body == server.verified[0] for body in server.verified)


def test_a_verdict_that_never_comes_is_a_failure_not_a_reward(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    collector.retries = 0
    server.verdicts = lambda body, n: (503, {"error": {"type": "judge_failed", "message": "no"}, "retryable": False})
    (rollout,) = gather(collector)
    assert rollout.reward is None
    assert rollout.failure is not None
    assert rollout.failure.kind == "judge_failed"
    assert list(server.calls.values()) == [1]


@pytest.mark.parametrize("verdict", [{}, {"reward": None}, {"reward": True}, {"reward": "1"}])
def test_a_200_without_a_reward_is_a_failure(fake: tuple[Fake, Collector], verdict: dict[str, Any]) -> None:
    server, collector = fake
    collector.retries = 0
    server.verdicts = lambda body, n: verdict
    (rollout,) = gather(collector)
    assert rollout.reward is None
    assert rollout.failure is not None


def test_a_failed_model_call_starts_anew_and_its_tokens_stay_counted(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    seen: list[str] = []

    def turns(body: dict[str, Any], n: int) -> Any:
        seen.append("x")
        return (
            (500, {"error": {"type": "x", "message": "boom"}, "retryable": True}) if len(seen) <= 5 else server.say("4")
        )

    server.turns = turns
    (rollout,) = gather(collector)
    assert rollout.reward == 1.0
    assert len(server.calls) == 2  # a new ledger for the second attempt
    assert rollout.usage["requests"] == 6


def test_a_ledger_that_was_lost_is_a_failure_and_never_an_empty_rollout(fake: tuple[Fake, Collector]) -> None:
    """As after a restart of the model server, which answers a close of what it never saw."""
    server, collector = fake
    server.lose = lambda rollout: True
    (rollout,) = gather(collector)
    assert rollout.reward is None and rollout.failure is not None
    assert rollout.failure.kind == "model_error" and "it holds 0 calls, 1 were answered" in rollout.failure.message
    server.lose = lambda rollout: rollout.endswith("/0")  # only the first attempt's
    server.calls.clear()
    (rollout,) = gather(collector)
    assert rollout.reward == 1.0 and len(server.calls) == 2 and rollout.segments[0].mask == [0, 1, 1]


def test_a_final_failure_stays_final_when_the_ledger_is_lost_too(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    server.lose = lambda rollout: True
    server.verdicts = lambda body, n: (503, {"error": {"type": "judge_failed", "message": "no"}, "retryable": False})
    (rollout,) = gather(collector)
    assert rollout.failure is not None and rollout.failure.kind == "judge_failed"
    assert list(server.calls.values()) == [1]  # nothing was sampled again


def test_what_the_engine_cut_is_truncated_and_graded(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    server.turns = lambda body, n: server.say(
        "4", status="incomplete", incomplete_details={"reason": "max_output_tokens"}
    )
    (rollout,) = gather(collector)
    assert (rollout.truncated, rollout.truncation_reason, rollout.reward) == (True, "max_tokens", 1.0)


def test_concurrency_is_bounded_and_used(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    rollouts = gather(collector, 60)
    assert sorted(rollout.task_id for rollout in rollouts) == sorted(f"t{k}" for k in range(60))
    assert 2 <= server.most_in_flight <= 8


def test_a_missing_environment_is_named(fake: tuple[Fake, Collector]) -> None:
    fake[1].environments.clear()
    (rollout,) = gather(fake[1])
    assert rollout.failure is not None
    assert "no server for environment 'env'" in rollout.failure.message


def test_no_progress_says_on_what_is_waited(fake: tuple[Fake, Collector]) -> None:
    server, collector = fake
    collector.no_progress_seconds = 0.5

    async def hang(signed: str) -> None:
        await asyncio.sleep(2)

    server.app.router.routes.clear()
    server.app.post("/env/seed_session")(server.seed)
    server.app.post("/r/{signed}/v1/responses")(hang)
    with pytest.raises(NoProgress, match="generation for 'env'"):
        gather(collector, 2)
