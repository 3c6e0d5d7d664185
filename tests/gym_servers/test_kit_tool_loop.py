"""Every rule of the tool loop, with a real resources server and a scripted model, through the collector, without sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kit_toys
import pytest
from kit_toys import Model, TillEnvironment, call, installed, message

from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import Item, Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.sessions import MemorySessions
from gym_servers.tools import RESERVED

TOOLS = [tool.declaration() for tool in TillEnvironment().tools()]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


class World:
    """One rollout at a time against servers in this process."""

    def __init__(self) -> None:
        self.model = Model()
        self.store = MemorySessions()
        self.paths: list[str] = []
        self.limits = LoopLimits(steps=4)

    def run(self, turns: Callable[[dict[str, Any], int], Any], tools: Any = TOOLS, **row: Any) -> Rollout:
        self.model.turns = turns
        guard = build_resources([TillEnvironment()], workers=1, sessions=self.store)

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.paths.append(scope["path"])
            await guard(scope, receive, send)

        async def collect() -> Rollout:
            async with InProcessHost() as host:
                url, model = await host.start("till", watched), await host.start("model", self.model.app)
                collector = Collector(
                    {"kit_till": f"{url}/kit_till"}, f"{model}/v1", secret="s", limits=self.limits, transport=host
                )
                params = {"input": "count", "tools": tools}
                request = RolloutRequest({"responses_create_params": params, "target": 0, **row}, "t", "kit_till", "g")
                (rollout,) = [rollout async for rollout in collector.collect([request])]
                return rollout

        return asyncio.run(collect())

    def outputs(self, *calls: Item, **row: Any) -> tuple[Rollout, list[str]]:
        """One turn with `calls`, then an answer; what the model saw."""
        rollout = self.run(lambda body, n: list(calls) if n == 1 else message("done"), **row)
        seen = [
            item["output"] for item in self.model.requests[-1]["input"] if item.get("type") == "function_call_output"
        ]
        return rollout, seen


@pytest.fixture
def world() -> World:
    return World()


def test_tools_change_the_session_that_is_graded(world: World) -> None:
    rollout, seen = world.outputs(call("deposit", '{"amount": 3}'), call("balance"), target=5, start=2)
    assert seen == ['{"amount":5}', '{"amount":5,"notes":["","read"]}']
    assert (rollout.reward, rollout.failure, rollout.steps) == (1.0, None, 2)
    assert rollout.explanation == "the till holds 5, asked was 5"
    assert len(world.store) == 0
    assert [item["type"] for item in rollout.output] == [
        *["function_call"] * 2,
        *["function_call_output"] * 2,
        "message",
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (call("withdraw"), "Error: there is no tool 'withdraw'. Tools: balance, crash, deposit"),
        (call("deposit", '{"amount": '), "Error: the arguments are not valid JSON"),
        (call("deposit", "[1]"), "Error: the arguments must be a JSON object"),
        (call("deposit", '"1"'), "Error: the arguments must be a JSON object"),
        (call("deposit", "["), "Error: the arguments are not valid JSON"),
        (call("deposit", '{"amount": ' + "[" * 246 + "]" * 246 + "}"), "Error: the arguments are nested too deep"),
        (call("deposit", "[" * 100_000), "Error: the arguments are not valid JSON"),
        ({"type": "function_call", "name": "deposit", "call_id": "c", "arguments": 7}, "Error: the arguments are not"),
        ({"type": "function_call", "name": None, "call_id": "c"}, "Error: there is no tool 'None'"),
        (call("deposit", '{"amount": -1}'), "Error: tool 'deposit': argument 'amount': Input should be greater than 0"),
        (call("deposit", "{}"), "Error: tool 'deposit': argument 'amount': Field required"),
        (call("deposit", '{"amount": 13}'), "Error: 13 brings bad luck"),
        (
            call("deposit", '{"amount": 1, "note": "' + "x" * 3000 + '"}'),
            "Error: tool 'deposit': the arguments are longer",
        ),
    ],
)
def test_the_model_sees_its_mistakes_and_goes_on(world: World, made: Item, said: str) -> None:
    rollout, seen = world.outputs(made, call("deposit", '{"amount": 2}'), target=2)
    assert seen[0].startswith(said)
    assert [one.error for one in rollout.tool_calls] == [True, False]
    assert (rollout.reward, rollout.failure) == (1.0, None)  # the mistake changed nothing, the second call did


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_paths_of_the_server_cannot_be_called(world: World, name: str) -> None:
    """Neither when the row declares such a tool."""
    declared = [*TOOLS, {"type": "function", "name": name, "parameters": {}}]
    rollout = world.run(lambda body, n: [call(name)] if n == 1 else message("x"), tools=declared)
    assert rollout.tool_calls[0].output.startswith(f"Error: there is no tool '{name}'")
    assert world.paths == ["/kit_till/seed_session", "/kit_till/verify"]
    assert rollout.reward == 1.0


@pytest.mark.parametrize(
    "name", ["../kit_till/verify", "./verify", "verify?", "verify#", "verify/", "%76erify", "", "a b"]
)
def test_a_name_that_is_no_path_segment_cannot_be_called(world: World, name: str) -> None:
    declared = [{"type": "function", "name": name, "parameters": {}}]
    rollout = world.run(lambda body, n: [call(name)] if n == 1 else message("x"), tools=declared)
    assert rollout.tool_calls[0].output.startswith(f"Error: there is no tool '{name}'")
    assert world.paths == ["/kit_till/seed_session", "/kit_till/verify"]


def test_only_functions_are_tools(world: World) -> None:
    declared = [{"type": "web_search", "name": "deposit"}, "junk", TOOLS[1]]
    rollout = world.run(lambda body, n: [call("deposit", '{"amount": 1}')] if n == 1 else message("x"), tools=declared)
    assert rollout.tool_calls[0].output == "Error: there is no tool 'deposit'. Tools: balance"


def test_a_call_of_an_offered_tool_that_is_not_served_is_the_answer(world: World) -> None:
    declared = [*TOOLS, {"type": "function", "name": "response_tool_8", "parameters": {}}]
    rollout = world.run(lambda body, n: [call("deposit", '{"amount": 1}'), call("response_tool_8")], tools=declared)
    assert (rollout.failure, rollout.reward, rollout.steps, rollout.tool_calls) == (None, 1.0, 1, [])
    assert [item["type"] for item in rollout.output] == ["function_call", "function_call"]
    assert world.paths == ["/kit_till/seed_session", "/kit_till/verify"]


def test_the_step_limit_is_scored_not_truncated(world: World) -> None:
    rollout = world.run(lambda body, n: [call("deposit", '{"amount": 1}')], target=4)
    assert (rollout.steps, rollout.reward, rollout.truncated, rollout.failure) == (4, 1.0, False, None)
    assert rollout.output[-1]["type"] == "function_call_output"


@pytest.mark.parametrize(("own", "steps"), [(3, 3), (1, 1), (9, 4), (None, 4)])
def test_the_environment_s_own_step_limit_is_kept_where_it_is_the_smaller(
    world: World, monkeypatch: pytest.MonkeyPatch, own: int | None, steps: int
) -> None:
    monkeypatch.setattr(TillEnvironment, "max_steps", own)
    rollout = world.run(lambda body, n: [call("deposit", '{"amount": 1}')], target=steps)
    assert (rollout.steps, rollout.reward, rollout.truncated, rollout.failure) == (steps, 1.0, False, None)


@pytest.mark.parametrize("turn", [[], [{"type": "reasoning", "summary": []}]])
def test_a_response_with_neither_message_nor_call_ends_the_loop(world: World, turn: list[Item]) -> None:
    rollout = world.run(lambda body, n: turn)
    assert (rollout.steps, rollout.reward, rollout.output) == (1, 1.0, turn)


def test_what_the_engine_cut_ends_the_loop_and_its_calls_are_not_made(world: World) -> None:
    cut = {
        "status": "incomplete",
        "incomplete_details": {"reason": "context"},
        "output": [call("deposit", '{"amount": 1}')],
    }
    rollout = world.run(lambda body, n: cut, target=0)
    assert (rollout.truncated, rollout.truncation_reason, rollout.reward) == (True, "context", 1.0)
    assert rollout.tool_calls == []


def test_a_tool_that_crashes_is_a_failure_and_nothing_is_sampled_again(world: World) -> None:
    """A policy that has found what breaks a tool must not get another try for it."""
    rollout = world.run(lambda body, n: [call("crash")])
    assert rollout.reward is None
    assert rollout.failure is not None
    assert (rollout.failure.kind, rollout.failure.retryable) == ("tool_crash", False)
    assert len(world.model.requests) == 1
    assert world.paths.count("/kit_till/crash") > 1  # the call itself was tried again
    assert "/kit_till/verify" not in world.paths
    assert rollout.segments and rollout.usage["sampled_tokens"] == 2


def test_a_lost_session_is_a_failure_never_a_verdict(world: World) -> None:
    def lose(body: dict[str, Any], n: int) -> Any:
        world.store._sessions.clear()
        return message("done")

    rollout = world.run(lose)
    assert rollout.reward is None
    assert rollout.failure is not None
    assert rollout.failure.kind == "environment_down"
    assert len(world.model.requests) == 1


def test_calls_that_only_read_are_made_at_once(world: World) -> None:
    kit_toys.MEETING[:] = [threading.Barrier(3)]  # each waits for the others
    _, seen = world.outputs(*(call("meet", f'{{"who": "{who}"}}') for who in "abc"))
    assert seen == ["a", "b", "c"]


def test_calls_of_which_one_writes_are_made_in_their_order(world: World) -> None:
    kit_toys.ORDER.clear()
    calls = [
        call("take_turns", '{"who": "a"}'),
        call("weekday", '{"day": "2026-11-25"}'),
        call("take_turns", '{"who": "b"}'),
    ]
    _, seen = world.outputs(*calls)
    assert seen == ["a", "Wednesday", "b"]
    assert kit_toys.ORDER == ["a in", "a out", "b in", "b out"]


def test_a_failure_among_calls_at_once_is_the_rollout_s(world: World) -> None:
    kit_toys.MEETING[:] = [threading.Barrier(1)]
    declared = [*TOOLS, {"type": "function", "name": "weekday"}]
    rollout, seen = world.outputs(call("weekday", '{"day": "?"}'), call("balance"), tools=declared)
    assert seen[0].startswith("Error: tool 'weekday': argument 'day'")
    kit_toys.MEETING[:] = []  # `meet` now raises
    rollout = world.run(lambda body, n: [call("meet", '{"who": "a"}'), call("balance")])
    assert rollout.failure is not None
    assert rollout.failure.kind == "tool_crash"


def test_only_a_failed_model_starts_the_episode_anew_with_a_session_of_its_own(world: World) -> None:
    failed: list[int] = []

    def turns(body: dict[str, Any], n: int) -> Any:
        if len(body["input"]) == 1:
            return [call("deposit", '{"amount": 1}')]
        if len(failed) < 5:  # as often as the client asks
            failed.append(1)
            return 500, {"error": {"message": "boom"}, "retryable": True}
        return message("done")

    rollout = world.run(turns, target=1)
    assert (rollout.reward, rollout.failure) == (1.0, None)  # a deposit of the abandoned attempt is not in this session
    assert world.paths.count("/kit_till/seed_session") == 2
    assert rollout.usage == {"prompt_tokens": 8, "sampled_tokens": 16, "requests": 8, "dropped_tokens": 14}
    assert len(rollout.tool_calls) == 1


def test_the_verdict_is_asked_with_a_whole_response(world: World) -> None:
    """As NeMo-Gym's servers want it: the model's own last response, the whole episode as its output."""
    from openai.types.responses import Response

    from gym_servers import resources

    seen: list[dict[str, Any]] = []
    original = resources.read_object

    async def read(request: Any) -> dict[str, Any]:
        body = await original(request)
        seen.append(body)
        return body

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "read_object", read)
        turn = [{**item, "id": "m", "status": "completed"} for item in message("done")]
        for part in turn[0]["content"]:
            part["annotations"] = []
        world.run(lambda body, n: turn, task_id="t9")
    verified = Response.model_validate(seen[-1]["response"], strict=False)
    assert (verified.id, verified.model, verified.output_text) == ("resp_1", "scripted", "done")
    assert (seen[-1]["task_id"], seen[-1]["target"]) == ("t9", 0)
