"""Regular expressions from data: what the last match says, and that none can hang or grow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_servers.patterns import END_CHARS, PatternError, check_pattern, is_quick, search_last


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"Option Selected:\s*([A-Za-z])", "option selected: A. No, Option Selected: b", "b"),
        (r"FINAL \w+", "final one, FINAL two", "FINAL two"),
        (r"(a)|b", "a b", None),  # the last match is of the branch without the group
        (r"x", "abc", None),
        (r"الإجابة:\s*([أ-د])", "الإجابة: ب", "ب"),
        (r"answer: (.)", "ANSWER: é", "é"),
        (r"[A-Z]+", "one TWO three", "three"),  # not only its last letter
        (r"(.)$", "ab\ud800", "?"),
        ("", "abc", ""),
    ],
)
def test_the_last_match_counts(pattern: str, text: str, expected: str | None) -> None:
    assert search_last(pattern, text) == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(?=a)b", "look-around"),
        (r"(a)\1", "back-references"),
        ("(", "missing"),
        ("((a{100}){100}){100}", "repetition"),
        (".{1000}", "too large"),
        ("a" * 2001, "2001 characters"),
        ("(\ud800)", "cannot be used"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_its_reason(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason) as error:
        check_pattern(pattern)
    str(error.value).encode()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "x|x.*y", "a", "(.*)(.*)(.*)z", "(a?){30}a{30}"])
def test_catastrophic_patterns_end(pattern: str) -> None:
    for character in "ax":
        search_last(pattern, character * 65_536)


def test_many_matches_are_read_at_the_end() -> None:
    text = "a" * 200_000 + "b" * 10
    assert search_last("([ab])", text) == "b"
    assert search_last("(a)", "a" * 200_000 + "-" * (END_CHARS + 1)) == "a"


def test_quick_knows_size() -> None:
    assert is_quick("Answer: ([A-D])", "x" * 4000)
    assert not is_quick("Answer: ([A-D])", "x" * 1_000_000)
    assert not is_quick(r"\p{L}+", "x" * 4000)


@given(st.text("Answer: BC\n", max_size=60))
def test_as_python_does(text: str) -> None:
    for pattern in (r"answer:\s*([A-C])", r"[A-Z]+", r"(?:A|B)n*", r"r: (.*)"):
        found = [m.group(1) if m.re.groups else m.group() for m in re.finditer(pattern, text, re.IGNORECASE)]
        assert search_last(pattern, text) == (found[-1] if found else None)
