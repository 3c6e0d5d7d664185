"""What the question asks to compute is no answer as it stands, however it is written."""

from __future__ import annotations

import re

import pytest

from environments.competition_math.server import CompetitionMath, MathRow
from environments.competition_math.verifier import NOT_COMPUTED, decide, symbolic
from environments.math_with_python.server import MathWithPython
from gym_servers.environment import Environment, Row

FAMILIES = 150
"""Rows that are drawn: each family comes up several times."""


def reward(answer: str, expected: str) -> float:
    found, extracted = decide(f"\\boxed{{{answer}}}", expected)
    if found is None:
        assert extracted is not None
        found = symbolic(extracted, expected)
    return found.reward


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("35 + 26", "61"),
        ("35+26", "61"),
        ("7 \\times 8", "56"),
        ("7 × 8", "56"),
        ("45987 \\cdot 56699", "2607416913"),
        ("9 - 4", "5"),
        ("-9 - -4", "-5"),
        ("12 \\div 4", "3"),
        ("97283906427 \\mod 7582", "3117"),
        ("100 \\bmod 7", "2"),
        ("100 mod 7", "2"),
        ("\\gcd(12, 18)", "6"),
        ("gcd(12, 18)", "6"),
        ("\\max(3, 4)", "4"),
        ("\\int_0^1 x^2 dx", "\\frac{1}{3}"),
        ("\\lim_{x \\to 0} \\frac{\\sin x}{x}", "1"),
        ("\\binom52", "10"),
        ("\\lfloor 7/2 \\rfloor", "3"),
        ("5!", "120"),
        ("\\frac{3 + 4}{7}", "1"),
        ("(2 + 3)(4 + 5)", "45"),
        ("2 \\times 10^3 + 1", "2001"),
        ("35\\,+\\,26", "61"),
        ("35{+}26", "61"),
        ("35{\\times}26", "910"),
        ("\\left(35\\right)\\left(26\\right)", "910"),
        ("35(26)", "910"),
        ("(35)(26)", "910"),
        ("35 \\ast 26", "910"),
        ("25\\% of 80", "20"),
        ("5 !", "120"),
        ("\\begin{vmatrix} 1 & 2 \\\\ 3 & 4 \\end{vmatrix}", "-2"),
    ],
)
def test_an_expression_for_a_number_earns_nothing(answer: str, expected: str) -> None:
    found, _ = decide(f"\\boxed{{{answer}}}", expected)
    assert found is not None and found.reward == 0.0 and found.parts["how"] == NOT_COMPUTED


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("-5", "-5"),
        ("+5", "5"),
        ("(-5)", "-5"),
        ("\\frac{8}{2}", "4.0"),
        ("8/2", "4"),
        ("-\\frac{-8}{2}", "4"),
        ("2 \\times 10^3", "2000"),
        ("2.5 \\cdot 10^{-3}", "0.0025"),
        ("1.5×10^2", "150"),
        ("50\\%", "1/2"),
        ("2^{10}", "1024"),
        ("x = 5", "5"),
        ("5 \\text{ cm}", "5"),
        ("90^\\circ", "90"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        ("\\left(-5\\right)", "-5"),
        ("0.5\\overline{3}", "0.5\\overline{3}"),
        ("35 + 26", "35 + 26"),
        ("5!", "5!"),
        ("x + 1", "1 + x"),
        ("1 + \\sqrt{2}", "\\sqrt{2} + 1"),
        ("2\\sqrt{3} - 1", "-1 + 2\\sqrt{3}"),
        ("n!", "n!"),
    ],
)
def test_other_ways_to_write_a_number_and_what_is_no_number_still_do(answer: str, expected: str) -> None:
    assert reward(answer, expected) == 1.0


def copies(question: str) -> list[str]:
    """Every stretch of the question that could be the expression it asks for."""
    found = re.findall(r"\$([^$]+)\$", question)
    found += re.findall(r"[-0-9(][-+*/×^(){},. \\a-z0-9]*[0-9)}]", question)
    return [text for text in found if re.search(r"[0-9]", text)]


@pytest.mark.parametrize("environment", [CompetitionMath(), MathWithPython()], ids=lambda env: env.name)
def test_no_question_of_our_own_is_its_answer(environment: Environment) -> None:
    checked = 0
    for data in environment.generate(FAMILIES, 3, "train"):
        row: Row = environment.check_row(data)  # type: ignore[assignment]
        assert isinstance(row, MathRow)
        found, _ = decide(f"\\boxed{{{row.expected_answer}}}", row.expected_answer)
        assert found is not None and found.reward == 1.0
        for text in copies(str(data["responses_create_params"]["input"]).rsplit("uestion", 1)[-1]):
            if row.expected_answer in re.findall("[0-9]+", text):
                continue  # the largest of a list stands in it
            checked += 1
            assert reward(text.strip(" .,"), row.expected_answer) == 0.0, (data, text)
    assert checked > FAMILIES / 2
