"""An infrastructure failure is never a reward, and breaking the grader never pays."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import toy_environment

from gym_servers import verification
from gym_servers.environment import Row
from gym_servers.protocol import Failure, FailureError, Item, RowError, Verdict, final_text
from gym_servers.workers import WorkerPool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setattr(verification, "WALL_MINIMUM", 3.0)
    monkeypatch.setattr(verification, "WALL_FACTOR", 1.0)
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


@pytest.fixture(autouse=True)
def through_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is no installed entry point: its own function stands for verify_in_worker."""
    original = WorkerPool.run

    async def run(self: WorkerPool, target: str, args: tuple[Any, ...], **limits: Any) -> Any:
        return await original(
            self, target.replace("gym_servers.verification:verify", "toy_environment:verify"), args, **limits
        )

    monkeypatch.setattr(WorkerPool, "run", run)


def message(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def judge(pool: WorkerPool, text: str, answer: str = "4") -> Any:
    row = {"task_id": "t1", "answer": answer}
    return asyncio.run(verification.judge(toy_environment.Toy(), row, message(text), pool))


def test_right_and_wrong(pool: WorkerPool) -> None:
    assert judge(pool, "4").reward == 1.0
    assert judge(pool, "5").reward == 0.0


@pytest.mark.parametrize("text", ["burn", "eat", "brackets", "sleep", "raise", "exit"])
def test_an_answer_that_breaks_the_grader_scores_zero_and_is_counted(pool: WorkerPool, text: str) -> None:
    verdict = judge(pool, text)
    assert verdict.reward == 0.0
    assert verdict.parts == {"unverifiable_output": True}


def test_a_verifier_that_breaks_on_gold_too_is_a_failure(pool: WorkerPool) -> None:
    with pytest.raises(FailureError, match="gold answer breaks the verifier too"):
        judge(pool, "raise", answer="exit")


def test_a_reward_out_of_range_is_a_failure(pool: WorkerPool) -> None:
    with pytest.raises(FailureError, match="outside"):
        judge(pool, "1.5")


def test_a_bad_row_names_environment_task_and_field(pool: WorkerPool) -> None:
    with pytest.raises(
        RowError, match=r"environment 'toy' task 't9': field 'answer': Field required; found fields \['task_id'\]"
    ):
        asyncio.run(verification.judge(toy_environment.Toy(), {"task_id": "t9"}, message("4"), pool))


def test_a_worker_lost_once_is_retried_with_the_same_output(pool: WorkerPool, tmp_path: Any) -> None:
    assert judge(pool, f"once:{tmp_path}/mark").reward == 1.0


@pytest.mark.parametrize(
    ("plan", "left", "reward"),
    [
        ("raise 4", "", 1.0),
        ("killed 4", "", 1.0),
        ("raise raise 4", "", 1.0),
        ("killed raise 4", "", 1.0),
        ("raise raise raise", "", 0.0),
        ("killed raise exit", "", 0.0),
        ("raise killed raise", "raise", None),
        ("killed killed raise", "raise", None),
        ("raise raise killed", "", None),
        ("killed raise killed", "", None),
    ],
)
def test_only_two_fresh_workers_broken_by_content_make_a_zero(
    pool: WorkerPool, tmp_path: Any, plan: str, left: str, reward: float | None
) -> None:
    path = tmp_path / "plan"
    path.write_text(plan)
    if reward is None:
        with pytest.raises(FailureError, match="ended by SIGTERM") as caught:
            judge(pool, f"plan:{path}")
        assert caught.value.failure.kind == "verifier_crash" and caught.value.failure.retryable
    else:
        verdict = judge(pool, f"plan:{path}")
        assert verdict.reward == reward
        assert verdict.parts.get("unverifiable_output", False) is (reward == 0.0)
    assert path.read_text() == left


class Hasty(toy_environment.Toy):
    """Breaks in the server's own process, whatever the answer."""

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        raise {"row": RowError("row"), "failure": FailureError(Failure(kind="timeout", message="late"))}.get(
            final_text(output), ZeroDivisionError("0.0 to a negative power")
        )


def test_what_breaks_quick_is_decided_by_a_worker(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    def hasty(text: str) -> Verdict:
        return asyncio.run(verification.judge(Hasty(), {"task_id": "t1", "answer": "4"}, message(text), pool))

    assert (hasty("4").reward, hasty("5").reward) == (1.0, 0.0)
    assert "environment 'toy' task 't1': quick raised ZeroDivisionError" in caplog.text
    assert hasty("raise").parts == {"unverifiable_output": True}
    with pytest.raises(RowError, match="row"):
        hasty("row")
    with pytest.raises(FailureError, match="late"):
        hasty("failure")
