"""The records: what is kept, what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gym_servers.protocol import Segment, Task, Verdict, final_text, row_task_id, strip_reasoning


def test_a_task_keeps_the_environment_s_own_fields() -> None:
    row = {"responses_create_params": {"input": "hi"}, "expected_answer": "4", "agent_ref": {"name": "a", "v": 1}}
    assert Task.model_validate(row).row()["expected_answer"] == "4"


def test_identical_rows_do_not_merge() -> None:
    row = {"responses_create_params": {"input": "hi"}}
    assert row_task_id(row, 0) != row_task_id(row, 1)
    assert row_task_id(row, 0) == row_task_id(dict(row), 0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_is_finite(reward: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Verdict(reward=reward, explanation="")


def test_segment_arrays_have_one_length() -> None:
    with pytest.raises(ValidationError, match="differ in length"):
        Segment(token_ids=[1, 2], mask=[0], lp_gen=[0.0, 0.0])


def test_reasoning_is_never_read() -> None:
    output = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "5"}]},
    ]
    assert final_text(output) == "4"


@pytest.mark.parametrize(
    "content", [5, True, None, {"text": "4"}, [4, None, [{}]], [{"type": "output_text", "text": 4}]]
)
def test_content_that_is_no_text_has_none(content: object) -> None:
    assert final_text([{"type": "message", "role": "assistant", "content": content}]) == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>5</think>4", "4"),
        ("5</think> 4", "4"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("4 <think>5", "4 "),
        (" plain ", " plain "),
    ],
)
def test_leaked_reasoning_is_removed(text: str, left: str) -> None:
    assert strip_reasoning(text) == left
