"""The agent `conversation`: who speaks when, what is heard, what ends it, and whose fault a failure is; with a toy environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from kit_toys import Model, call, message

from gym_servers.agents.conversation import heard
from gym_servers.agents.server import AgentSettings, build_agent
from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.client import Client
from gym_servers.environment import ConversationEnvironment, ConversationSettings, Row, Said, UserTurn
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import Failure, FailureError, Item, Rollout, Verdict
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.tools import Tool


class Desk:
    """The state: what was done, and how often the user spoke."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.spoken = 0


def press(state: Desk, button: str) -> str:
    """Press a button."""
    state.done.append(button)
    return "pressed"


def hang_up(state: Desk) -> str:
    """End it."""
    state.done.append("hung up")
    return "bye"


Speaker = Callable[[Desk, list[Said]], UserTurn]


def until_bye(state: Desk, said: list[Said]) -> UserTurn:
    state.spoken += 1
    if said and "bye" in said[-1].content:
        return UserTurn(message="goodbye", done=True)
    return UserTurn(message=f"words {state.spoken}")


class Talk(ConversationEnvironment):
    name = "talk"
    ending_tools: ClassVar[frozenset[str]] = frozenset({"hang_up"})

    def __init__(self, speaker: Speaker, max_turns: int = 4) -> None:
        super().__init__(ConversationSettings(max_turns=max_turns))
        self.speaker, self.heard = speaker, list[list[Said]]()

    def tools(self) -> Sequence[Tool]:
        return [Tool.of(press), Tool.of(hang_up)]

    def seed(self, row: Row) -> Desk:
        return Desk()

    async def user_turn(self, state: Any, said: list[Said]) -> UserTurn:
        self.heard.append(said)
        return self.speaker(state, said)

    def quick(self, row: Row, output: list[Item]) -> Verdict:
        users = [item["content"] for item in output if item.get("role") == "user"]
        return Verdict(reward=1.0, explanation=" / ".join(users))

    def verify_state(self, row: Row, output: list[Item], state: Any) -> Verdict:
        raise AssertionError("quick decides")


TOOLS = [tool.declaration() for tool in Talk(until_bye).tools()]


def converse(
    environment: Talk, turns: Callable[[dict[str, Any], int], Any], steps: int = 4, **params: Any
) -> tuple[Rollout, Model]:
    """One rollout, without sockets."""
    model = Model()
    model.turns = turns
    given = {"input": [{"role": "system", "content": "rules"}], "tools": TOOLS, **params}

    async def collect() -> Rollout:
        async with InProcessHost() as host:
            url = await host.start("talk", build_resources([environment], workers=1))
            base = await host.start("model", model.app)
            limits = LoopLimits(steps=steps)
            collector = Collector({"talk": f"{url}/talk"}, f"{base}/v1", secret="s", limits=limits, transport=host)
            request = RolloutRequest({"responses_create_params": given}, "t", "talk", "g")
            (rollout,) = [rollout async for rollout in collector.collect([request])]
            return rollout

    return asyncio.run(collect()), model


def scripted(*turns: Any) -> Callable[[dict[str, Any], int], Any]:
    return lambda body, n: turns[min(n, len(turns)) - 1]


def test_the_user_opens_answers_and_ends() -> None:
    environment = Talk(until_bye)
    rollout, model = converse(
        environment, scripted([call("press", '{"button": "a"}')], message("hello"), message("bye"))
    )
    assert (rollout.failure, rollout.reward, rollout.steps) == (None, 1.0, 3)
    assert rollout.explanation == "words 1 / words 2 / goodbye"
    assert [(item["type"], item.get("role")) for item in rollout.output] == [
        ("message", "user"),
        ("function_call", None),
        ("function_call_output", None),
        ("message", "assistant"),
        ("message", "user"),
        ("message", "assistant"),
        ("message", "user"),
    ]
    assert [len(request["input"]) for request in model.requests] == [2, 4, 6]  # what was said before is always sent
    assert model.requests[1]["input"][:2] == model.requests[0]["input"]
    assert [one.name for one in rollout.tool_calls] == ["press"]
    assert rollout.timings["user"] >= 0


