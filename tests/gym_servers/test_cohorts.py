"""Groups whose rollouts come one by one, as NeMo-Gym's clients send them, over real HTTP: each /verify waits for its siblings."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from kit_toys import GroupToySettings, Shortest, installed, message, serving

from gym_servers.cohorts import Cohorts
from gym_servers.protocol import FailureError, Verdict
from gym_servers.resources import build_resources

TEXTS = ["it is 4", "5", "=4", "4"]
REWARDS = [0.0, 0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("toys")):
        yield


def shortest(wait: float = 60.0) -> Shortest:
    return Shortest(GroupToySettings(num_rollouts_per_prompt=4, group_wait_seconds=wait))


@pytest.fixture(scope="module")
def url(toys: None) -> Iterator[str]:
    with serving(build_resources([shortest()], workers=2)) as url:
        yield url


def body(index: Any, text: str, prompt: str = "?", **fields: Any) -> dict[str, Any]:
    response = {"object": "response", "output": message(text), "status": "completed"}
    params = {"input": [{"role": "user", "content": prompt}], "metadata": {"seed": str(index)}}
    return {
        "responses_create_params": params,
        "answer": "4",
        "_ng_rollout_index": index,
        "response": response,
        **fields,
    }


async def send(client: httpx.AsyncClient, url: str, given: dict[str, Any], wait: float = 0.0) -> httpx.Response:
    await asyncio.sleep(wait)
    return await client.post(f"{url}/verify", json=given, timeout=60)


def send_all(url: str, bodies: list[dict[str, Any]], waits: list[float] | None = None) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(trust_env=False) as client:
            pairs = zip(bodies, waits or [0.0] * len(bodies), strict=True)
            return list(await asyncio.gather(*(send(client, url, given, wait) for given, wait in pairs)))

    return asyncio.run(run())


def test_a_group_of_separate_requests_gets_its_rewards_in_any_order_of_arrival(url: str) -> None:
    r = random.Random(0)
    for round_number in range(3):
        bodies = [body(k, text, _ng_task_index=round_number) for k, text in enumerate(TEXTS)]
        r.shuffle(bodies)
        replies = send_all(url, bodies, [0.1 * k for k in range(4)])
        assert [reply.status_code for reply in replies] == [200] * 4
        for given, reply in zip(bodies, replies, strict=True):
            assert reply.json()["reward"] == REWARDS[given["_ng_rollout_index"]]
            assert {key: reply.json()[key] for key in given} == given


def test_groups_do_not_mix(url: str) -> None:
    """Many groups at once, some with one prompt but another task, some with one task index but another prompt."""
    bodies, expected = [], []
    for group in range(12):
        texts = TEXTS if group % 2 else TEXTS[::-1]
        for k, text in enumerate(texts):
            bodies.append(body(k, text, prompt=f"p{group // 2}", _ng_task_index=100 + group % 3))
            expected.append((REWARDS if group % 2 else REWARDS[::-1])[k])
    order = list(range(len(bodies)))
    random.Random(1).shuffle(order)
    replies = send_all(url, [bodies[k] for k in order])
    keys = {(given["_ng_task_index"], str(given["responses_create_params"]["input"])) for given in bodies}
    assert len(keys) == 12
    assert [reply.json().get("reward") for reply in replies] == [expected[k] for k in order]


def test_the_same_prompt_may_come_again_without_an_id_of_its_own(url: str) -> None:
    for texts, rewards in ((TEXTS, REWARDS), (["4", "5", "5", "5"], [1.0, 0.0, 0.0, 0.0])):
        replies = send_all(url, [body(k, text, prompt="again") for k, text in enumerate(texts)])
        assert [reply.json()["reward"] for reply in replies] == rewards


def test_a_group_with_an_id_answers_again_and_knows_its_attempts(url: str) -> None:
    group = {"_ng_group_id": "g1"}
    bodies = [body(k, text, **group) for k, text in enumerate(TEXTS)]
    assert [reply.json()["reward"] for reply in send_all(url, bodies)] == REWARDS
    assert send_all(url, [bodies[3]])[0].json()["reward"] == 1.0  # a repeated request
    other = send_all(url, [body(3, "another", **group)])[0]
    assert other.status_code == 422 and "another answer already" in other.json()["error"]["message"]
    anew = [body(k, text, _ng_group_attempt=1, **group) for k, text in enumerate(TEXTS[::-1])]
    assert [reply.json()["reward"] for reply in send_all(url, anew)] == REWARDS[::-1]


def test_a_request_that_broke_off_is_taken_up_by_its_repetition(url: str) -> None:
    bodies = [body(k, text, _ng_group_id="g2") for k, text in enumerate(TEXTS)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/verify", json=bodies[0], timeout=0.3, trust_env=False)
    replies = send_all(url, [*bodies[1:], bodies[0]])
    assert [reply.json()["reward"] for reply in replies] == [*REWARDS[1:], REWARDS[0]]


@pytest.mark.parametrize("index", [None, -1, 4, "0", True, 1.5])
def test_a_bad_index_is_the_rows_fault(url: str, index: Any) -> None:
    reply = send_all(url, [body(index, "4")])[0]
    assert reply.status_code == 422
    assert "'_ng_rollout_index' must be an integer from 0 to 3" in reply.json()["error"]["message"]


def test_bad_rows_and_ids_are_refused_at_once(url: str) -> None:
    no_answer = {key: value for key, value in body(0, "4", prompt="bad").items() if key != "answer"}
    wrong_id = body(0, "4", prompt="bad", _ng_group_id=3)
    assert [reply.status_code for reply in send_all(url, [no_answer, wrong_id])] == [422, 422]
    first, *_ = [body(k, text, _ng_group_id="g3") for k, text in enumerate(TEXTS)]
    stranger = body(1, "4", prompt="another", _ng_group_id="g3")

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            waiting = asyncio.create_task(send(client, url, first))
            await asyncio.sleep(0.3)
            reply = await send(client, url, stranger)
            waiting.cancel()
            return reply

    reply = asyncio.run(run())
    assert reply.status_code == 422 and "is not the prompt of the other rollouts" in reply.json()["error"]["message"]


def test_a_group_that_stays_incomplete_is_a_failure_for_those_that_came(toys: None) -> None:
    with serving(build_resources([shortest(wait=0.5)], workers=1)) as url:
        replies = send_all(url, [body(0, "4"), body(2, "5")])
        assert [reply.status_code for reply in replies] == [503, 503]
        assert "only rollouts [0, 2] of a group of 4 came within 0.5 s" in replies[0].json()["error"]["message"]
        assert [reply.json()["reward"] for reply in send_all(url, [body(k, t) for k, t in enumerate(TEXTS)])] == REWARDS


def test_a_verdict_that_fails_is_a_failure_for_all_and_can_be_tried_again(toys: None) -> None:
    with serving(build_resources([shortest()], workers=1)) as url:
        bodies = [body(k, text, _ng_group_id="g") for k, text in enumerate(["4", "5", "6", "one less"])]
        for _ in range(2):
            replies = send_all(url, bodies)
            assert [reply.status_code for reply in replies] == [503] * 4
            assert all("reward" not in reply.json() for reply in replies)


def test_one_that_breaks_the_grader_gets_the_lowest_reward_and_the_others_theirs(toys: None) -> None:
    with serving(build_resources([shortest()], workers=1)) as url:
        replies = send_all(url, [body(k, text) for k, text in enumerate(["burn", "5", "=4", "4"])])
        assert [reply.json()["reward"] for reply in replies] == [0.0, 0.0, 0.0, 1.0]
        assert replies[0].json()["parts"]["unverifiable_output"]


def test_without_the_setting_verify_says_what_to_do(toys: None) -> None:
    with serving(build_resources([Shortest()], workers=1)) as url:
        reply = send_all(url, [body(0, "4")])[0]
        assert reply.status_code == 422 and "num_rollouts_per_prompt" in reply.json()["error"]["message"]


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gym_servers.cohorts.MAX_GROUPS", 3)

    async def judged(environment: Any, row: Any, rollouts: list[Any], pool: Any) -> list[Verdict]:
        return [Verdict(reward=0.0, explanation="") for _ in rollouts]

    monkeypatch.setattr("gym_servers.cohorts.judge_group", judged)

    async def run() -> None:
        cohorts = Cohorts(shortest(), None)  # type: ignore[arg-type]

        def give(index: int, group: str) -> asyncio.Task[Verdict]:
            given = body(index, "4", _ng_group_id=group)
            return asyncio.create_task(cohorts.verdict(given, given["response"]["output"]))

        for name in "abcde":  # graded ones make room
            await asyncio.gather(*(give(k, name) for k in range(4)))
        assert len(cohorts._groups) == 3
        waiting = [give(0, name) for name in "fgh"]
        await asyncio.sleep(0)
        with pytest.raises(FailureError, match="3 groups wait"):
            await give(0, "i")
        for task in waiting:
            task.cancel()

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 60  # no timer holds the loop


def test_one_idempotency_key_on_both_paths_is_two_requests(toys: None) -> None:
    alone = Shortest(GroupToySettings(num_rollouts_per_prompt=1))
    given = body(0, "4")
    group = {"task": {key: value for key, value in given.items() if key != "response"}, "rollouts": [given]}
    with serving(build_resources([alone], workers=1)) as url:
        key = {"Idempotency-Key": "k"}
        one = httpx.post(f"{url}/verify", json=given, headers=key, timeout=60, trust_env=False).json()
        both = httpx.post(f"{url}/verify_group", json=group, headers=key, timeout=60, trust_env=False).json()
    assert one["reward"] == 1.0 and both["rewards"] == [1.0]
