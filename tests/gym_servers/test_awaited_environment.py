"""Environments whose verdict is waited for, and what they open and close."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from gym_servers.client import Client
from gym_servers.environment import AwaitedEnvironment, Row, opened
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, Verdict, final_text
from gym_servers.resources import build_resources
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool


class Asked(AwaitedEnvironment):
    """Its verdict is given by whoever is asked, here a task of the event loop that `open` starts."""

    name = "asked"

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken, self.always, self.log = broken, False, list[str]()

    async def open(self) -> None:
        self.log.append("open")
        if self.broken:
            raise OmnigymError("nobody can be asked")

    async def close(self) -> None:
        self.log.append("close")

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        return None if final_text(output) else Verdict(reward=0.0, explanation="Empty.")

    def gold(self, row: Row) -> list[Item]:
        return answer("yes")["response"]["output"]  # type: ignore[no-any-return]

    async def verify_awaited(self, row: Row, output: list[Item]) -> Verdict:
        await asyncio.sleep(0)
        if final_text(output) == "nobody knows":
            raise FailureError(Failure(kind="judge_failed", message="nobody knows"))
        if final_text(output) == "breaks it" or self.always:
            raise KeyError("a bug")
        self.log.append(final_text(output))
        return Verdict(reward=float(final_text(output) == "yes"), explanation="Asked.")


def answer(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {"response": {"output": [{"type": "message", "role": "assistant", "content": content}]}}


def test_a_verdict_is_awaited_and_a_failure_of_who_is_asked_is_no_reward() -> None:
    environment = Asked()

    async def run() -> list[float]:
        async with InProcessHost() as host:
            url = await host.start("asked", build_resources([environment]))
            async with Client(transport=host, retries=0) as client:
                rewards = [
                    (await client.post(f"{url}/verify", answer(text), seconds=30)).json()["reward"]
                    for text in ("yes", "no", "")
                ]
                with pytest.raises(FailureError, match="nobody knows") as failed:
                    await client.post(f"{url}/verify", answer("nobody knows"), seconds=30)
                assert failed.value.status == 503 and failed.value.failure.kind == "judge_failed"
                return rewards

    assert asyncio.run(run()) == [1.0, 0.0, 0.0]
    assert environment.log == ["open", "yes", "no", "close"]  # an empty answer was decided by quick


def test_who_breaks_the_verifier_gets_the_least_and_a_broken_verifier_gives_nothing() -> None:
    environment = Asked()

    async def verdict(text: str) -> Verdict:
        with contextlib.closing(WorkerPool(1)) as pool:
            return await judge(environment, {}, answer(text)["response"]["output"], pool)

    broke = asyncio.run(verdict("breaks it"))
    assert broke.reward == 0.0 and broke.parts["unverifiable_output"] and "KeyError: 'a bug'" in broke.explanation
    environment.always = True
    with pytest.raises(FailureError, match="the gold answer breaks the verifier too") as failed:
        asyncio.run(verdict("no"))
    assert failed.value.failure.kind == "verifier_crash" and not failed.value.failure.retryable


def test_what_does_not_open_is_closed_and_never_ready() -> None:
    environment = Asked(broken=True)

    async def run() -> None:
        async with opened(environment):
            raise AssertionError("it is open")

    with pytest.raises(OmnigymError, match="nobody can be asked"):
        asyncio.run(run())
    assert environment.log == ["open", "close"]

    with TestClient(build_resources([environment])) as client:
        for _ in range(600):
            reply = client.get("/readyz")
            if "nobody can be asked" in reply.text:
                break
            time.sleep(0.05)
    assert reply.status_code == 503
    assert "'asked' does not start: nobody can be asked" in reply.text
    assert environment.log == ["open", "close"] * 2
