"""The collector: many rollouts at once, memory bounded, failures retried as a phase.

A verdict that failed is asked for again with the same output; only a model call that failed starts the episode anew, under a new
ledger, and the tokens of the abandoned attempt stay in `usage`. A rollout out of retries is yielded with its Failure. Nothing
finished for `no_progress_seconds` is an error that says on what is waited.

Where the environment rewards groups, the rollouts of a group wait for each other; once the last is final those that did not fail
get their verdict together and are yielded one after the other. The requests of a group must follow each other: a group is
complete when a request of another one comes. What waits is at most a group for each rollout in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gym_servers.agents.episode import episode
from gym_servers.agents.tool_loop import LoopLimits, Target, verify_group
from gym_servers.client import Client, Transport
from gym_servers.models.wire import LedgerExport, unpack_ledger
from gym_servers.protocol import Failure, FailureError, OmnigymError, Rollout, RowError
from gym_servers.signing import sign_rollout_id


class NoProgress(OmnigymError):
    """No rollout ended for too long: names the phases and environments on which is waited."""


@contextlib.contextmanager
def rarer_collections() -> Iterator[None]:
    """Cyclic garbage is looked for 70 times less often than by Python's default, which a collector with 2,048 rollouts in flight
    pays for with a seventh of its throughput: each pass walks the tasks and connections of all that are alive."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def rollout_seed(seed: int, label: str, group: str, attempt: int) -> int:
    """Sampling seed of one rollout, 31 bits: the same whenever, wherever and in whichever order it is sampled."""
    return random.Random(f"rollout|{seed}|{label}|{group}|{attempt}").getrandbits(31)


@dataclass(frozen=True)
class RolloutRequest:
    """One rollout to collect."""

    row: dict[str, Any]
    task_id: str
    environment: str
    group: str = ""
    attempt: int = 0
    seed: int = 0


@dataclass(eq=False)
class _Group:
    """Rollouts of one task. open: how many tasks work on them. waiting: final but without a verdict. complete: no more come."""

    key: tuple[str, str]
    open: int = 0
    waiting: list[Rollout] = field(default_factory=list)
    complete: bool = False


