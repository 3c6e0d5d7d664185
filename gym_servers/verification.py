"""From an output to a verdict, or to a failure: an infrastructure failure is never a reward, and a policy cannot escape a
bad reward by breaking the grader (design: The records).

`judge` checks the row, asks `quick` in this process, hands what is left to `verify` in a worker, with the session's state where there
is one (or awaits `verify_awaited`), and lets the environment's `appeal` look at the verdict once more (an LLM judge, where one is configured). Where `quick` raises,
it has decided nothing, and a worker finds out. A worker that breaks is replaced by a fresh one. If the same output breaks two fresh
workers by its own content (CPU, memory, an exception, a crash, or sleeping while the machine was not starved) the verdict is the
lowest reward with `unverifiable_output`, unless the gold answer breaks a worker too: then the fault is the verifier's, and it is a
Failure.

`judge_group` does the same for a group: outputs that break the grader on their own get the lowest reward, the others theirs
without them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
from typing import Any

import orjson

from gym_servers.environment import (
    AwaitedEnvironment,
    Environment,
    GroupEnvironment,
    GroupRollout,
    Row,
    StatefulEnvironment,
)
from gym_servers.protocol import Failure, FailureError, FailureKind, Item, RowError, Verdict
from gym_servers.registry import environment_class
from gym_servers.workers import WorkerError, WorkerPool

log = logging.getLogger("omnigym.verification")
WALL_FACTOR = 15.0
WALL_MINIMUM = 30.0


def _environment(name: str, settings: dict[str, Any]) -> Environment:
    cls = environment_class(name)
    return cls(cls.settings_type.model_validate(settings))


def output_items(body: dict[str, Any], name: str) -> list[Item]:
    """`response.output` of a verify body. Raises RowError; FailureError where the response itself failed."""
    response = body.get("response")
    if not isinstance(response, dict):
        raise RowError(f"environment '{name}': field 'response' must be an object with 'output'")
    if response.get("error"):
        raise FailureError(Failure(kind="model_error", message=f"the response failed: {response['error']}"))
    output = response.get("output")
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        raise RowError(f"environment '{name}': field 'response.output' must be a list of Responses items")
    return output


def verify_in_worker(name: str, settings: dict[str, Any], row: dict[str, Any], output: list[Item]) -> dict[str, Any]:
    """Runs inside a worker: the verdict of environment `name` as JSON-like data."""
    environment = _environment(name, settings)
    return _data(environment.verify(environment.check_row(row), output))


def _data(verdict: Verdict) -> dict[str, Any]:
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the verifier returned a {type(verdict).__name__}: return a Verdict")
    return verdict.model_dump()


def verify_state_in_worker(
    name: str, settings: dict[str, Any], row: dict[str, Any], output: list[Item], state: bytes
) -> dict[str, Any]:
    """The same with the pickled state of a session."""
    environment = _environment(name, settings)
    assert isinstance(environment, StatefulEnvironment)
    return _data(environment.verify_state(environment.check_row(row), output, pickle.loads(state)))


def verify_group_in_worker(
    name: str, settings: dict[str, Any], row: dict[str, Any], rollouts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Runs inside a worker: one verdict a rollout."""
    environment = _environment(name, settings)
    assert isinstance(environment, GroupEnvironment)
    group = [GroupRollout.model_validate(rollout) for rollout in rollouts]
    return [_data(verdict) for verdict in environment.verify_group(environment.check_row(row), group)]


def prepare_environment(name: str) -> None:
    """Runs where workers are forked from: their first verdict pays for no import."""
    environment_class(name)().prepare()


def _crash(environment: Environment, message: str, retryable: bool = False) -> FailureError:
    message = f"environment '{environment.name}': {message}"
    return FailureError(Failure(kind="verifier_crash", message=message, retryable=retryable))


