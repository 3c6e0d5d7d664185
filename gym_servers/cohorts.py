"""NeMo-Gym's way to reward a group: each rollout's `POST /verify` waits until those of its siblings are there.

Which group a request belongs to: `_ng_group_id` with `_ng_group_attempt`; else `_ng_task_index` or `prompt_id`, and the prompt. Its place is
`_ng_rollout_index`, from 0. The group's size is the setting `num_rollouts_per_prompt`. A request that comes again, after its connection
broke, waits with the first one; with another answer it is refused. A group of which not all came in time is a failure for those that did.
A verdict on a group with an id of its own is kept for repeated requests; one without is forgotten, so that the same prompt may come again.
Our own collector asks `/verify_group` once instead: nothing waits, and no two requests must reach the same process.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import orjson

from gym_servers.environment import GroupEnvironment
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, RowError, Verdict
from gym_servers.verification import judge_group
from gym_servers.workers import WorkerPool

MAX_GROUPS = 10_000


def _digest(value: Any) -> str:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


@dataclass
class _Group:
    """rollouts and answers (their digests) by index. verdicts: by index, once all are there."""

    prompt: str
    lasting: bool
    verdicts: asyncio.Future[dict[int, Verdict]]
    rollouts: dict[int, dict[str, Any]] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class Cohorts:
    """The groups of one environment that wait for their rollouts, in this process."""

    def __init__(self, environment: GroupEnvironment, pool: WorkerPool) -> None:
        self.environment, self.pool = environment, pool
        self._groups: OrderedDict[tuple[Any, ...], _Group] = OrderedDict()

    def _bad(self, field_name: str, problem: str) -> RowError:
        return RowError(f"environment '{self.environment.name}': field '{field_name}' {problem}")

    def _place(self, body: dict[str, Any]) -> tuple[tuple[Any, ...], bool, str, int]:
        """(key, whether it is an id of the caller's, digest of the prompt, index) of a verify body. Raises RowError."""
        size = self.environment.settings.num_rollouts_per_prompt
        index = body.get("_ng_rollout_index")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
            raise self._bad("_ng_rollout_index", f"must be an integer from 0 to {size - 1}, found {index!r:.40}")
        params = body.get("responses_create_params")
        prompt = _digest(params.get("input") if isinstance(params, dict) else None)
        group = body.get("_ng_group_id")
        if group is None:
            return (str(body.get("_ng_task_index")), str(body.get("prompt_id")), prompt), False, prompt, index
        attempt = body.get("_ng_group_attempt") or 0
        if not isinstance(group, str) or isinstance(attempt, bool) or not isinstance(attempt, int):
            raise self._bad("_ng_group_id", "must be a string, and '_ng_group_attempt' an integer")
        return (group, attempt), True, prompt, index

    async def verdict(self, body: dict[str, Any], output: list[Item]) -> Verdict:
        """The verdict on one rollout, once its group's is there. Raises RowError; FailureError, for all that wait."""
        key, lasting, prompt, index = self._place(body)
        row = {name: value for name, value in body.items() if name != "response"}
        self.environment.check_row(row)
        group = self._groups.get(key)
        if group is None:
            self._make_room()
            loop = asyncio.get_running_loop()
            group = self._groups[key] = _Group(prompt, lasting, loop.create_future())
            wait = self.environment.settings.group_wait_seconds
            group.timer = loop.call_later(wait, self._expire, key, group, wait)
        if group.prompt != prompt:
            raise self._bad("responses_create_params.input", "is not the prompt of the other rollouts of its group")
        answer = _digest(output)
        if group.answers.setdefault(index, answer) != answer:
            raise self._bad("_ng_rollout_index", f"is {index}, of which the group has another answer already")
        if index not in group.rollouts and not group.verdicts.done():
            truncated = body["response"].get("status") == "incomplete"
            group.rollouts[index] = {"output": output, "attempt": index, "truncated": truncated}
            if len(group.rollouts) == self.environment.settings.num_rollouts_per_prompt:
                group.task = asyncio.create_task(self._judge(key, group, row))
        return (await asyncio.shield(group.verdicts))[index]

    async def _judge(self, key: tuple[Any, ...], group: _Group, row: dict[str, Any]) -> None:
        """Grade a whole group, for all who wait."""
        indices = sorted(group.rollouts)
        try:
            verdicts = await judge_group(self.environment, row, [group.rollouts[k] for k in indices], self.pool)
        except OmnigymError as error:
            self._end(key, group, error)
        except BaseException:
            message = f"environment '{self.environment.name}': the group's verdict was cut off"
            self._end(key, group, FailureError(Failure(kind="verifier_crash", message=message)))
            raise
        else:
            self._end(key, group, dict(zip(indices, verdicts, strict=True)))

    def _expire(self, key: tuple[Any, ...], group: _Group, wait: float) -> None:
        if group.task is None:
            size = self.environment.settings.num_rollouts_per_prompt
            message = (
                f"environment '{self.environment.name}': only rollouts {sorted(group.rollouts)} of a group of {size} came "
                f"within {wait:g} s: send all at once, and at least {size} at a time"
            )
            self._end(key, group, FailureError(Failure(kind="timeout", message=message, retryable=False)))

    def _end(self, key: tuple[Any, ...], group: _Group, result: dict[int, Verdict] | OmnigymError) -> None:
        if group.timer is not None:
            group.timer.cancel()
        group.rollouts.clear()
        if isinstance(result, OmnigymError):
            group.verdicts.set_exception(result)
            group.verdicts.exception()  # nobody may be waiting any more
        else:
            group.verdicts.set_result(result)
        if isinstance(result, OmnigymError) or not group.lasting:
            self._groups.pop(key, None)

    def _make_room(self) -> None:
        """Forget the oldest group that is graded. Raises FailureError where all are waited for."""
        if len(self._groups) < MAX_GROUPS:
            return
        graded = next((key for key, group in self._groups.items() if group.verdicts.done()), None)
        if graded is None:
            message = f"environment '{self.environment.name}': {MAX_GROUPS} groups wait for their rollouts"
            raise FailureError(Failure(kind="environment_down", message=message))
        del self._groups[graded]
