"""Whatever the policy writes, `quick` of every environment gives a verdict or leaves it to a worker: it runs in the server's process."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gym_servers.environment import Environment, Row
from gym_servers.protocol import Item, RowError
from gym_servers.registry import load_environment

NUMBERS = [
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "-0.5",
    ".3",
    "1,000",
    "10^{400}",
    "10^{-400}",
    "9" * 300,
    "9" * 5000,
    "\\pi",
    "x",
]
EXPRESSIONS = st.recursive(
    st.sampled_from(NUMBERS),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "^", " ", "\\cdot ", "="]), inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]})^{{{two[1]}}}"),
        st.tuples(inner, inner).map(lambda two: f"\\frac{{{two[0]}}}{{{two[1]}}}"),
        st.tuples(inner, inner).map(lambda two: f"\\binom {two[0]} {two[1]}"),
        st.tuples(inner, inner).map(lambda two: f"\\sqrt[{two[0]}]{{{two[1]}}}"),
        inner.map(lambda one: f"({one})!"),
        inner.map(lambda one: f"{one}\\%"),
    ),
    max_leaves=5,
)
PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "\n",
    " ",
    "1e999",
    "null",
    "name",
    "```",
    "<think>",
    "</think>",
    "*",
    ". ",
    "? ",
    "\ud800",
]
PIECES += [
    "\x00",
    "٣",
    "Dr.",
    "...",
    "- ",
    "1. ",
    "(a)",
    "<<",
    ">>",
    "P.S.",
    "-0",
    "[" * 2000,
    "a" * 300,
    "\u2028",
    "é",
    "tea",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=30).map("".join)


def rows(name: str) -> tuple[Environment, list[Row]]:
    """All distinct rows of the environment's cases that are not malformed. Answers are read whole."""
    environment = load_environment(name, {"max_answer_chars": 65536})
    found: dict[str, Row] = {}
    for line in (environment.folder() / "cases.jsonl").read_text().splitlines():
        row = {key: value for key, value in json.loads(line)["request"].items() if key != "response"}
        try:
            found[json.dumps(row, sort_keys=True)] = environment.check_row(row)
        except RowError:
            continue
    return environment, list(found.values())


JUDGED = [
    (environment, row)
    for name in ("open_qa", "multi_challenge", "long_context_qa")
    for environment, found in [rows(name)]
    for row in found
]
MATH, FOLLOWING, STRUCTURED = map(rows, ("competition_math", "instruction_following", "structured_outputs"))


def message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(EXPRESSIONS, st.sampled_from(MATH[1]))
@example("(1/10^{400})^{-0.5}", MATH[1][0])
@example("9" * 5000, MATH[1][0])
def test_mathematics(text: str, row: Row) -> None:
    MATH[0].quick(row, message(f"\\boxed{{{text}}}"))
    MATH[0].quick(row, message(f"The answer is {text}"))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, st.sampled_from(FOLLOWING[1]))
def test_instructions(text: str, row: Row) -> None:
    FOLLOWING[0].quick(row, message(text))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, st.sampled_from(STRUCTURED[1]), st.sampled_from(["name", "extract", "submit"]))
def test_structures(text: str, row: Row, tool: str) -> None:
    call: dict[str, Any] = {"type": "function_call", "name": tool, "arguments": text, "call_id": "c"}
    for output in (message(text), [call], [{**call, "name": getattr(row, "tool_name", None) or tool}]):
        try:
            STRUCTURED[0].quick(row, output)
        except RowError as error:  # the schema is at fault
            assert "schema_str" in str(error)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, st.sampled_from(JUDGED))
@example("Answer: " + "9" * 5000, JUDGED[0])
def test_open_answers(text: str, judged: tuple[Environment, Row]) -> None:
    environment, row = judged
    environment.quick(row, message(text))
    environment.quick(row, message(f"Answer: {text}"))
