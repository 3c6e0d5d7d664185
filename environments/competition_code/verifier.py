"""Pure parts of the verdict on a program: the code in an answer, whether an output is the expected one, and the verdict on all tests.

Everything here is linear in its input and runs in the server's process; the program itself only ever runs in the sandbox, where no
expected output is. Comparison of lines and decimals follows NeMo-Gym's code_gen (LiveCodeBench's rules).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from gym_servers.protocol import Verdict

Outcome = Literal["passed", "wrong", "timed_out", "crashed", "memory", "output"]
"""Of one test. output: the program printed more than the limit."""

FENCE = "```"
RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""Tolerances of a returned float (numpy.allclose's)."""
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
_MAX_INT_DIGITS = 4000
"""Python refuses to read longer ones, as reading takes quadratic time; Decimal reads them in linear time."""
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Result:
    """How one test ended. difference: what was wrong, "" where it passed."""

    outcome: Outcome
    difference: str = ""


def extract_code(text: str) -> str | None:
    """What stands between the last two lines that hold a fence; None where there are not two, or nothing but blanks between them."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if FENCE in line]
    if len(fences) < 2:
        return None
    code = "\n".join(lines[fences[-2] + 1 : fences[-1]])
    return code if code.strip() else None


def shown(text: str) -> str:
    """`text` in quotes, short enough for an explanation, and always encodable."""
    text = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
    return "'" + text.encode("utf-8", "backslashreplace").decode() + "'"


def _decimals(line: str) -> list[Decimal] | None:
    """The line as finite decimals, exactly; None where one of its words is anything else."""
    words = line.split()
    return [Decimal(word) for word in words] if all(_DECIMAL.fullmatch(word) for word in words) else None


def text_difference(expected: str, printed: str) -> str:
    """Where `printed` is not `expected`; "" where it is. Lines are compared without blanks around them; two lines of numbers are
    equal where each number is, exactly: `1e3` is 1000, 0.30000000000000004 is not 0.3."""
    wanted, given = expected.strip().split("\n"), printed.strip().split("\n")
    for number, (want, got) in enumerate(zip(wanted, given, strict=False), 1):
        want, got = want.strip(), got.strip()
        if want == got:
            continue
        decimals = _decimals(got)
        if not decimals or decimals != _decimals(want):
            return f"line {number} is {shown(got)}, expected {shown(want)}"
    if len(wanted) != len(given):
        return f"{len(given)} lines printed, expected {len(wanted)}"
    return ""


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else Decimal(digits)


def read_json(text: str) -> Any:
    """The JSON value that `text` is. Raises ValueError, also for what is nested too deep. Takes linear time."""
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _same_number(expected: Any, given: Any) -> bool:
    if expected == given or (expected != expected and given != given):  # NaN equals itself here
        return True
    if isinstance(expected, Decimal) or isinstance(given, Decimal):
        return False
    try:
        want, got = float(expected), float(given)
    except OverflowError:
        return False
    relative = RELATIVE if isinstance(expected, float) else 0.0  # an expected integer is exact
    if isinstance(given, int) and isinstance(expected, int):
        return False
    return abs(want - got) <= ABSOLUTE + relative * abs(want) and abs(want) != float("inf")


def same_value(expected: Any, given: Any) -> bool:
    """Whether two JSON values are the same: numbers as Python compares them (True is 1, 3.0 is 3), and within numpy.allclose's
    tolerance where the expected one is a float."""
    pairs = [(expected, given)]
    while pairs:
        want, got = pairs.pop()
        if isinstance(want, list) and isinstance(got, list):
            if len(want) != len(got):
                return False
            pairs.extend(zip(want, got, strict=True))
        elif isinstance(want, dict) and isinstance(got, dict):
            if want.keys() != got.keys():
                return False
            pairs.extend((value, got[key]) for key, value in want.items())
        elif isinstance(want, int | float | Decimal) and isinstance(got, int | float | Decimal):
            if not _same_number(want, got):
                return False
        elif type(want) is not type(got) or want != got:
            return False
    return True


def value_difference(expected: str, returned: str) -> str:
    """Where the JSON text `returned` is not the value `expected`; "" where it is. Raises ValueError where `expected` is no JSON."""
    wanted = read_json(expected)
    try:
        given = read_json(returned)
    except ValueError:
        return f"no JSON value was returned: {shown(returned.strip())}"
    return (
        "" if same_value(wanted, given) else f"returned {shown(returned.strip())}, expected {shown(expected.strip())}"
    )


def no_code(why: str) -> Verdict:
    """The verdict on an answer in which there is nothing to run."""
    return Verdict(reward=0.0, explanation=why, parts={"tests": [], "tests_passed": 0})


def verdict(results: Sequence[Result], counted: int, total: int) -> Verdict:
    """The verdict on a program. results: of the tests that ran, in order; counted: how many count; total: how many the row has."""
    tests = [result.outcome for result in results]
    passed = tests.count("passed")
    parts = {"tests": tests, "tests_passed": passed, "tests_counted": counted, "tests_total": total}
    limit = f" ({total - counted} more of the row do not count)" if total > counted else ""
    if passed == counted:
        return Verdict(reward=1.0, explanation=f"All {counted} tests passed{limit}.", parts=parts)
    first = next((number for number, outcome in enumerate(tests, 1) if outcome != "passed"), None)
    if first is None:
        raise ValueError(f"{passed} of {counted} tests ran and none failed")
    parts["outcome"] = tests[first - 1]
    unrun = f", {counted - len(tests)} did not run after it" if counted > len(tests) else ""
    explanation = (
        f"Test {first} of {counted}{limit} ended as {tests[first - 1]}{unrun}: {results[first - 1].difference}."
    )
    return Verdict(reward=0.0, explanation=explanation, parts=parts)
