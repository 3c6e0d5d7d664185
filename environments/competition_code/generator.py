"""Seeded programming tasks, from adding a constant (with worked examples) to dynamic programming over digits.

Half ask for a program, half for a function. Tests are computed here by trusted references; the first of them are shown as
examples, the others are not, and repeat no output often, so that no fixed answer passes. A hash of the family and its constants
decides to which split a problem belongs, so train and held-out share none.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from environments.competition_code.problem import Constants, Problem, written
from environments.competition_code.problems_algorithms import ALGORITHMS
from environments.competition_code.problems_rules import RULES
from environments.competition_code.problems_short import SHORT

PROBLEMS = [*SHORT, *RULES, *ALGORITHMS]
BY_NAME = {problem.name: problem for problem in PROBLEMS}
TESTS = 10
VISIBLE = 2
"""How many of the tests, the first ones, are in the prompt."""
MAX_EQUAL_OUTPUTS = 3
_TRIES = 200

_FRAMES = {
    False: (
        "Write a Python program that prints {ask}. Input: {form}.",
        "Standard input has {form}. Write a Python program that reads it and prints {ask}.",
        "Read {form}; then print {ask}. Answer with a Python program.",
    ),
    True: (
        "Write a Python function `{signature}` that returns {ask}.",
        "Complete the Python function `{signature}`: it returns {ask}.",
        "What is needed is {ask}. Write it as a Python function `{signature}`.",
    ),
}
_CLOSING = "Put the code in a block that begins with ```python and ends with ```."


def is_heldout(name: str, constants: Constants) -> bool:
    """The split of a problem."""
    key = f"{name}|{json.dumps(constants, sort_keys=True)}"
    return hashlib.sha256(key.encode()).digest()[0] < 64


def draw(
    problem: Problem, r: random.Random, heldout: bool, as_function: bool, but: Sequence[Constants] = ()
) -> tuple[Constants, dict[str, Any]]:
    """Constants of a problem of that split, none of `but`, and its tests."""
    while True:
        constants = problem.constants(r)
        if is_heldout(problem.name, constants) == heldout and constants not in but:
            tests = unit_tests(problem, constants, as_function, r)
            if tests is not None:
                return constants, tests


def unit_tests(problem: Problem, constants: Constants, as_function: bool, r: random.Random) -> dict[str, Any] | None:
    """TESTS different tests of growing size; None where the constants make too many answers the same."""
    inputs: list[str] = []
    outputs: list[str] = []
    seen: Counter[str] = Counter()
    for size in range(TESTS):
        for _ in range(_TRIES):
            arguments = problem.arguments(r, size, constants)
            answer = problem.answer(constants, arguments)
            given, expected = _texts(problem, arguments, answer, as_function)
            if given not in inputs and seen[expected] < MAX_EQUAL_OUTPUTS:
                break
        else:
            return None
        inputs.append(given)
        outputs.append(expected)
        seen[expected] += 1
    if len(set(outputs) - set(outputs[:VISIBLE])) < VISIBLE:
        return None
    return {"inputs": inputs, "outputs": outputs, **({"fn_name": problem.name} if as_function else {})}


def _texts(problem: Problem, arguments: Sequence[Any], answer: Any, as_function: bool) -> tuple[str, str]:
    if as_function:
        return "\n".join(json.dumps(argument) for argument in arguments), json.dumps(answer)
    lines = [written(kind, argument) for (_, kind), argument in zip(problem.parameters, arguments, strict=True)]
    return "\n".join(lines) + "\n", f"{answer}\n"


def statement(problem: Problem, constants: Constants, tests: dict[str, Any], r: random.Random) -> str:
    """What the model is asked, with the visible tests."""
    as_function = "fn_name" in tests
    text = r.choice(_FRAMES[as_function]).format(
        ask=problem.ask(r.randrange(len(problem.asks)), constants),
        form=problem.input_form(),
        signature=problem.signature(),
    )
    for given, expected in zip(tests["inputs"][:VISIBLE], tests["outputs"], strict=False):
        if as_function:
            text += f"\nExample: {problem.name}({', '.join(given.splitlines())}) returns {expected}"
        else:
            text += f"\nExample input:\n{given}Example output:\n{expected.rstrip()}"
    return f"{text}\n{_CLOSING}"


def fenced(code: str) -> str:
    """`code` as an answer."""
    return f"```python\n{code.rstrip()}\n```"


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). Worked examples are of the train split."""
    for k in range(n):
        r = random.Random(f"competition_code|{seed}|{split}|{k}")
        problem = PROBLEMS[k % len(PROBLEMS)]
        as_function = r.random() < 0.5
        constants, tests = draw(problem, r, split == "heldout", as_function)
        turns: list[dict[str, str]] = []
        used = [constants]
        for _ in range(problem.shots):  # other problems than the task's: copying an example earns nothing
            shown, examples = draw(problem, r, False, as_function, used)
            used.append(shown)
            turns.append({"role": "user", "content": statement(problem, shown, examples, r)})
            turns.append({"role": "assistant", "content": fenced(problem.program(shown, as_function))})
        turns.append({"role": "user", "content": statement(problem, constants, tests, r)})
        yield {
            "responses_create_params": {"input": turns},
            "verifier_metadata": {"unit_tests": tests},
            "family": problem.name,
            "constants": constants,
            "difficulty": problem.difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "competition_code"},
        }
