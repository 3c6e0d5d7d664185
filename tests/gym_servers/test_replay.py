"""`omnigym replay`: recorded rollouts played again, in environments with and without a state, and records that lie."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit_toys import Model, Shortest, TillEnvironment, call, installed, message
from typer.testing import CliRunner

from gym_servers import cli
from gym_servers.commands import replay as replay_command
from gym_servers.environment import Environment
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import OmnigymError, Rollout, RowError
from gym_servers.registry import load_environment
from gym_servers.replay import paired, replay, state_changes
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

TOOLS = [tool.declaration() for tool in TillEnvironment().tools()]
Turns = Callable[[dict[str, Any], int], Any]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


def collected(environment: Environment, row: dict[str, Any], turns: Turns, n: int = 1) -> list[Rollout]:
    """Rollouts of one task, as the collector records them."""
    model = Model()
    model.turns = turns

    async def run() -> list[Rollout]:
        async with InProcessHost() as host:
            url = await host.start("environment", build_resources([environment], workers=1))
            urls = {environment.name: f"{url}/{environment.name}"}
            collector = Collector(urls, f"{await host.start('model', model.app)}/v1", secret="s", transport=host)
            requests = [RolloutRequest(row, "t", environment.name, "g", attempt) for attempt in range(n)]
            return [rollout async for rollout in collector.collect(requests)]

    return asyncio.run(run())


def row(**fields: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": "?", "tools": TOOLS}, "target": 5, "start": 2, **fields}


@pytest.fixture(scope="module")
def till() -> Rollout:
    """Two turns of calls, mistakes among them, and the end."""
    first = [call("deposit", '{"amount": 3, "note": "x"}', "a"), call("nothing", "{}", "b"), call("deposit", "{", "b")]
    turns = {1: first, 2: [call("balance", "{}", "a"), call("deposit", '{"amount": 13}', "a")]}
    (rollout,) = collected(TillEnvironment(), row(), lambda body, n: turns.get(n) or message("done"))
    assert (rollout.reward, len(rollout.tool_calls)) == (1.0, 5)
    return rollout


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_command, "load_environment", lambda name, settings: TillEnvironment())


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.build(), ["replay", *arguments])


def test_a_rollout_is_played_to_the_same_outputs_state_and_verdict(till: Rollout) -> None:
    again = asyncio.run(replay(TillEnvironment(), till))
    assert again.differences(till) == []
    assert [one.output for one in again.calls] == [one.output for one in till.tool_calls]
    assert [one.name for one in again.calls] == ["deposit", "nothing", "deposit", "balance", "deposit"]
    assert again.changes == ["/amount: 2 -> 5", '/notes/0: (absent) -> "x"']
    assert (again.rollout.reward, again.rollout.explanation) == (1.0, "the till holds 5, asked was 5")


@pytest.mark.parametrize("packed", [False, True])
def test_the_command_shows_it_and_exits_0(till: Rollout, at_home: None, tmp_path: Path, packed: bool) -> None:
    """From the file of `omnigym rollout`, and from a run folder's, where a segment is without its arrays."""
    path = tmp_path / ("step_000001.jsonl.gz" if packed else "rollouts.jsonl")
    record = till.model_dump(mode="json")
    if packed:
        record["segments"] = [{"n": 3, "weight_version": 0, "break_reason": ""}]
    lines = [json.dumps({"not": "a rollout"}).encode(), json.dumps(record).encode()]
    path.write_bytes(b"".join(gzip.compress(line + b"\n") if packed else line + b"\n" for line in lines))
    done = run(str(path), "--row", "1")
    assert done.exit_code == 0, done.output
    for said in (
        "task t of 'kit_till', attempt 0",
        'call 0: deposit({"amount": 3, "note": "x"})',
        "recorded: Error: there is no tool 'nothing'",
        "/amount: 2 -> 5",
        "verdict recorded: 1.0 the till holds 5, asked was 5",
        "verdict now:      1.0 the till holds 5, asked was 5",
        "the replay is as recorded",
    ):
        assert said in done.output
    assert "!" not in done.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["output"][3].update(output='{"amount":6}'), "! differs: output of call 0, deposit"),
        (lambda r: r["output"][0].update(arguments='{"amount": 4}'), "! differs: reward: recorded 1.0, now 0.0"),
        (lambda r: r.update(reward=0.0), "! differs: reward: recorded 0.0, now 1.0"),
        (lambda r: r.update(explanation="because"), "! differs: the verdict's explanation"),
        (lambda r: r["task"].update(start=3), "! differs: output of call 3, balance"),
    ],
)
def test_a_record_that_lies_is_marked_and_exits_1(
    till: Rollout, at_home: None, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    record = json.loads(till.model_dump_json())
    change(record)
    (tmp_path / "r.jsonl").write_text(json.dumps(record) + "\n")
    done = run(str(tmp_path / "r.jsonl"))
    assert done.exit_code == 1
    assert said in done.output and "as recorded" not in done.output


def test_calls_of_a_turn_that_was_cut_are_not_made(till: Rollout) -> None:
    cut = {"status": "incomplete", "output": [call("deposit", '{"amount": 1}')]}
    first = [call("deposit", '{"amount": 3}')]
    (rollout,) = collected(TillEnvironment(), row(), lambda body, n: first if n == 1 else cut)
    again = asyncio.run(replay(TillEnvironment(), rollout))
    assert (len(again.calls), again.unmade, again.rollout.reward) == (1, 1, 1.0)
    assert again.differences(rollout) == []


def test_a_tool_that_crashes_is_a_difference_and_not_the_end(till: Rollout) -> None:
    record = till.model_copy(deep=True)
    record.output[0].update(name="crash", arguments="{}")
    again = asyncio.run(replay(TillEnvironment(), record))
    assert again.calls[0].output.startswith("(failure: tool_crash: ") and "KeyError: 'drawer'" in again.calls[0].output
    assert "output of call 0, crash" in again.differences(record)
    assert len(again.calls) == 5


def test_an_environment_without_a_state(tmp_path: Path) -> None:
    task = {"responses_create_params": {"input": "2 + 2"}, "expected_answer": "4"}
    environment = load_environment("competition_math")
    (rollout,) = collected(environment, task, lambda body, n: message("\\boxed{4}"))
    (tmp_path / "r.jsonl").write_text(rollout.model_dump_json() + "\n")
    done = run(str(tmp_path / "r.jsonl"))
    assert done.exit_code == 0, done.output
    assert "state at the end: as at the start" in done.output and "verdict now:      1.0" in done.output


def test_a_rollout_graded_in_its_group_gets_no_verdict_alone() -> None:
    task = {"responses_create_params": {"input": "?"}, "answer": "4"}
    rollouts = collected(Shortest(), task, lambda body, n: message("4"), n=2)
    again = asyncio.run(replay(Shortest(), rollouts[0]))
    assert again.graded_in_group and again.rollout.reward is None
    assert again.differences(rollouts[0]) == []
    assert "none: it was graded with its group" in "\n".join(replay_command.report(rollouts[0], again))


def test_a_verdict_that_fails_now_is_a_difference_and_a_task_that_cannot_be_seeded_an_error(till: Rollout) -> None:
    record = till.model_copy(update={"task": {"responses_create_params": {}}, "output": message("4")})
    again = asyncio.run(replay(load_environment("competition_math"), record))
    (difference,) = again.differences(record)
    assert (
        difference.startswith("a failure: bad_row: environment 'competition_math'") and "expected_answer" in difference
    )
    with pytest.raises(RowError, match="environment 'kit_till' task '\\?': field 'target'"):
        asyncio.run(replay(TillEnvironment(), record))


@pytest.mark.parametrize(
    ("text", "number", "said"),
    [
        (None, 0, "no file"),
        ("", 0, "has no row 0: it has 0, counted from 0"),
        ("{}\n", 4, "has no row 4: it has 1, counted from 0"),
        ("{cut\n", 0, "row 0: not valid JSON"),
        ("{}\n", 0, "row 0: not a rollout: field 'task_id': Field required"),
        ('{"task_id": "t", "environment": "e"}\n', 0, "has no field 'task'"),
        ('{"task_id": "t", "environment": "e", "task": {"a": 1}}\n', 0, "unknown environment 'e'"),
        ("\x1f\x8bjunk", 0, "cannot be read|row 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str | None, number: int, said: str) -> None:
    path = tmp_path / "r.jsonl"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    done = run(str(path), "--row", str(number))
    assert isinstance(done.exception, OmnigymError)
    with pytest.raises(OmnigymError, match=said):
        raise done.exception


def test_answers_belong_to_the_call_with_their_id_else_to_the_first_open_one() -> None:
    a, b, again = call("a", call_id="1"), call("b", call_id="2"), call("c", call_id="1")
    output = [
        {"type": "reasoning"},
        *(a, b, {"type": "function_call_output", "call_id": "2", "output": "of b"}),
        *({"type": "function_call_output", "call_id": "9", "output": "of a"}, again, *message("x")),
    ]
    pairs, unmade = paired(output)
    assert [(one["name"], answer) for one, answer in pairs] == [("b", "of b"), ("a", "of a")]
    assert unmade == 1


def test_states_are_compared_value_by_value() -> None:
    class Slots:
        __slots__ = ("a", "b")

        def __init__(self, a: Any, b: Any) -> None:
            self.a, self.b = a, b

    assert state_changes(None, None) == []
    assert state_changes({"a": [1, {2, 3}]}, {"a": [1, {2, 3}]}) == []
    assert state_changes({"a": [1, 2], "c": {}}, {"a": [1, 3, 4], "b": None}) == [
        "/a/1: 2 -> 3",
        "/c: {} -> (absent)",
        "/a/2: (absent) -> 4",
        "/b: (absent) -> null",
    ]
    assert state_changes(Slots(1, Slots(2, 3)), Slots(1, Slots(2, 4))) == ["/b/b: 3 -> 4"]
