"""The collector: many rollouts at once, memory bounded, failures retried as a phase.

A verdict that failed is asked for again with the same output; only a model call that failed starts the episode anew, under a new
ledger, and the tokens of the abandoned attempt stay in `usage`. A rollout out of retries is yielded with its Failure. Nothing
finished for `no_progress_seconds` is an error that says on what is waited.
Not here: group rewards (`/verify_group`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gym_servers.agents.tool_loop import LoopLimits, Target, generate, verify
from gym_servers.client import Client
from gym_servers.models.wire import LedgerExport, unpack_ledger
from gym_servers.protocol import Failure, FailureError, OmnigymError, Rollout, RowError
from gym_servers.signing import sign_rollout_id


class NoProgress(OmnigymError):
    """No rollout ended for too long: names the phases and environments on which is waited."""


@dataclass(frozen=True)
class RolloutRequest:
    """One rollout to collect."""

    row: dict[str, Any]
    task_id: str
    environment: str
    group: str = ""
    attempt: int = 0
    seed: int = 0


@dataclass
class Collector:
    """Where and how to collect. secret: signs rollout ids; None: the model server at model_url keeps no ledger."""

    environments: dict[str, str]
    model_url: str
    run: str = "run"
    secret: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 64
    retries: int = 2
    no_progress_seconds: float = 1800.0
    limits: LoopLimits = field(default_factory=LoopLimits)
    token: str | None = None
    waiting: dict[str, str] = field(default_factory=dict)

    async def collect(self, requests: Iterable[RolloutRequest]) -> AsyncIterator[Rollout]:
        """Rollouts as they end. Requests are read only as there is room. Raises NoProgress."""
        source: Iterator[RolloutRequest] = iter(requests)
        running: set[asyncio.Task[Rollout]] = set()
        ended: asyncio.Queue[asyncio.Task[Rollout]] = (
            asyncio.Queue()
        )  # asyncio.wait would look at all for each that ends
        async with Client(token=self.token, concurrency=2 * self.concurrency) as client:
            try:
                while True:
                    while len(running) < self.concurrency:
                        request = next(source, None)
                        if request is None:
                            break
                        task = asyncio.create_task(self.one(client, request))
                        task.add_done_callback(ended.put_nowait)
                        running.add(task)
                    if not running:
                        return
                    try:
                        task = await asyncio.wait_for(ended.get(), self.no_progress_seconds)
                    except TimeoutError:
                        raise NoProgress(
                            f"no rollout ended for {self.no_progress_seconds:g} s; waiting on {self.describe_waiting()}"
                        ) from None
                    running.discard(task)
                    yield task.result()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def describe_waiting(self) -> str:
        """How many rollouts are in which phase of which environment."""
        counts: dict[str, int] = {}
        for where in self.waiting.values():
            counts[where] = counts.get(where, 0) + 1
        return ", ".join(f"{n} x {where}" for where, n in sorted(counts.items())) or "nothing"

    async def one(self, client: Client, request: RolloutRequest) -> Rollout:
        """One rollout to its end: a reward, or a Failure."""
        url = self.environments.get(request.environment)
        spent = {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0}
        rollout = self._fresh(request)
        if url is None:
            known = ", ".join(sorted(self.environments))
            rollout.failure = Failure(
                kind="environment_down",
                message=f"no server for environment '{request.environment}'; there are: {known}",
                retryable=False,
            )
            return rollout
        place = f"{request.group or request.task_id}/{request.attempt}"
        for attempt in range(self.retries + 1):
            rollout = self._fresh(request)
            rollout_id = f"{self.run}/{request.group or request.task_id}/{request.attempt}/{attempt}"
            base = self.model_url
            if self.secret is not None:
                base = f"{self.model_url.removesuffix('/v1')}/r/{sign_rollout_id(rollout_id, self.secret)}/v1"
            target = Target(url, base, self.sampling)
            failure: Failure | None = None
            self.waiting[place] = f"generation for '{request.environment}'"
            try:
                cookies = await generate(client, request.row, target, rollout, self.limits)
                self.waiting[place] = f"the verdict of '{request.environment}'"
                await self._verdict(client, request, target, rollout, cookies)
            except FailureError as error:
                failure = error.failure
            except RowError as error:
                failure = Failure(kind="bad_row", message=str(error), retryable=False)
            finally:
                self.waiting.pop(place, None)
            if self.secret is not None:
                failure = await self._join(client, base, rollout, spent) or failure
            if failure is None:
                break
            rollout.reward, rollout.failure = None, failure
            if not failure.retryable or failure.kind == "verifier_crash":
                break
        rollout.usage = spent
        return rollout

    def _fresh(self, request: RolloutRequest) -> Rollout:
        return Rollout(
            task_id=request.task_id,
            environment=request.environment,
            group=request.group,
            attempt=request.attempt,
            seed=request.seed,
            task=request.row,
        )

    async def _verdict(
        self, client: Client, request: RolloutRequest, target: Target, rollout: Rollout, cookies: dict[str, str]
    ) -> None:
        for attempt in range(self.retries + 1):
            try:
                await verify(client, request.row, target, rollout, cookies, self.limits)
                return
            except FailureError as error:
                if not error.failure.retryable:
                    raise
                if attempt == self.retries:
                    # Never sample again because a verdict failed: the policy would be selected by what the grader can read.
                    raise FailureError(error.failure.model_copy(update={"retryable": False})) from None
                await asyncio.sleep(0.2 * 2**attempt)

    async def _join(self, client: Client, base: str, rollout: Rollout, spent: dict[str, int]) -> Failure | None:
        """Close the ledger and join its arrays to the rollout. A Failure where they cannot be had."""
        began = time.monotonic()
        try:
            reply = await client.post(f"{base.removesuffix('/v1')}/close", {}, seconds=120, kind="model_error")
            ledger: LedgerExport = unpack_ledger(reply.body)
        except FailureError as error:
            return error.failure
        except OmnigymError as error:
            return Failure(kind="model_error", message=str(error))
        rollout.segments = ledger.segments
        if ledger.truncated:
            rollout.truncated, rollout.truncation_reason = True, ledger.truncation_reason
        for name in spent:
            spent[name] += ledger.usage.get(name, 0)
        rollout.timings["join"] = time.monotonic() - began
        return None
