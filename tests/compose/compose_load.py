"""Requests whose right answers are known, sent to the stack without pause; whatever happens to it, no answer may be wrong."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gym_servers.client import Client
from gym_servers.protocol import FailureError, RowError

ROOT = Path(__file__).resolve().parents[2]
Line = dict[str, Any]
SECONDS = 240.0


def cases(environment: str) -> list[Line]:
    """The environment's own recorded requests with their verdicts."""
    text = (ROOT / "environments" / environment / "cases.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def rewarded(environment: str, count: int) -> list[Line]:
    """Of its cases with a reward `count`, of every reward some."""
    some: list[Line] = []
    seen: Counter[float] = Counter()
    for case in cases(environment):
        reward = case["expected"].get("reward")
        if reward is not None and seen[reward] < count // 2 and len(some) < count:
            seen[reward] += 1
            some.append(case)
    return some


class Load:
    """Use as a context. verdicts: how many right ones there were. wrong: those that were not. repeated: phases that failed, each of which
    was tried again. lost: sessions that could not go on, and began anew."""

    def __init__(self, url: str, token: str, environments: list[str], at_once: int = 12) -> None:
        self.url, self.token, self.at_once = url, token, at_once
        self.work = [(name, case) for name in environments for case in rewarded(name, 6)]
        self.verdicts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.repeated: Counter[str] = Counter()
        self.lost = 0
        self.problem: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        self.more(self.at_once)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Wait for so many further verdicts."""
        wanted, end = self.verdicts.total() + count, time.monotonic() + SECONDS
        while self.verdicts.total() < wanted:
            assert self.problem is None and self._thread.is_alive(), self.problem
            assert not self.wrong, self.wrong
            assert time.monotonic() < end, f"no {count} verdicts within {SECONDS:g} s: {self.repeated}"
            time.sleep(0.05)

    def check(self) -> None:
        """Raises AssertionError for a verdict that is wrong, and for a load that ended by itself."""
        assert self.problem is None and not self.wrong, (self.problem, self.wrong)
        assert set(self.verdicts) == {name for name, _ in self.work}, self.verdicts

    def _run(self) -> None:
        try:
            asyncio.run(self._drive())
        except BaseException as error:
            self.problem = error

    async def _drive(self) -> None:
        async with Client(token=self.token, retries=2) as client:

            async def worker(number: int) -> None:
                turn = number
                while not self._stop.is_set():
                    name, case = self.work[turn % len(self.work)]
                    turn += self.at_once + 1
                    play = self._session if name == "workplace_assistant" else self._verify
                    await play(client, name, case)

            await asyncio.gather(*(worker(number) for number in range(self.at_once)))

    async def _post(
        self, client: Client, path: str, body: Line, cookies: dict[str, str] | None, key: str | None
    ) -> Any:
        """Again and again with one key, for as long as it fails in a way that may pass."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                return await client.post(f"{self.url}/{path}", body, seconds=60, cookies=cookies, key=key)
            except FailureError as error:
                # No server of ours says 403: while the gateway is away, a proxy of the machine may answer for its address.
                passing = error.failure.retryable or error.status == 403
                if not passing or time.monotonic() > end:
                    raise
                self.repeated[error.failure.kind] += 1
                await asyncio.sleep(0.2)

    def _note(self, name: str, case: Line, reward: Any) -> None:
        self.verdicts[name] += 1
        if reward != case["expected"]["reward"]:
            self.wrong.append(f"{name} {case['id']}: {reward}, not {case['expected']['reward']}")

    async def _verify(self, client: Client, name: str, case: Line) -> None:
        key = f"{time.monotonic_ns()}-{case['id']}"
        reply = await self._post(client, f"{name}/verify", case["request"], None, key)
        self._note(name, case, reply.json()["reward"])

    async def _session(self, client: Client, name: str, case: Line) -> None:
        """The case's calls one by one in a session, then its verdict."""
        row = {key: value for key, value in case["request"].items() if key != "response"}
        key = f"{time.monotonic_ns()}-{case['id']}"
        seeded = await self._post(client, f"{name}/seed_session", row, None, None)
        try:
            for number, item in enumerate(case["request"]["response"]["output"]):
                if item["type"] == "function_call":
                    await self._call(client, name, item, seeded.cookies, f"{key}-{number}")
            reply = await self._post(client, f"{name}/verify", case["request"], seeded.cookies, f"{key}-verify")
        except FailureError:
            self.lost += 1  # it says that the session is gone: no verdict
            return
        self._note(name, case, reply.json()["reward"])

    async def _call(self, client: Client, name: str, item: Line, cookies: dict[str, str], key: str) -> None:
        try:
            await self._post(client, f"{name}/{item['name']}", json.loads(item["arguments"]), cookies, key)
        except (RowError, json.JSONDecodeError):
            return  # a call that the tool refuses, or that cannot be made
        except FailureError as error:
            if error.status != 404:
                raise
