"""Tools: their schema from the signature, what is refused, what crashes, and that state is never half changed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import httpx
import kit_toys
import pytest
from kit_toys import Shortest, TillEnvironment, installed, serving
from pydantic import BaseModel, Field

from gym_servers.client import Client
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import FailureError, OmnigymError, RowError
from gym_servers.resources import build_resources
from gym_servers.tools import RESERVED, Tool, ToolRefused, check_tools


class Attachment(BaseModel):
    title: str
    bytes: int = 0


def send(
    state: Any,
    recipient: str,
    title: Annotated[str, Field(description="Shown first", max_length=80)],
    priority: Literal["low", "high"] = "low",
    attachments: list[Attachment] = [],  # noqa: B006
) -> str:
    """Send an email.

    It cannot be taken back.
    """
    return f"{recipient}: {title} {priority} {len(attachments)}"


def test_the_declaration_is_made_from_the_signature() -> None:
    assert Tool.of(send).declaration() == {
        "type": "function",
        "name": "send",
        "description": "Send an email.\n\nIt cannot be taken back.",
        "parameters": {
            "type": "object",
            "properties": {
                "recipient": {"type": "string"},
                "title": {"type": "string", "description": "Shown first", "maxLength": 80},
                "priority": {"type": "string", "enum": ["low", "high"], "default": "low"},
                "attachments": {"type": "array", "items": {"$ref": "#/$defs/Attachment"}, "default": []},
            },
            "required": ["recipient", "title"],
            "additionalProperties": False,
            "$defs": {
                "Attachment": {
                    "type": "object",
                    "properties": {"title": {"type": "string"}, "bytes": {"type": "integer", "default": 0}},
                    "required": ["title"],
                }
            },
        },
        "strict": False,
    }

    def nothing() -> str:
        return ""

    assert Tool.of(nothing, name="no-op").declaration()["parameters"] == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }


def test_arguments_arrive_as_their_types() -> None:
    tool = Tool.of(send)
    arguments = tool.parse({"recipient": "a", "title": "b", "attachments": [{"title": "t", "bytes": "3"}]})
    assert arguments["attachments"] == [Attachment(title="t", bytes=3)]
    assert asyncio.run(tool.call(None, arguments)) == "a: b low 1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"title": "b"}, r"tool 'send': argument 'recipient': Field required\. Arguments: recipient, title, priority"),
        ({"recipient": "a", "title": "b", "to": "c"}, "argument 'to': Extra inputs are not permitted"),
        ({"recipient": 1, "title": "b"}, "argument 'recipient': Input should be a valid string"),
        ({"recipient": "a", "title": "b", "priority": "!"}, "argument 'priority': Input should be 'low' or 'high'"),
        ({"recipient": "a", "title": "b", "attachments": [{}]}, r"argument 'attachments\.0\.title': Field required"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolRefused, match=said):
        Tool.of(send).parse(arguments)


def untyped(a) -> str:  # type: ignore[no-untyped-def]
    return str(a)


def starred(*rest: int) -> str:
    return str(rest)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_path_of_the_server_is_no_tool(name: str) -> None:
    with pytest.raises(OmnigymError, match=f"tool '{name}': the server has a path of that name"):
        Tool.of(send, name=name)


@pytest.mark.parametrize("name", ["a/b", "../verify", "é", "a.b", "?", "x" * 65])
def test_a_name_that_is_no_path_segment_is_no_tool(name: str) -> None:
    with pytest.raises(OmnigymError):
        Tool.of(lambda: "", name=name)


@pytest.mark.parametrize(("function", "said"), [(untyped, "'a' has no type"), (starred, "'rest' must be a named one")])
def test_a_signature_that_makes_no_schema_is_refused(function: Any, said: str) -> None:
    with pytest.raises(OmnigymError, match=said):
        Tool.of(function)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(OmnigymError, match="environment 'e': two tools are called 'send'"):
        check_tools("e", [Tool.of(send), Tool.of(send)])


def test_a_tool_with_state_needs_an_environment_with_one() -> None:
    class Mistaken(Shortest):
        def tools(self) -> list[Tool]:
            return [Tool.of(send)]

    with pytest.raises(OmnigymError, match="tool 'send' takes a state, and there is none"):
        build_resources([Mistaken()])


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        installed(tmp_path_factory.mktemp("toys")),
        serving(build_resources([TillEnvironment(), Shortest()], workers=1)) as url,
    ):
        yield url


@pytest.fixture
def till(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/kit_till", timeout=60, trust_env=False) as client:
        client.post("/seed_session", json={"target": 0})
        yield client


def amount(till: httpx.Client) -> Any:
    return till.post("/balance", json={}).json()["amount"]


def test_results_are_text_or_json(till: httpx.Client) -> None:
    text = till.post("/weekday", json={"day": "2026-11-25"})
    assert (text.text, text.headers["content-type"]) == ("Wednesday", "text/plain; charset=utf-8")
    assert till.post("/deposit", json={"amount": "30"}).json() == {"amount": 30}
    assert till.post("/balance", json={}).json() == {"amount": 30, "notes": ["", "read"]}


def test_a_read_only_tool_changes_nothing(till: httpx.Client) -> None:
    assert [till.post("/balance", json={}).json()["notes"] for _ in range(2)] == [["read"], ["read"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"amount": 0}', "argument 'amount': Input should be greater than 0"),
        (b'{"amount": 13}', "13 brings bad luck"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"amount": 1, "note": "' + b"x" * 2000 + b'"}', "longer than 2000 bytes"),
    ],
)
def test_what_the_model_did_wrong_is_422_and_changes_nothing(till: httpx.Client, content: bytes, said: str) -> None:
    reply = till.post("/deposit", content=content)
    assert reply.status_code == 422
    assert said in reply.json()["error"]["message"]
    assert amount(till) == 0


def test_a_tool_that_raises_is_a_failure_and_changes_nothing(till: httpx.Client) -> None:
    till.post("/deposit", json={"amount": 5})
    reply = till.post("/crash", json={})
    assert reply.status_code == 503
    assert reply.json()["error"]["type"] == "tool_crash"
    assert reply.json()["retryable"] is True
    assert "environment 'kit_till' tool 'crash': KeyError: 'drawer'" in reply.json()["error"]["message"]
    assert amount(till) == 5


def test_a_call_that_comes_twice_happens_once(till: httpx.Client) -> None:
    for _ in range(3):
        reply = till.post("/deposit", json={"amount": 5}, headers={"Idempotency-Key": "first"})
        assert reply.json() == {"amount": 5}
    assert till.post("/deposit", json={"amount": 5}, headers={"Idempotency-Key": "second"}).json() == {"amount": 10}
    assert till.post("/deposit", json={"amount": 5}).json() == {"amount": 15}


def test_calls_at_once_are_all_counted(till: httpx.Client) -> None:
    def put(k: int) -> Any:
        return till.post("/deposit", json={"amount": 1}).json()["amount"]

    with ThreadPoolExecutor(10) as threads:
        seen = sorted(threads.map(put, range(40)))
    assert seen == list(range(1, 41))
    assert amount(till) == 40


def test_the_tools_are_listed_as_a_request_takes_them(till: httpx.Client, url: str) -> None:
    listed = till.get("/tools").json()
    assert [tool["name"] for tool in listed] == ["deposit", "balance", "crash", "weekday", "meet", "take_turns"]
    assert listed[0] == Tool.of(kit_toys.deposit).declaration()
    assert listed[3]["parameters"]["properties"]["day"] == {"type": "string", "format": "date"}
    from openai.types.responses import FunctionToolParam
    from pydantic import TypeAdapter

    assert TypeAdapter(list[FunctionToolParam]).validate_python(listed)
    about = httpx.get(f"{url}/environments", trust_env=False).json()
    assert [(one["name"], one["reward"]) for one in about] == [("kit_till", "single"), ("kit_shortest", "group")]
    assert about[0]["read_only_tools"] == ["balance", "weekday", "meet"]


def test_an_unknown_tool_is_404_and_names_those_that_are_there(till: httpx.Client, url: str) -> None:
    reply = till.post("/withdraw", json={})
    assert reply.status_code == 404
    assert "has no tool 'withdraw'; it has: deposit, balance" in reply.json()["error"]["message"]
    assert httpx.post(f"{url}/kit_shortest/deposit", json={}, trust_env=False).status_code == 404


def test_read_only_calls_may_meet(till: httpx.Client) -> None:
    kit_toys.MEETING[:] = [threading.Barrier(2)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda who: till.post("/meet", json={"who": who}).text, "ab")) == ["a", "b"]


# -- without a socket --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def inprocess() -> AsyncIterator[tuple[Client, str, InProcessHost]]:
    async with InProcessHost() as host, Client(transport=host, retries=1) as client:
        yield client, await host.start("till", build_resources([TillEnvironment()], workers=1)), host


def test_the_client_talks_to_a_server_in_its_process() -> None:
    async def run() -> None:
        async with inprocess() as (client, url, host):
            seeded = await client.post(f"{url}/kit_till/seed_session", {"target": 1}, seconds=10)
            assert seeded.cookies["omnigym_session"] == seeded.json()["session_id"]

            async def ask(tool: str, **arguments: Any) -> Any:
                return (await client.post(f"{url}/{tool}", arguments, seconds=10, cookies=seeded.cookies)).json()

            assert await ask("deposit", amount=3) == {"amount": 3}
            with pytest.raises(RowError, match="bad luck"):
                await ask("deposit", amount=13)
            with pytest.raises(FailureError, match="KeyError: 'drawer'") as crashed:
                await ask("crash")
            assert crashed.value.failure.kind == "tool_crash"
            with pytest.raises(FailureError, match="has no tool 'nothing'"):
                await ask("nothing")
            with pytest.raises(FailureError, match="no server at inprocess://nobody/x; there are: till"):
                await client.post("inprocess://nobody/x", {}, seconds=10)
            with pytest.raises(OmnigymError, match="there is a server 'till' already"):
                await host.start("till", build_resources([TillEnvironment()]))

    asyncio.run(run())


def test_slow_calls_at_once_do_not_undo_each_other() -> None:
    async def run() -> None:
        async with inprocess() as (client, url, _):
            seeded = await client.post(f"{url}/seed_session", {"target": 1}, seconds=10)
            kit_toys.ORDER.clear()

            async def turn(who: str) -> str:
                reply = await client.post(f"{url}/take_turns", {"who": who}, seconds=60, cookies=seeded.cookies)
                return reply.body.decode()

            assert await asyncio.gather(*map(turn, "abcd")) == list("abcd")
            assert len(kit_toys.ORDER) > 8  # some found that another was faster, and began again on its state

    asyncio.run(run())


def test_a_server_that_fails_at_its_start_is_an_error() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    async def run() -> None:
        async with InProcessHost() as host:
            with pytest.raises(OmnigymError, match="failed at its startup"):
                await host.start("broken", broken)

    asyncio.run(run())