@dataclass
class Collector:
    """Where and how to collect. secret: signs rollout ids; None: the model server at model_url keeps no ledger. settled: of the
    Client, where servers may be started again.

    A rollout's `usage` is the engine's own count over all its attempts, and `dropped_tokens`: those of them that are in no
    segment of the last one. Without a ledger it is what the responses say, and dropped is what abandoned attempts sampled.
    """

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
    transport: Transport | None = None
    settled: Callable[[str], Awaitable[str]] | None = None
    waiting: dict[str, str] = field(default_factory=dict)

    async def collect(self, requests: Iterable[RolloutRequest]) -> AsyncIterator[Rollout]:
        """Rollouts as they end. Requests are read only as there is room. Raises NoProgress."""
        source: Iterator[RolloutRequest] = iter(requests)
        running: dict[asyncio.Task[list[Rollout]], _Group] = {}
        ended: asyncio.Queue[asyncio.Task[list[Rollout]]] = (
            asyncio.Queue()
        )  # asyncio.wait would look at every task each time
        last: _Group | None = None
        client = Client(
            token=self.token, concurrency=2 * self.concurrency, transport=self.transport, settled=self.settled
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(rarer_collections())
            await stack.enter_async_context(client)

            def start(work: Coroutine[Any, Any, list[Rollout]], group: _Group) -> None:
                group.open += 1
                task = asyncio.create_task(work)
                task.add_done_callback(ended.put_nowait)
                running[task] = group

            def settle(group: _Group) -> None:
                if group.complete and not group.open and group.waiting:
                    waiting, group.waiting = group.waiting, []
                    start(self._group_verdict(client, waiting), group)

            try:
                while True:
                    while len(running) < self.concurrency:
                        request = next(source, None)
                        key = (request.environment, request.group or request.task_id) if request is not None else None
                        if last is not None and last.key != key:
                            last.complete = True
                            settle(last)
                            last = None
                        if request is None or key is None:
                            break
                        last = last or _Group(key)
                        start(self._alone(client, request), last)
                    if not running:
                        return
                    try:
                        task = await asyncio.wait_for(ended.get(), self.no_progress_seconds)
                    except TimeoutError:
                        raise NoProgress(
                            f"no rollout ended for {self.no_progress_seconds:g} s; waiting on {self.describe_waiting()}"
                        ) from None
                    group = running.pop(task)
                    group.open -= 1
                    for rollout in task.result():
                        if rollout.reward is None and rollout.failure is None:
                            group.waiting.append(rollout)
                        else:
                            yield rollout
                    settle(group)
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

    async def _alone(self, client: Client, request: RolloutRequest) -> list[Rollout]:
        return [await self.one(client, request)]

    async def one(self, client: Client, request: RolloutRequest) -> Rollout:
        """One rollout to its end: a reward, a Failure, or neither where its environment rewards groups."""
        url = self.environments.get(request.environment)
        spent = {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0, "dropped_tokens": 0}
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

        def phase(name: str) -> None:
            self.waiting[place] = f"{name} '{request.environment}'"

        for attempt in range(self.retries + 1):
            rollout = self._fresh(request)
            rollout_id = f"{self.run}/{request.group or request.task_id}/{request.attempt}/{attempt}"
            base = self.model_url
            if self.secret is not None:
                base = f"{self.model_url.removesuffix('/v1')}/r/{sign_rollout_id(rollout_id, self.secret)}/v1"
            target = Target(url, base, self.sampling)
            failure: Failure | None = None
            try:
                await episode(client, request.row, target, rollout, self.limits, retries=self.retries, phase=phase)
            except FailureError as error:
                failure = error.failure
            except RowError as error:
                failure = Failure(kind="bad_row", message=str(error), retryable=False)
            finally:
                self.waiting.pop(place, None)
            if self.secret is not None:
                joined = await self._join(client, base, rollout, spent)
                failure = failure or joined  # what is final stays final, whatever became of the ledger
            else:
                spent["dropped_tokens"] = spent["sampled_tokens"]
                for name, count in rollout.usage.items():
                    spent[name] += count
            if failure is None:
                break
            rollout.reward, rollout.failure = None, failure
            if not failure.retryable:
                break
        rollout.usage = spent
        return rollout

    async def _group_verdict(self, client: Client, rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts of one group with their rewards, or each with the Failure of its group's verdict."""
        first = rollouts[0]
        place = f"{first.group or first.task_id}/group"
        self.waiting[place] = f"the group verdict of '{first.environment}'"
        failure: Failure | None = None
        try:
            url = self.environments[first.environment]
            await verify_group(client, first.task, url, rollouts, self.limits, self.retries)
        except FailureError as error:
            failure = error.failure
        except RowError as error:
            failure = Failure(kind="bad_row", message=str(error), retryable=False)
        finally:
            self.waiting.pop(place, None)
        for rollout in rollouts:
            rollout.failure, rollout.group_size = failure, len(rollouts)
        return rollouts

    def _fresh(self, request: RolloutRequest) -> Rollout:
        return Rollout(
            task_id=request.task_id,
            environment=request.environment,
            group=request.group,
            attempt=request.attempt,
            seed=request.seed,
            task=request.row,
        )

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
        abandoned = spent["sampled_tokens"]
        for name in ("prompt_tokens", "sampled_tokens", "requests"):
            spent[name] += ledger.usage.get(name, 0)
        spent["dropped_tokens"] = abandoned + ledger.dropped
        rollout.timings["join"] = time.monotonic() - began
        if ledger.calls < rollout.steps:
            message = f"the ledger of the rollout is lost: it holds {ledger.calls} calls, {rollout.steps} were answered"
            return Failure(kind="model_error", message=message)
        return None
