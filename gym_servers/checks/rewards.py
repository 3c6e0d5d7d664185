"""Checks of verdicts: cases, gold answers, probes, sameness, speed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

from gym_servers.checks.bench import Bench, Broken, Finding, NotAsked, Outcome, Refused, Task, found
from gym_servers.checks.probes import OTHERS_SHARE, RANDOM_SHARE, hacks, random_text
from gym_servers.environment import GroupEnvironment, StatefulEnvironment
from gym_servers.protocol import Item, OmnigymError, Verdict
from gym_servers.rows import parse_line, read_lines
from gym_servers.workers import WorkerPool

Case = dict[str, Any]


def read_cases(bench: Bench) -> list[Case]:
    """Lines of cases.jsonl: `{id, request, expected: {reward} | {rewards} | {error}}`; `error` is a regular expression. Raises
    OmnigymError."""
    path = bench.environment.folder() / "cases.jsonl"
    cases, seen = [], set()
    for where, line in read_lines(path):
        case = parse_line(line, where)
        expected = case.get("expected")
        if not isinstance(case.get("request"), dict) or not isinstance(expected, dict) or "id" not in case:
            raise OmnigymError(f"{where}: a case has 'id', 'request' and 'expected'")
        if len({"reward", "rewards", "error"} & set(expected)) != 1:
            raise OmnigymError(f"{where}: 'expected' has one of 'reward', 'rewards' and 'error'")
        if case["id"] in seen:
            raise OmnigymError(f"{where}: id '{case['id']}' is there twice")
        seen.add(case["id"])
        cases.append(case)
    return cases


def split_case(case: Case) -> tuple[dict[str, Any], list[Item]]:
    """(row, output) of a case that grades one rollout."""
    row = {key: value for key, value in case["request"].items() if key != "response"}
    response = case["request"].get("response")
    output = response.get("output") if isinstance(response, dict) else None
    return row, output if isinstance(output, list) else []


async def _case_problem(bench: Bench, case: Case) -> tuple[str | None, Outcome | None]:
    expected = case["expected"]
    outcome: Any
    if "rollouts" in case["request"]:
        rollouts = [split_case({"request": rollout})[1] for rollout in case["request"]["rollouts"]]
        outcome = await bench.grade_group(case["request"].get("task") or {}, rollouts)
        got: Any = [verdict.reward for verdict in outcome] if isinstance(outcome, list) else outcome
        wanted = expected.get("rewards")
    else:
        outcome = await bench.grade(*split_case(case))
        got, wanted = (outcome.reward if isinstance(outcome, Verdict) else outcome), expected.get("reward")
    if isinstance(outcome, NotAsked):
        return None, outcome
    if "error" in expected:
        if isinstance(outcome, Refused) and re.search(expected["error"], outcome.message):
            return None, None
        return f"case '{case['id']}': expected an error that says '{expected['error']}', got {outcome}", None
    flat = zip(got if isinstance(got, list) else [got], wanted if isinstance(wanted, list) else [wanted], strict=False)
    if all(isinstance(a, float | int) and abs(a - b) < 1e-6 for a, b in flat):
        return None, outcome
    return f"case '{case['id']}': expected {wanted}, got {got}", None


async def check_cases(bench: Bench, cases: list[Case]) -> tuple[Finding, list[Case]]:
    """Every case gives what it expects; among them are right, wrong and malformed ones. Also the cases whose verdict is cheap: those
    that no worker broke over."""
    answers = [await _case_problem(bench, case) for case in cases]
    problems = [problem for problem, _ in answers if problem]
    skipped = [outcome for _, outcome in answers if isinstance(outcome, NotAsked)]
    rewards = [r for case in cases for r in case["expected"].get("rewards", [case["expected"].get("reward")])]
    if bench.full not in rewards:
        problems.append(f"no case earns the full reward {bench.full:g}")
    if not any(reward is not None and reward < bench.full for reward in rewards):
        problems.append("no case earns less than the full reward")
    if not any("error" in case["expected"] for case in cases):
        problems.append("no case is malformed: add one with expected {error}")
    costly = [isinstance(outcome, Verdict) and "unverifiable_output" in outcome.parts for _, outcome in answers]
    cheap = [case for case, slow in zip(cases, costly, strict=True) if not slow]
    return found("cases", problems, f"{len(cases)} cases", skipped, len(cases)), cheap


async def check_gold(bench: Bench, tasks: list[Task]) -> Finding:
    """The gold answer of every generated task earns the full reward; where there is a state, also as an episode."""
    problems, skipped = [], list[NotAsked]()
    for task in tasks:
        if task.gold is None:
            problems.append(f"{task.name}: gold() makes no answer")
            continue
        outcomes = [await bench.grade(task.row, task.gold)]
        if isinstance(bench.environment, StatefulEnvironment):
            outcomes.append(await bench.grade(task.row, task.gold, state=await bench.play(task.row, task.gold)))
        for outcome, how in zip(outcomes, ("", " in a session"), strict=False):
            if isinstance(outcome, NotAsked):
                skipped.append(outcome)
            elif not isinstance(outcome, Verdict):
                problems.append(f"{task.name}{how}: {outcome.message}")
            elif outcome.reward < bench.full:
                problems.append(f"{task.name}{how}: {outcome.reward:g}, {outcome.explanation}")
    return found("gold answers", problems, f"{len(tasks)} tasks earn {bench.full:g}", skipped, len(tasks))


async def _earns(bench: Bench, task: Task, output: list[Item]) -> bool | Broken | NotAsked:
    """Whether `output` earns the full reward: alone, or in a group as much as the gold answer."""
    if isinstance(bench.environment, GroupEnvironment) and task.gold is not None:
        verdicts = await bench.grade_group(task.row, [task.gold, output])
        if isinstance(verdicts, list):
            return verdicts[1].reward >= verdicts[0].reward
        return verdicts if isinstance(verdicts, Broken | NotAsked) else False
    outcome = await bench.grade(task.row, output)
    if isinstance(outcome, Broken | NotAsked):
        return outcome
    return isinstance(outcome, Verdict) and outcome.reward >= bench.full


async def check_probes(bench: Bench, tasks: list[Task]) -> list[Finding]:
    """Hacks, the environment's own probes, guesses."""
    hacked: dict[str, list[str]] = {}
    own: set[str] = set()
    problems, skipped, tried = list[str](), list[NotAsked](), 0
    guesses = {"random text": [RANDOM_SHARE, 0], "another task's answer": [OTHERS_SHARE, 0]}
    for number, task in enumerate(tasks):
        special = bench.environment.probes(bench.environment.check_row(task.row))
        own |= set(special)
        for name, output in {**hacks(task.row, task.gold), **special}.items():
            tried += 1
            earned = await _earns(bench, task, output)
            if isinstance(earned, NotAsked):
                skipped.append(earned)
            elif isinstance(earned, Broken):
                problems.append(f"'{name}' on {task.name}: {earned.message}")
            elif earned:
                hacked.setdefault(name, []).append(task.name)
        other = next(
            (one.gold for one in tasks[number + 1 :] + tasks[:number] if one.gold not in (None, task.gold)), None
        )
        for name, guess in (("random text", random_text(number)), ("another task's answer", other)):
            guesses[name][1] += guess is not None and await _earns(bench, task, guess) is True
    problems += [
        f"'{name}' earns the full reward on {len(names)} of {len(tasks)} tasks, such as {names[0]}"
        for name, names in hacked.items()
    ]
    lucky = [
        f"'{name}' earns the full reward on {hits:g} of {len(tasks)} tasks; at most {share:.0%} is chance"
        for name, (share, hits) in guesses.items()
        if hits > share * len(tasks)
    ]
    rates = ", ".join(f"{name} {hits:g}" for name, (_, hits) in guesses.items())
    named = f", its own: {', '.join(sorted(own))}" if own else ", none of its own"
    return [
        found("probes: hacks", problems, f"{tried} outputs earn less than {bench.full:g}{named}", skipped, tried),
        found("probes: guesses", lucky, f"right by chance, of {len(tasks)} tasks: {rates}"),
    ]