def test_the_user_hears_what_is_said_and_nothing_else() -> None:
    environment = Talk(until_bye)
    thinking = [{"type": "reasoning", "summary": []}, *message("<think>secret</think>hello")]
    rollout, _ = converse(environment, scripted([*thinking, call("press", '{"button": "a"}')], message("bye")))
    assert environment.heard == [
        [],
        [
            Said(role="user", content="words 1"),
            Said(role="assistant", content="hello"),
            Said(role="assistant", content="bye"),
        ],
    ]
    assert rollout.failure is None
    example = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    environment = Talk(until_bye)
    converse(environment, scripted(message("bye")), input=example)
    assert environment.heard[0] == [] and len(environment.heard[1]) == 2  # worked examples are not of this conversation


def test_words_in_the_row_open_the_conversation() -> None:
    for given in (
        "help",
        [{"role": "user", "content": "help"}],
        [{"role": "user", "content": [{"type": "input_text", "text": "help"}]}],
    ):
        environment = Talk(until_bye)
        rollout, _ = converse(environment, scripted(message("bye")), input=given)
        assert environment.heard == [[Said(role="user", content="help"), Said(role="assistant", content="bye")]]
        assert rollout.explanation == "goodbye"


def test_the_user_speaks_at_most_max_turns_times() -> None:
    rollout, model = converse(Talk(until_bye, max_turns=3), scripted(message("go on")))
    assert (rollout.explanation, len(model.requests)) == ("words 1 / words 2 / words 3", 3)
    assert (rollout.reward, rollout.truncated) == (1.0, False)
    assert rollout.output[-1]["role"] == "assistant"
    rollout, model = converse(Talk(until_bye, max_turns=3), scripted(message("go on")), input="help")
    assert (rollout.explanation, len(model.requests)) == ("words 1 / words 2", 3)  # the row's words are the first


@pytest.mark.parametrize(
    "turn", [[], message(""), message(" \n"), message("<think>hm</think>"), [{"type": "reasoning", "summary": []}]]
)
def test_a_turn_without_words_ends_it(turn: list[Item]) -> None:
    rollout, model = converse(Talk(until_bye), scripted(turn))
    assert (rollout.reward, rollout.explanation, len(model.requests)) == (1.0, "words 1", 1)


def test_an_ending_tool_ends_it_and_one_that_was_refused_does_not() -> None:
    environment = Talk(until_bye)
    rollout, model = converse(
        environment, scripted([call("hang_up"), call("press", '{"button": "b"}', "d")], message("never"))
    )
    assert (len(model.requests), len(rollout.tool_calls), rollout.explanation) == (1, 2, "words 1")
    rollout, model = converse(Talk(until_bye), scripted([call("hang_up", '{"x": 1}')], message("bye")))
    assert (len(model.requests), rollout.explanation) == (2, "words 1 / goodbye")


def test_the_step_limit_counts_between_two_words_of_the_user() -> None:
    press_it = [call("press", '{"button": "a"}')]
    rollout, model = converse(Talk(until_bye), scripted(press_it, message("x"), press_it, message("bye")), steps=2)
    assert (rollout.steps, rollout.explanation) == (4, "words 1 / words 2 / goodbye")
    rollout, model = converse(Talk(until_bye), scripted(press_it), steps=2)
    assert (len(model.requests), rollout.explanation, rollout.reward) == (2, "words 1", 1.0)


def test_what_the_engine_cut_is_not_heard() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": message("half a")}
    environment = Talk(until_bye)
    rollout, _ = converse(environment, scripted(cut))
    assert (rollout.truncated, rollout.truncation_reason, len(environment.heard)) == (True, "max_tokens", 1)
    assert rollout.reward == 1.0


def test_a_user_that_fails_fails_the_rollout_and_nothing_is_sampled_again() -> None:
    failing: list[int] = []

    def speaker(state: Desk, said: list[Said]) -> UserTurn:
        if said:
            failing.append(1)
            raise FailureError(Failure(kind="simulator_failed", message="no words"))
        return until_bye(state, said)

    rollout, model = converse(Talk(speaker), scripted(message("hello")))
    assert rollout.failure is not None and rollout.reward is None
    assert (rollout.failure.kind, rollout.failure.retryable) == ("simulator_failed", False)
    assert len(failing) > 1 and len(model.requests) == 1
    assert rollout.segments


