"""competition_code without a sandbox: extraction, comparison, rows."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.competition_code.row import CodeRow
from environments.competition_code.verifier import (
    Result,
    extract_code,
    read_json,
    same_value,
    text_difference,
    value_difference,
    verdict,
)

# -- the code in an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("first\n```\na\n```\nthen\n```py\nb\n```\ndone", "b"),
        ("```python\nx = 1\n\ny = 2\n```", "x = 1\n\ny = 2"),
        ("    ```\na\n    ```", "a"),
        ("```python a\nb\n``` c ```", "b"),
        ("```cpp\r\na\r\n```", "a\r"),
        ("print(1)", None),
        ("```python\nprint(1)", None),
        ("``` print(1) ```", None),
        ("```\n```", None),
        ("```\n \t\n```", None),
        ("", None),
    ],
)
def test_code_is_between_the_last_two_fences(text: str, code: str | None) -> None:
    assert extract_code(text) == code


@given(st.text(min_size=1).map(lambda line: line.replace("`", "'").replace("\n", " ")), st.text(max_size=50))
def test_any_fenced_line_is_found_after_any_text(line: str, before: str) -> None:
    assert extract_code(f"{before}\n```python\n{line}\n```") == (line if line.strip() else None)


# -- lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("4", "4\n"),
        ("4", "  4  "),
        ("a\nb", "a \n b\n\n"),
        ("a\n\nb", "a\n   \nb"),
        ("1000", "1e3"),
        ("1 2.50", "1.0 2.5"),
        ("0", "-0.0"),
        ("1 2", "1   2"),
        ("+5", "5"),
        ("", " \n "),
        ("nan", "nan"),
        ("1e999999", "10e999998"),
        ("9" * 10000, "9" * 10000 + ".0"),
    ],
)
def test_outputs_that_are_the_same(expected: str, printed: str) -> None:
    assert text_difference(expected, printed) == ""
    assert text_difference(printed, expected) == ""


@pytest.mark.parametrize(
    ("expected", "printed", "said"),
    [
        ("4", "5", "line 1 is '5', expected '4'"),
        ("0.3", "0.30000000000000004", "line 1"),
        ("a b", "a  b", "line 1"),
        ("a\nb", "a", "1 lines printed, expected 2"),
        ("a", "a\nb", "2 lines printed, expected 1"),
        ("1 2", "1\n2", "line 1"),
        ("1 2", "1", "line 1"),
        ("1", "", "line 1 is '', expected '1'"),
        ("1", "1 1", "line 1"),
        ("yes", "Yes", "line 1"),
        ("10", "1_0", "line 1"),
        ("10", "١٠", "line 1"),
        ("inf", "1e999999", "line 1"),
        ("1", "nan", "line 1"),
        ("nan", "sNaN", "line 1"),
        ("1", "1e1000000", "line 1"),
        ("9" * 10000, "9" * 9999 + "8.0", "line 1"),
        ("x" * 300, "y" * 300, "line 1 is 'y"),
    ],
)
def test_outputs_that_differ(expected: str, printed: str, said: str) -> None:
    difference = text_difference(expected, printed)
    assert said in difference and len(difference) < 200
    assert text_difference(printed, expected) != ""


@given(st.text(), st.text())
def test_comparison_never_raises_and_agrees_with_stripped_lines(a: str, b: str) -> None:
    same = [line.strip() for line in a.strip().split("\n")] == [line.strip() for line in b.strip().split("\n")]
    difference = text_difference(a, b)
    difference.encode()
    assert not same or difference == ""


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**6), max_value=10**6))
def test_a_decimal_is_itself_however_it_is_written(number: Decimal) -> None:
    assert text_difference(f"{number:f}", f"{number:e}") == ""
    assert text_difference(f"{number:f}", f"{number + Decimal('0.0001'):f}") != ""


def test_comparison_takes_linear_time() -> None:
    """Quadratic code would take hours on these."""
    long = "7" * 1_000_000
    began = time.process_time()
    assert text_difference(long, long + ".0") == ""
    assert text_difference("1" + "0" * 999_999, "1e999999") == ""
    assert text_difference(" ".join(["1"] * 200_000), " ".join(["1.0"] * 200_000)) == ""
    assert extract_code("```\n" * 200_000) is None
    assert value_difference(long, "7") != ""
    assert time.process_time() - began < 120


# -- returned values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "returned", "same"),
    [
        ("3", "3", True),
        ("3", "3.0", True),
        ("1", "true", True),
        ("0.33333", "0.3333333333", True),
        ("0.333", "0.3333333333", False),
        ("1000000", "1000001", False),
        ("1000000", "1000001.0", False),  # an integer is asked for exactly
        ("1000000.0", "1000001.0", True),
        ("[1, [2, {}]]", "[1,[2,{}]]", True),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
        ('{"a": 1, "b": [0.5]}', '{"b": [0.5000001], "a": 1}', True),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('"1"', "1", False),
        ("null", "false", False),
        ("null", "null", True),
        ("[]", "{}", False),
        ("NaN", "NaN", True),
        ("Infinity", "Infinity", True),
        ("Infinity", "1e308", False),
        ("1.5", "Infinity", False),
        ("1.5", "NaN", False),
        ("1" * 5000, "1" * 5000, True),
        ("1" * 5000, "1" * 4999 + "2", False),
        ("1e308", "9" * 400, False),
        ("3", "", False),
        ("3", "3 3", False),
        ("3", "[" * 100_000, False),
    ],
)
def test_values(expected: str, returned: str, same: bool) -> None:
    difference = value_difference(expected, returned)
    assert (difference == "") is same
    assert len(difference) < 250


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)


@given(VALUES, VALUES)
def test_a_value_is_itself_and_no_longer_list(one: Any, other: Any) -> None:
    assert same_value(one, json.loads(json.dumps(one)))
    assert not same_value([one], [one, other])
    assert same_value(one, other) or one != other


def test_deep_values_are_compared_or_refused() -> None:
    deep = "[" * 500 + "]" * 500
    assert value_difference(deep, deep) == ""
    with pytest.raises(ValueError, match="nested too deep"):
        read_json("[" * 100_000)


# -- the verdict ---------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_ran_and_what_was_wrong() -> None:
    passed, wrong = Result("passed"), Result("wrong", "line 1 is '5', expected '4'")
    got = verdict([passed, wrong], 4, 60)
    assert (got.reward, got.parts["tests"], got.parts["outcome"]) == (0.0, ["passed", "wrong"], "wrong")
    assert (got.parts["tests_passed"], got.parts["tests_counted"], got.parts["tests_total"]) == (1, 4, 60)
    assert "Test 2 of 4 (56 more of the row do not count) ended as wrong, 2 did not run" in got.explanation
    assert "line 1 is '5', expected '4'" in got.explanation
    assert verdict([passed] * 3, 3, 3).reward == 1.0
    with pytest.raises(ValueError, match="1 of 3 tests"):  # never full reward for tests that did not run
        verdict([passed], 3, 3)


# -- rows ----------------------------------------------------------------------------------------------------------


def row(**tests: Any) -> dict[str, Any]:
    return {"verifier_metadata": {"unit_tests": {"inputs": ["1"], "outputs": ["2"], **tests}}}


def test_tests_may_be_json_text_and_unknown_fields_are_kept() -> None:
    given = row(fn_name="", kind="x")
    as_text = {"verifier_metadata": {"unit_tests": json.dumps(given["verifier_metadata"]["unit_tests"]), "id": 3}}
    one, other = CodeRow.model_validate(given), CodeRow.model_validate(as_text)
    assert one.tests == other.tests and one.tests.fn_name is None
    assert other.verifier_metadata.model_extra == {"id": 3}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({}, "verifier_metadata"),
        ({"verifier_metadata": {}}, "unit_tests"),
        ({"verifier_metadata": {"unit_tests": "{"}}, "unit_tests"),
        ({"verifier_metadata": {"unit_tests": "[" * 100_000}}, "nested too deep"),
        ({"verifier_metadata": {"unit_tests": None}}, "unit_tests"),
        ({"verifier_metadata": {"unit_tests": {"outputs": ["1"]}}}, "inputs"),
        ({"verifier_metadata": {"unit_tests": {"inputs": ["1"]}}}, "outputs"),
        (row(inputs=[], outputs=[]), "at least one test"),
        (row(inputs=["1", "2"]), "2 inputs and 1 outputs"),
        (row(inputs=[1]), "inputs"),
        (row(outputs="2"), "outputs"),
        (row(outputs=[" \n"]), "every expected output is blank"),
        (row(inputs=["\ud800"]), "lone surrogate"),
        (row(fn_name="f(); import os"), "no name of a function"),
        (row(fn_name="class"), "no name of a function"),
        (row(fn_name=3), "fn_name"),
        (row(fn_name="f", inputs=["1\nx"]), "test 0 of function 'f' is not JSON"),
        (row(fn_name="f", outputs=["yes"]), "test 0 of function 'f' is not JSON"),
        (row(fn_name="f", outputs=["[" * 100_000]), "nested too deep"),
        (row(fn_name="f", outputs=["null"]), "every expected value is null"),
    ],
)
def test_a_bad_row_is_refused_by_field(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        CodeRow.model_validate(bad)
