"""Seeded tasks: competition_math's kinds where computing helps, and larger ones of its own. All declare the tool.

Train and held-out never share a question; worked examples are train questions and show a call of the tool.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from environments.competition_math.generator import FAMILIES, INSTRUCTION, draw
from environments.math_with_python.problems import PROBLEMS

SHARED = ("product", "two_digit_sum", "percentage", "common_divisor", "linear_equation", "modular_power")
"""competition_math's families that are asked here too."""
_OPENINGS = ("", "Use the tool where it helps. ", "You can run Python. ")

_ALL = [(name, level, shots, make, False) for name, level, shots, make in FAMILIES if name in SHARED]
_ALL += [(name, level, shots, make, True) for name, level, shots, make in PROBLEMS]
TASKS = sorted(_ALL, key=lambda task: task[1])
"""name, difficulty, worked examples, maker, whether its middle is a program; by difficulty."""


def _shown(question: str, middle: str, answer: str, is_program: bool, call_id: str) -> list[dict[str, Any]]:
    """A worked example as input items."""
    user = {"role": "user", "content": f"{question} {INSTRUCTION}"}
    if not is_program:
        return [user, {"role": "assistant", "content": f"{middle} \\boxed{{{answer}}}"}]
    call = {"type": "function_call", "name": "python", "arguments": json.dumps({"code": middle}), "call_id": call_id}
    return [
        user,
        {**call, "status": "completed"},
        {"type": "function_call_output", "call_id": call_id, "output": f"{answer}\n"},
        {"role": "assistant", "content": f"\\boxed{{{answer}}}"},
    ]


def generate(n: int, seed: int, split: str, tools: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). tools: as they are declared to the model."""
    for k in range(n):
        r = random.Random(f"math_with_python|{seed}|{split}|{k}")
        family, difficulty, shots, make, is_program = TASKS[k % len(TASKS)]
        question, _, answer = draw(family, make, r, split == "heldout")
        items: list[dict[str, Any]] = []
        for number in range(shots):
            shown = draw(family, make, r, False)
            while shown[0] == question or shown[2] == answer:  # copying an example earns nothing
                shown = draw(family, make, r, False)
            items += _shown(*shown, is_program, f"call_example_{number}")
        items.append({"role": "user", "content": f"{r.choice(_OPENINGS)}{question} {INSTRUCTION}"})
        yield {
            "responses_create_params": {"input": items, "tools": tools},
            "question": question,
            "expected_answer": answer,
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "math_with_python"},
        }
