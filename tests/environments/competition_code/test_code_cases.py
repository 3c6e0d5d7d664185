"""competition_code in its sandbox: its own cases, its generated tasks with gold and probes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from environments.competition_code.generator import BY_NAME, PROBLEMS, VISIBLE, is_heldout
from environments.competition_code.server import CodeSettings, CompetitionCode
from gym_servers.environment import opened
from gym_servers.protocol import FailureError, Item, RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

CASES = [json.loads(line) for line in (CompetitionCode.folder() / "cases.jsonl").read_text().splitlines()]
Graded = tuple[dict[str, Any], list[Item]]


def message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def fenced(code: str) -> list[Item]:
    return message(f"```python\n{code}\n```")


def grade_all(pairs: list[Graded], **settings: Any) -> list[Verdict | RowError]:
    """Verdicts in the order of (row, output) pairs, given at once by one open environment."""
    environment = CompetitionCode(CodeSettings(**settings))

    async def one(row: dict[str, Any], output: list[Item]) -> Verdict | RowError:
        try:
            return await judge(environment, row, output, pool)
        except RowError as error:
            return error

    async def run() -> list[Verdict | RowError]:
        async with opened(environment):
            return await asyncio.gather(*(one(*pair) for pair in pairs))

    pool = WorkerPool(1)  # never used: no verdict of this environment needs a worker
    try:
        return asyncio.run(run())
    finally:
        pool.close()


def grade(row: dict[str, Any], output: list[Item], **settings: Any) -> Verdict:
    (verdict,) = grade_all([(row, output)], **settings)
    assert isinstance(verdict, Verdict), verdict
    return verdict


def stdin_row(*tests: tuple[str, str]) -> dict[str, Any]:
    inputs, outputs = [given for given, _ in tests], [expected for _, expected in tests]
    return {"verifier_metadata": {"unit_tests": {"inputs": inputs, "outputs": outputs}}}


@pytest.fixture(scope="module")
def graded() -> Iterator[dict[str, Verdict | RowError]]:
    pairs = [
        ({k: v for k, v in case["request"].items() if k != "response"}, case["request"]["response"]["output"])
        for case in CASES
    ]
    yield dict(zip([case["id"] for case in CASES], grade_all(pairs), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], graded: dict[str, Verdict | RowError]) -> None:
    got = graded[case["id"]]
    if "error" in case["expected"]:
        assert isinstance(got, RowError) and case["expected"]["error"] in str(got)
        assert "environment 'competition_code'" in str(got)
    else:
        assert isinstance(got, Verdict), got
        assert got.reward == case["expected"]["reward"], got.explanation
        assert (got.parts["tests_passed"] == got.parts.get("tests_counted")) is (got.reward == 1.0)


def test_every_problem_is_solved_by_its_gold_and_by_no_probe() -> None:
    """In both splits; one problem of each family also in the other form."""
    environment = CompetitionCode()
    rows = list(environment.generate(len(PROBLEMS), 7, "train")) + list(environment.generate(9, 8, "heldout"))
    pairs: list[tuple[str, Graded]] = []
    for row in rows:
        parsed = environment.check_row(row)
        gold = environment.gold(parsed)
        assert gold is not None
        pairs.append(("gold", (row, gold)))
    for row in rows[::6]:
        pairs += [(name, (row, output)) for name, output in environment.probes(environment.check_row(row)).items()]
    for (name, (row, _)), got in zip(pairs, grade_all([pair for _, pair in pairs]), strict=True):
        assert isinstance(got, Verdict), got
        assert got.reward == float(name == "gold"), (name, row["family"], got.explanation)
        if name == "knows_the_examples":
            assert got.parts["tests_passed"] >= VISIBLE  # it ran, and hidden tests caught it
    assert {name for name, _ in pairs} >= {"reads_memory", "equals_everything", "knows_the_examples"}


def test_generated_tasks_are_deterministic_varied_and_split() -> None:
    environment = CompetitionCode()
    rows = list(environment.generate(100, 3, "train"))
    assert rows == list(environment.generate(100, 3, "train"))
    assert rows[:10] == list(environment.generate(10, 3, "train"))
    assert rows != list(environment.generate(100, 4, "train"))
    assert {row["family"] for row in rows} == set(BY_NAME)
    assert all(0.0 <= row["difficulty"] <= 1.0 for row in rows)
    assert [problem.difficulty for problem in PROBLEMS] == sorted(problem.difficulty for problem in PROBLEMS)
    asked = [row["responses_create_params"]["input"][-1]["content"] for row in rows]
    assert len(set(asked)) == 100
    functions = sum("fn_name" in row["verifier_metadata"]["unit_tests"] for row in rows)
    assert 25 <= functions <= 75


def test_train_and_heldout_share_no_problem_and_examples_are_train_s() -> None:
    environment = CompetitionCode()

    def problems(split: Any, seed: int) -> set[str]:
        rows = environment.generate(6 * len(PROBLEMS), seed, split)
        return {json.dumps([row["family"], row["constants"]], sort_keys=True) for row in rows}

    train, heldout = problems("train", 0), problems("heldout", 1)
    assert not train & heldout
    assert len(train) > 3 * len(PROBLEMS) and len(heldout) > len(PROBLEMS)
    assert {json.loads(one)[0] for one in heldout} == set(BY_NAME)
    assert not any(is_heldout(*json.loads(one)) for one in train)


def test_hidden_tests_hold_what_the_prompt_does_not() -> None:
    for row in CompetitionCode().generate(2 * len(PROBLEMS), 5, "train"):
        tests = row["verifier_metadata"]["unit_tests"]
        assert len(tests["inputs"]) == len(set(tests["inputs"])) == len(tests["outputs"]) == 10, row["family"]
        most = max(tests["outputs"].count(one) for one in tests["outputs"])
        assert most <= 3, (row["family"], row["constants"])  # a fixed answer fails
        assert len(set(tests["outputs"]) - set(tests["outputs"][:VISIBLE])) >= 2
        prompt = row["responses_create_params"]["input"][-1]["content"]
        hidden = [given for given in tests["inputs"][VISIBLE:] if len(given) > 12]
        assert not any(given.strip() in prompt for given in hidden), row["family"]


def test_the_first_tests_count_and_the_verdict_says_so() -> None:
    row = stdin_row(("1", "1"), ("2", "2"), ("3", "9"))
    echo = fenced("print(input())")
    cut = grade(row, echo, max_tests=2)
    assert cut.reward == 1.0 and "1 more of the row do not count" in cut.explanation
    assert (cut.parts["tests_counted"], cut.parts["tests_total"]) == (2, 3)
    whole = grade(row, echo)
    assert whole.reward == 0.0 and whole.parts["tests"] == ["passed", "passed", "wrong"]
    assert "line 1 is '3', expected '9'" in whole.explanation


class FakeSandbox:
    """Runs nothing: what each run is said to have used, and the limits that it was given."""

    def __init__(self, *runs: dict[str, Any]) -> None:
        self.runs, self.limits = list(runs), list[tuple[float, float]]()

    async def run(self, source: str, *, limits: Any, **given: Any) -> SimpleNamespace:
        self.limits.append((limits.cpu_seconds, limits.wall_seconds))
        used = {
            "status": "exited",
            "exit_code": 0,
            "stdout": b"1",
            "stderr": b"",
            "cpu_seconds": 0.0,
            "wall_seconds": 0.0,
        }
        return SimpleNamespace(**{**used, **self.runs.pop(0)})


def graded_by(fake: FakeSandbox, **settings: Any) -> Verdict:
    """The verdict on four tests that all want 1."""
    environment = CompetitionCode(CodeSettings(**settings))
    environment._sandbox = fake  # type: ignore[assignment]
    row = environment.check_row(stdin_row(*(("", "1") for _ in range(4))))
    return asyncio.run(environment.verify_awaited(row, fenced("print(1)")))


def test_all_tests_share_a_budget_of_time() -> None:
    spinning = FakeSandbox(*({"cpu_seconds": 6.0} for _ in range(4)))
    verdict = graded_by(spinning, test_cpu_seconds=8.0, verify_cpu_seconds=10.0)
    assert [cpu for cpu, _ in spinning.limits] == [8.0, 4.0]
    assert verdict.reward == 0.0 and verdict.parts["tests"] == ["passed", "passed", "timed_out"]
    sleeping = FakeSandbox(*({"wall_seconds": 50.0} for _ in range(4)))
    verdict = graded_by(sleeping, test_wall_seconds=60.0, verify_wall_seconds=120.0)
    assert [wall for _, wall in sleeping.limits] == [60.0, 60.0, 20.0]
    assert verdict.reward == 0.0 and verdict.parts["tests"] == [*["passed"] * 3, "timed_out"]
    assert graded_by(FakeSandbox({}, {}, {}, {})).reward == 1.0


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        ({"status": "timed_out", "exit_code": None}, "timed_out"),
        ({"status": "memory", "exit_code": None}, "memory"),
        ({"status": "output", "exit_code": None}, "output"),
        ({"status": "killed", "exit_code": None}, "crashed"),
        ({"exit_code": 1, "stderr": b"Traceback\nMemoryError\n"}, "memory"),
        ({"exit_code": 1, "stderr": b"Traceback\nValueError: \xff\n"}, "crashed"),
        ({"exit_code": 1}, "crashed"),
        ({"stdout": b"2"}, "wrong"),
        ({"stdout": b"\xff"}, "wrong"),
    ],
)
def test_a_right_output_counts_only_where_the_run_ended_well(run: dict[str, Any], outcome: str) -> None:
    fake = FakeSandbox({}, run)
    verdict = graded_by(fake)
    assert verdict.reward == 0.0 and verdict.parts["tests"] == ["passed", outcome]
    assert verdict.parts["outcome"] == outcome and not fake.runs


def test_a_verdict_without_a_sandbox_is_a_failure() -> None:
    environment = CompetitionCode()
    pool = WorkerPool(1)
    with pytest.raises(FailureError, match="its sandbox is not started"):
        asyncio.run(judge(environment, stdin_row(("1", "1")), fenced("print(1)"), pool))
    pool.close()