def test_a_user_that_crashes_is_no_fault_of_the_policy() -> None:
    def speaker(state: Desk, said: list[Said]) -> UserTurn:
        raise KeyError("mood")

    rollout, _ = converse(Talk(speaker), scripted(message("hello")))
    assert rollout.failure is not None
    assert rollout.failure.kind == "simulator_failed" and "KeyError" in rollout.failure.message


def test_a_user_without_words_that_does_not_go_is_a_failure() -> None:
    rollout, _ = converse(Talk(lambda state, said: UserTurn(message=" ")), scripted(message("hello")))
    assert rollout.failure is not None and rollout.failure.kind == "simulator_failed"
    rollout, _ = converse(Talk(lambda state, said: UserTurn(message="", done=True)), scripted(message("hello")))
    assert (rollout.failure, rollout.reward, rollout.output) == (None, 1.0, [])


def test_a_repeated_request_gets_the_same_words() -> None:
    """An answer that was lost on its way does not make the user speak twice."""
    environment = Talk(until_bye)

    async def run() -> list[dict[str, Any]]:
        async with InProcessHost() as host, Client(transport=host, retries=0) as client:
            url = f"{await host.start('talk', build_resources([environment], workers=1))}/talk"
            seeded = await client.post(f"{url}/seed_session", {}, seconds=30)
            about = seeded.json()
            assert (about["agent"], about["max_turns"], about["ending_tools"]) == ("conversation", 4, ["hang_up"])

            async def ask(key: str, body: dict[str, Any]) -> dict[str, Any]:
                reply = await client.post(f"{url}/user_turn", body, seconds=30, cookies=seeded.cookies, key=key)
                return reply.json()

            said = {"messages": [{"role": "assistant", "content": "hi"}]}
            answers = [await ask("a", said), await ask("a", said), await ask("b", said)]
            for bad in ({}, {"messages": 7}, {"messages": [7]}, {"messages": [{"role": "system", "content": ""}]}):
                with pytest.raises(Exception, match="messages"):
                    await ask("c", bad)
            with pytest.raises(FailureError, match="needs a session"):
                await client.post(f"{url}/user_turn", said, seconds=30)
            return answers

    answers = asyncio.run(run())
    assert [one["message"] for one in answers] == ["words 1", "words 1", "words 2"]


def test_the_agent_server_converses_too_and_an_agent_that_there_is_not_is_named() -> None:
    environment = Talk(until_bye)
    model = Model()
    model.turns = scripted(message("hello"), message("bye"))

    async def run() -> list[dict[str, Any]]:
        async with InProcessHost() as host, Client(transport=host, retries=0) as client:
            url = await host.start("talk", build_resources([environment], workers=1))
            base = await host.start("model", model.app)
            settings = AgentSettings({"talk": f"{url}/talk"}, f"{base}/v1")
            agent = await host.start("agent", build_agent(settings, transport=host))
            body = {"responses_create_params": {"input": []}}
            first = (await client.post(f"{agent}/run", body, seconds=60)).json()
            environment.agent = "dance"  # type: ignore[misc]
            other = await host.start("other", build_resources([environment], workers=1))
            body = {**body, "rollout": {"environment": "talk", "environment_url": f"{other}/talk"}}
            return [first, (await client.post(f"{agent}/run", body, seconds=60)).json()]

    first, second = asyncio.run(run())
    assert (first["reward"], first["explanation"]) == (1.0, "words 1 / words 2 / goodbye")
    assert second["reward"] is None
    assert "'dance'; there are: tool_loop, conversation" in second["failure"]["message"]


def test_heard_reads_every_form_of_content() -> None:
    parts = [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}, 7]
    assert heard([{"role": "assistant", "content": parts}, {"role": "user", "content": "c"}, call("x")]) == [
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "c"},
    ]