def check_range(environment: Environment, verdict: Verdict) -> Verdict:
    """The verdict, if its reward is finite and in the environment's range, and its parts can be sent. Raises FailureError otherwise."""
    low, high = environment.reward_range
    if not math.isfinite(verdict.reward) or not low <= verdict.reward <= high:
        raise _crash(environment, f"reward {verdict.reward} outside [{low}, {high}]")
    try:
        orjson.dumps(verdict.parts, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        if "UTF-8" not in str(error):  # half of a surrogate pair is in no request
            raise _crash(environment, f"verdict.parts cannot be written as JSON: {error}") from None
    return verdict


async def _attempt(
    environment: Environment, target: str, args: tuple[Any, ...], pool: WorkerPool, fresh: bool = False
) -> Any:
    settings = environment.settings
    return await pool.run(
        f"gym_servers.verification:{target}",
        (environment.name, settings.model_dump(), *args),
        cpu_seconds=settings.verify_cpu_seconds,
        wall_seconds=max(WALL_MINIMUM, WALL_FACTOR * settings.verify_cpu_seconds),
        memory_mb=settings.verify_memory_mb,
        fresh=fresh,
    )


async def _settled(environment: Environment, target: str, args: tuple[Any, ...], pool: WorkerPool) -> Any:
    """The worker's answer, or the two WorkerErrors of fresh workers that broke by the call's own content. Raises FailureError
    where it is one and then another reason."""
    with contextlib.suppress(
        WorkerError
    ):  # of a worker that had served others: what those left in it may be the reason
        return await _attempt(environment, target, args, pool)
    broken: list[WorkerError] = []
    while len(broken) < 2:
        try:
            return await _attempt(environment, target, args, pool, fresh=True)
        except WorkerError as error:
            broken.append(error)
        if not broken[-1].by_content:
            kind: FailureKind = "timeout" if broken[-1].kind == "wall" else "verifier_crash"
            raise FailureError(Failure(kind=kind, message=f"environment '{environment.name}': {broken[-1].message}"))
    return broken[0], broken[1]


def _unverifiable(environment: Environment, errors: tuple[WorkerError, WorkerError]) -> Verdict:
    first, second = errors
    return Verdict(
        reward=environment.reward_range[0],
        explanation=f"The output broke two fresh workers ({first.kind}, then {second.kind}): {second.message}",
        parts={"unverifiable_output": True},
    )


async def judge(
    environment: Environment, row: dict[str, Any], output: list[Item], pool: WorkerPool, state: bytes | None = None
) -> Verdict:
    """The verdict on `output` for `row`. state: of the session, pickled.

    Raises RowError (the row is bad) or FailureError (nobody's answer is at fault).
    """
    parsed = environment.check_row(row)
    try:
        verdict = environment.quick(parsed, output)
    except (RowError, FailureError):
        raise
    except Exception as error:  # whose fault it is shows in workers
        log.warning(
            "environment '%s' task '%s': quick raised %s, a worker decides",
            environment.name,
            parsed.task_id,
            f"{type(error).__name__}: {error}"[:200],
        )
        verdict = None
    if verdict is None and isinstance(environment, AwaitedEnvironment):
        verdict = await _awaited(environment, parsed, output)
    elif verdict is None:
        verdict = await _in_workers(environment, parsed, row, output, pool, state)
    if not isinstance(verdict, Verdict):
        raise _crash(
            environment, f"`quick` returned a {type(verdict).__name__}: return a Verdict, or None for a worker"
        )
    if "unverifiable_output" not in verdict.parts:  # nobody appeals by breaking the grader
        verdict = await environment.appeal(parsed, output, verdict)
    return check_range(environment, verdict)


async def _awaited(environment: AwaitedEnvironment, row: Row, output: list[Item]) -> Verdict:
    """The verdict of `verify_awaited`. An exception that comes twice is the output's doing, unless the gold answer brings one too."""
    broken: Exception | None = None
    for _ in range(2):
        try:
            return await environment.verify_awaited(row, output)
        except (RowError, FailureError):
            raise
        except Exception as error:
            log.exception("environment '%s' task '%s': verify_awaited", environment.name, row.task_id)
            broken = error
    gold = environment.gold(row)
    if gold is not None and gold != output:
        try:
            await environment.verify_awaited(row, gold)
        except (RowError, FailureError):
            raise
        except Exception as error:
            raise _crash(
                environment, f"the gold answer breaks the verifier too: {type(error).__name__}: {error}"
            ) from None
    return Verdict(
        reward=environment.reward_range[0],
        explanation=f"The output broke the verifier twice: {type(broken).__name__}: {broken}"[:500],
        parts={"unverifiable_output": True},
    )


async def _in_workers(
    environment: Environment,
    parsed: Row,
    row: dict[str, Any],
    output: list[Item],
    pool: WorkerPool,
    state: bytes | None,
) -> Verdict:
    """The verdict of `verify` or `verify_state`, in fresh workers where the first broke."""
    if state is None:
        result = await _settled(environment, "verify_in_worker", (row, output), pool)
    else:
        result = await _settled(environment, "verify_state_in_worker", (row, output, state), pool)
    if not isinstance(result, tuple):
        return Verdict.model_validate(result)
    gold = environment.gold(parsed)
    if gold is not None and gold != output:
        try:
            await _attempt(environment, "verify_in_worker", (row, gold), pool, fresh=True)
        except WorkerError as error:
            raise _crash(environment, f"the gold answer breaks the verifier too: {error}") from None
        except RowError:
            if state is None:
                raise
            # gold has no session, and the environment grades nothing without one: it says nothing of the verifier
    return _unverifiable(environment, result)


async def judge_group(
    environment: GroupEnvironment, row: dict[str, Any], rollouts: list[dict[str, Any]], pool: WorkerPool
) -> list[Verdict]:
    """One verdict a rollout, in their order. Raises RowError or FailureError, for all of them."""
    parsed = environment.check_row(row)
    target = "verify_group_in_worker"
    result = await _settled(environment, target, (row, rollouts), pool)
    broken: dict[int, Verdict] = {}
    if isinstance(result, tuple):
        for index, rollout in enumerate(rollouts):
            alone = await _settled(environment, target, (row, [rollout]), pool)
            if isinstance(alone, tuple):
                broken[index] = _unverifiable(environment, alone)
        gold = environment.gold(parsed)
        if not broken:
            raise _crash(environment, f"the group breaks the verifier, no rollout alone does: {result[1]}")
        if gold is not None:
            try:
                await _attempt(environment, target, (row, [{"output": gold}]), pool, fresh=True)
            except WorkerError as error:
                raise _crash(environment, f"the gold answer breaks the verifier too: {error}") from None
        elif len(broken) == len(rollouts):
            raise _crash(environment, f"every rollout of the group breaks the verifier: {result[1]}")
        left = [rollout for index, rollout in enumerate(rollouts) if index not in broken]
        result = await _settled(environment, target, (row, left), pool) if left else []
        if isinstance(result, tuple):
            raise _crash(environment, f"the group breaks the verifier without those that do alone: {result[1]}")
    verdicts = iter([check_range(environment, Verdict.model_validate(verdict)) for verdict in result])
    judged = [broken[index] if index in broken else next(verdicts, None) for index in range(len(rollouts))]
    if None in judged or next(verdicts, None) is not None:
        raise _crash(environment, f"{len(result)} verdicts for {len(rollouts) - len(broken)} rollouts")
    return [verdict for verdict in judged if verdict is not None]
