"""Group rewards: the shortest correct answer wins. The server's verdicts, and the collector that waits for a group."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit_toys import Model, Shortest, ShortestRow, TillEnvironment, installed, message, serving
from starlette.responses import JSONResponse

from gym_servers.base import ServerSettings
from gym_servers.commands.rollout import done_so_far, drop_failures, remaining, rollout_line
from gym_servers.environment import GroupRollout
from gym_servers.protocol import Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


@pytest.fixture(scope="module")
def url(toys: None) -> Iterator[str]:
    with serving(build_resources([Shortest(), TillEnvironment()], workers=1)) as url:
        yield url


def ask(url: str, texts: list[str], answer: str = "4", key: str | None = None, **fields: Any) -> httpx.Response:
    rollouts = [{"response": {"output": message(text)}, "attempt": n} for n, text in enumerate(texts)]
    body = {"task": {"responses_create_params": {"input": "?"}, "answer": answer}, "rollouts": rollouts, **fields}
    headers = {} if key is None else {"Idempotency-Key": key}
    return httpx.post(f"{url}/kit_shortest/verify_group", json=body, headers=headers, timeout=60, trust_env=False)


def test_the_shortest_correct_answer_wins(url: str) -> None:
    reply = ask(url, ["it is 4", "5", "=4", "4"])
    assert reply.json()["rewards"] == [0.0, 0.0, 0.0, 1.0]
    assert [verdict["explanation"] for verdict in reply.json()["verdicts"]] == [
        "longer",
        "wrong",
        "longer",
        "the shortest correct one",
    ]
    assert ask(url, ["5", "6"]).json()["rewards"] == [0.0, 0.0]
    assert ask(url, ["4"]).json()["rewards"] == [1.0]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["4", "44", "x4", "5", ""]), min_size=1, max_size=6))
def test_one_wins_where_any_is_right_and_the_order_decides_only_ties(texts: list[str]) -> None:
    row = ShortestRow(answer="4")
    verdicts = Shortest().verify_group(row, [GroupRollout(output=message(text)) for text in texts])
    won = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.reward == 1.0]
    right = [len(text) for text in texts if "4" in text]
    assert [len(text) for text in won] == ([min(right)] if right else [])


def test_verify_says_which_path_to_take(url: str) -> None:
    body = {"answer": "4", "response": {"output": message("4")}}
    reply = httpx.post(f"{url}/kit_shortest/verify", json=body, timeout=60, trust_env=False)
    assert reply.status_code == 422
    assert "POST /kit_shortest/verify_group {task, rollouts" in reply.json()["error"]["message"]


def test_only_environments_that_reward_groups_have_the_path(url: str) -> None:
    assert httpx.post(f"{url}/kit_till/verify_group", json={}, trust_env=False).status_code == 404


def test_a_repeated_request_gets_the_stored_verdict(url: str) -> None:
    first = ask(url, ["4", "=4"], key="k")
    assert ask(url, ["=4", "4"], key="k").json() == first.json()
    assert ask(url, ["=4", "4"], key="other").json()["rewards"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": None}, "field 'task' must be the task's row"),
        ({"rollouts": []}, "field 'rollouts' must be a list of objects with 'response', at least one"),
        ({"rollouts": [{"response": {"output": "4"}}]}, "field 'response.output' must be a list"),
        ({"rollouts": [{"response": {"output": []}, "attempt": "x"}]}, "field 'rollouts.0.attempt'"),
        ({"task": {}}, "field 'answer': Field required"),
    ],
)
def test_bad_bodies_are_named(url: str, fields: dict[str, Any], said: str) -> None:
    reply = ask(url, ["4"], **fields)
    assert reply.status_code == 422
    assert said in reply.json()["error"]["message"]


def test_what_breaks_the_grader_scores_zero_and_the_others_are_graded_without_it(url: str) -> None:
    reply = ask(url, ["=4", "burn", "it is 4"]).json()
    assert reply["rewards"] == [1.0, 0.0, 0.0]
    assert reply["verdicts"][1]["parts"] == {"unverifiable_output": True}
    assert "parts" in reply["verdicts"][0] and "unverifiable_output" not in reply["verdicts"][0]["parts"]


def test_a_whole_group_that_breaks_the_grader_scores_zero(url: str) -> None:
    assert ask(url, ["burn", "burn"]).json()["rewards"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("texts", "answer", "said"),
    [
        (["burn"], "burn", "the gold answer breaks the verifier too"),
        (["burn", "burn"], "no gold", "every rollout of the group breaks the verifier"),
        (["4", "clash"], "4", "the group breaks the verifier, no rollout alone does"),
        (["4", "one less"], "4", "1 verdicts for 2 rollouts"),
        (["too much"], "4", r"reward 1.5 outside \[0.0, 1.0\]"),
    ],
)
def test_what_nobody_s_answer_did_is_a_failure_never_a_reward(
    url: str, texts: list[str], answer: str, said: str
) -> None:
    reply = ask(url, texts, answer)
    assert reply.status_code == 503
    assert "rewards" not in reply.json()
    assert said.replace("\\", "") in reply.json()["error"]["message"]
    assert reply.json()["error"]["type"] == "verifier_crash"


# -- the collector -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Iterator[tuple[Model, str]]:
    made = Model()
    with serving(made.app) as url:
        yield made, url


def collector(url: str, model_url: str, **fields: Any) -> Collector:
    urls = {name: f"{url}/{name}" for name in ("kit_shortest", "kit_till")}
    return Collector(urls, f"{model_url}/v1", secret="s", **{"concurrency": 8, "retries": 0, **fields})


def wanted(groups: int, attempts: int, answer: str = "4") -> Iterator[RolloutRequest]:
    """The prompt is the answer that the scripted model gives: attempt n answers with n letters before the 4."""
    for g, n in itertools.product(range(groups), range(attempts)):
        row = {"responses_create_params": {"input": f"{g}"}, "answer": answer}
        yield RolloutRequest(row, f"t{g}", "kit_shortest", f"g{g}", n, seed=n)


def gather(made: Collector, requests: Any) -> list[Rollout]:
    async def run() -> list[Rollout]:
        return [rollout async for rollout in made.collect(requests)]

    return asyncio.run(run())


def by_seed(texts: Callable[[int], str]) -> Callable[[dict[str, Any], int], Any]:
    return lambda body, n: message(texts(body["seed"]))


def test_each_group_has_one_winner_whatever_the_order_of_arrival(url: str, model: tuple[Model, str]) -> None:
    server, model_url = model
    server.turns = by_seed(lambda seed: "x" * (3 - seed) + "4")
    delays = [0.0, 0.05, 0.02, 0.03]
    server.seconds = lambda body: delays[(int(body["input"][0]["content"]) + body["seed"]) % 4]
    rollouts = gather(collector(url, model_url), wanted(6, 4))
    assert len(rollouts) == 24
    for group, members in itertools.groupby(rollouts, key=lambda rollout: rollout.group):
        listed = list(members)  # yielded one after the other
        assert sorted(rollout.attempt for rollout in listed) == [0, 1, 2, 3], group
        assert {rollout.attempt: rollout.reward for rollout in listed} == {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0}
        assert all(rollout.segments and rollout.failure is None for rollout in listed)
        assert {rollout.attempt: rollout.parts["length"] for rollout in listed} == {0: 4, 1: 3, 2: 2, 3: 1}


def test_a_failed_attempt_leaves_its_group(url: str, model: tuple[Model, str]) -> None:
    server, model_url = model
    server.turns = lambda body, n: (
        (400, {"error": {"message": "no"}}) if body["seed"] == 2 else message("xx4"[body["seed"] :])
    )
    rollouts = {rollout.attempt: rollout for rollout in gather(collector(url, model_url), wanted(1, 3))}
    assert [rollouts[n].reward for n in range(3)] == [0.0, 1.0, None]
    failure = rollouts[2].failure
    assert failure is not None and failure.kind == "model_error"


def test_a_group_of_failures_asks_for_no_verdict(url: str, model: tuple[Model, str]) -> None:
    server, model_url = model
    server.turns = lambda body, n: (400, {})
    rollouts = gather(collector(url, model_url), wanted(2, 2))
    assert [rollout.failure is not None and rollout.reward is None for rollout in rollouts] == [True] * 4


def test_a_group_verdict_that_fails_is_a_failure_of_its_rollouts(url: str, model: tuple[Model, str]) -> None:
    server, model_url = model
    server.turns = lambda body, n: message("clash" if body["input"][0]["content"] == "1" else "4")
    rollouts = gather(collector(url, model_url), wanted(3, 2))
    failed = [rollout for rollout in rollouts if rollout.failure is not None]
    assert sorted((rollout.group, rollout.attempt) for rollout in failed) == [("g1", 0), ("g1", 1)]
    assert all(rollout.reward is None and rollout.segments for rollout in failed)
    assert {rollout.failure.kind for rollout in failed if rollout.failure} == {"verifier_crash"}
    assert len(server.requests) == 6  # nothing was sampled again


def test_a_bad_row_is_a_failure_of_its_group(url: str, model: tuple[Model, str]) -> None:
    requests = [
        RolloutRequest({"responses_create_params": {"input": "?"}}, "t", "kit_shortest", "g", n) for n in (0, 1)
    ]
    rollouts = gather(collector(url, model[1]), requests)
    assert [rollout.failure.kind for rollout in rollouts if rollout.failure] == ["bad_row", "bad_row"]


def test_requests_are_read_only_as_there_is_room_and_rollouts_come_while_others_run(
    url: str, model: tuple[Model, str]
) -> None:
    server, model_url = model
    server.turns = by_seed(lambda seed: "4")
    read = 0

    def counted() -> Iterator[RolloutRequest]:
        nonlocal read
        for request in wanted(50, 3):
            read += 1
            yield request

    async def run() -> int:
        done = most = 0
        async for _ in collector(url, model_url, concurrency=4).collect(counted()):
            done += 1
            most = max(most, read - done)
        assert done == 150
        return most

    assert asyncio.run(run()) <= 4 + 4 * 3  # in flight, and at most a group held back by each of them


def test_groups_larger_than_the_concurrency_end(url: str, model: tuple[Model, str]) -> None:
    model[0].turns = by_seed(lambda seed: "x" * seed + "4")
    rollouts = gather(collector(url, model[1], concurrency=2), wanted(2, 7))
    assert [rollout.reward for rollout in sorted(rollouts, key=lambda r: (r.group, r.attempt))] == [1.0, *[0.0] * 6] * 2


def test_the_group_verdict_is_asked_for_by_content(toys: None, model: tuple[Model, str]) -> None:
    """The first answer is lost on its way: the second request has the same key and the same body."""
    model[0].turns = by_seed(lambda seed: "x" * seed + "4")
    seen: list[tuple[bytes, str]] = []
    guard = build_resources([Shortest()], ServerSettings(), workers=1)

    async def lossy(scope: Any, receive: Any, send: Any) -> None:
        if not scope.get("path", "").endswith("verify_group"):
            return await guard(scope, receive, send)
        key = dict(scope["headers"])[b"idempotency-key"].decode()
        first = not seen
        body = b""

        async def kept() -> Any:
            nonlocal body
            part = await receive()
            body += part.get("body", b"")
            return part

        async def swallow(part: Any) -> None:
            return None

        await guard(scope, kept, swallow if first else send)
        seen.append((body, key))
        if first:
            await JSONResponse({"retryable": True}, 503)(scope, kept, send)

    with serving(lossy) as url:
        rollouts = gather(collector(url, model[1], retries=1), wanted(1, 3))
    assert [rollout.reward for rollout in sorted(rollouts, key=lambda r: r.attempt)] == [1.0, 0.0, 0.0]
    assert len(seen) == 2
    assert seen[0] == seen[1]
    body = json.loads(seen[0][0])
    assert [rollout["attempt"] for rollout in body["rollouts"]] == [0, 1, 2]


def test_single_and_group_environments_in_one_collection(url: str, model: tuple[Model, str]) -> None:
    till = {"responses_create_params": {"input": "?"}, "target": 0}
    singles = [RolloutRequest(till, f"s{n}", "kit_till", f"s{n}", 0) for n in range(3)]
    rollouts = gather(collector(url, model[1]), [singles[0], *wanted(1, 2), *singles[1:], *wanted(1, 1)])
    assert sorted((r.environment, r.reward) for r in rollouts) == [
        ("kit_shortest", 0.0),
        ("kit_shortest", 1.0),
        ("kit_shortest", 1.0),
        *[("kit_till", 1.0)] * 3,
    ]


# -- the file of rollouts ----------------------------------------------------------------------------------------------


def lines(url: str, model: tuple[Model, str], groups: int) -> list[bytes]:
    model[0].turns = by_seed(lambda seed: "x" * seed + "4")
    return [rollout_line(rollout) for rollout in gather(collector(url, model[1], concurrency=3), wanted(groups, 3))]


def test_a_group_that_was_half_written_is_done_again_whole(url: str, model: tuple[Model, str], tmp_path: Path) -> None:
    written = lines(url, model, 3)
    path = tmp_path / "out.jsonl"
    for count in range(10):
        path.write_bytes(b"".join(written[:count]) + (written[count][:9] if count < 9 else b""))
        done = done_so_far(path)
        assert len(done) == count // 3 * 3
        assert path.read_bytes() == b"".join(written[: count // 3 * 3])
        left = remaining(wanted(3, 3), done, path)
        again = [rollout_line(rollout) for rollout in gather(collector(url, model[1], concurrency=3), left)]
        rewards = [json.loads(line)["reward"] for line in path.read_bytes().splitlines() + again]
        assert sorted(rewards) == [0.0] * 6 + [1.0] * 3


def test_a_failure_tried_again_takes_its_group_with_it(url: str, model: tuple[Model, str], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written = [json.loads(line) for line in lines(url, model, 2)]
    failed = {**written[0], "reward": None, "group_size": 0, "failure": {"kind": "model_error", "message": "x"}}
    alone = {**written[0], "task_id": "single", "group_size": 0}
    rows = [
        failed,
        *({**row, "group_size": 2} for row in written[1:3]),
        *written[3:],
        alone,
        {**failed, "task_id": "single"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drop_failures(path)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["task_id"] for row in kept] == ["t1", "t1", "t1", "single"]