def _same(outcome: Outcome) -> str:
    return outcome.model_dump_json() if isinstance(outcome, Verdict) else repr(outcome)


async def check_sameness(
    bench: Bench, graded: list[tuple[str, dict[str, Any], list[Item]]], other: WorkerPool
) -> Finding:
    """Each verdict twice, and all in parallel by `verify` in other processes: what `quick` says is the same, and hashes of strings
    differ there."""
    first = [await bench.grade(row, output) for _, row, output in graded]
    again = [await bench.grade(row, output) for _, row, output in graded]
    parallel = await asyncio.gather(*(bench.verify(row, output, other) for _, row, output in graded))
    problems = [
        f"{name}: {_same(one)[:150]} and then {_same(two if _same(two) != _same(one) else three)[:150]}"
        for (name, _, _), one, two, three in zip(graded, first, again, parallel, strict=True)
        if not _same(one) == _same(two) == _same(three)
    ]
    skipped = [outcome for outcome in first if isinstance(outcome, NotAsked)]
    return found("same verdict again", problems, f"{len(graded)} outputs, thrice", skipped, len(graded))


async def check_speed(bench: Bench, graded: list[tuple[str, dict[str, Any], list[Item]]]) -> Finding:
    """Measured, not judged: the load of the machine decides it too."""
    seconds = []
    for _, row, output in graded:
        began = time.perf_counter()
        await bench.grade(row, output)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    await asyncio.gather(*(bench.grade(row, output) for _, row, output in graded))
    rate = len(graded) / (time.perf_counter() - began)
    p50, p99 = (sorted(seconds)[min(len(seconds) - 1, int(q * len(seconds)))] * 1e3 for q in (0.5, 0.99))
    return Finding("speed", "ok", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {rate:.0f} verdicts/s ({len(graded)} outputs)")


def graded_outputs(cases: list[Case], tasks: list[Task], most: int) -> list[tuple[str, dict[str, Any], list[Item]]]:
    """Up to `most` cases, evenly drawn, and all gold answers: (name, row, output)."""
    single = [case for case in cases if "rollouts" not in case["request"] and "error" not in case["expected"]]
    drawn = single[:: max(1, len(single) // most)] if single else []
    named = [(f"case '{case['id']}'", *split_case(case)) for case in drawn]
    return named + [(task.name, task.row, task.gold) for task in tasks if task.gold is not None]


def distinct(values: list[Any]) -> int:
    """How many different values there are."""
    return len({json.dumps(value, sort_keys=True, default=str) for value in values})
