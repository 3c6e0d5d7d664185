"""instruction_following: its own cases, hostile answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.instruction_following.kwargs import Instruction
from environments.instruction_following.registry import INSTRUCTIONS
from environments.instruction_following.server import QUICK_CHARS, InstructionFollowing
from environments.instruction_following.verifier import FollowingRow, loose_forms
from gym_servers.protocol import RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

FOLDER = InstructionFollowing.folder()
CASES = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines()]
ENVIRONMENT = InstructionFollowing()


def grade(case: dict[str, Any]) -> Verdict:
    row = ENVIRONMENT.check_row({key: value for key, value in case["request"].items() if key != "response"})
    return ENVIRONMENT.verify(row, case["request"]["response"]["output"])


def message(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            grade(case)
    else:
        assert grade(case).reward == case["expected"]["reward"]


def test_the_registry_has_ifeval_the_extended_set_and_ifbench() -> None:
    assert len(INSTRUCTIONS) == 25 + 29 + 58


def test_loose_leaves_out_first_and_last_lines_and_asterisks() -> None:
    forms = set(loose_forms("Sure:\n*a*\nbye"))
    assert forms == {"Sure:\n*a*\nbye", "*a*\nbye", "Sure:\n*a*", "*a*", "Sure:\na\nbye", "a\nbye", "Sure:\na", "a"}


def test_loose_is_reported_beside_the_strict_verdict_and_earns_nothing() -> None:
    row = ENVIRONMENT.check_row({"instruction_id_list": ["copy:copy"], "kwargs": [{"prompt_to_repeat": "Say hi."}]})
    verdict = ENVIRONMENT.verify(row, message("Of course:\nSay hi."))
    assert verdict.reward == 0.0
    assert verdict.parts["follow_instruction_list"] == [False]
    assert verdict.parts["follow_instruction_list_loose"] == [True]
    assert verdict.parts["reward_loose"] == 1.0


def test_quick_decides_what_is_short_and_needs_no_detector() -> None:
    plain = ENVIRONMENT.check_row({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    quick = ENVIRONMENT.quick(plain, message("a b"))
    assert quick is not None and quick.reward == 1.0
    assert ENVIRONMENT.quick(plain, message("a" * (QUICK_CHARS + 1))) is None
    detecting = ENVIRONMENT.check_row({"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]})
    assert ENVIRONMENT.quick(detecting, message("A")) is None


SAMPLES = {
    "count": 3,
    "position": 2,
    "percentage": 50,
    "text": "the cat sat on the mat",
    "word": "cat",
    "word_list": ["cat", "a.*b"],
    "letter": "e",
    "relation": "at least",
    "language": "fr",
}


def kwargs_for(instruction: Instruction) -> dict[str, Any]:
    return {name: SAMPLES[kind.__name__] for name, kind in instruction.kwargs.items()}


HOSTILE = {
    "dots": "." * 65536,
    "marks": ".?! " * 16384,
    "open brackets": "[" * 65536,
    "angles": "<<" * 32768,
    "spaces": " \t" * 32768,
    "newlines": "\n" * 65535 + "x",
    "stars": "*" * 65536,
    "starred": "* " * 32768,
    "digits": "1" * 65536,
    "nested": "([{" * 20000,
    "quotes": "\"'" * 32768,
    "letters": "a" * 65536,
    "openings": "cat " * 16384,
    "hyphens": "a-" * 32768,
    "capitals": "A." * 32768,
    "emoji": "😊. " * 20000,
    "question": "Question 1" * 6500,
    "question digits": "Question " + "1" * 65000,
    "postscript": "p. " * 21845,
    "apostrophes": "a'" * 32768,
    "commas": "," * 65536,
    "surrogate": "\ud800 cat \udfff",
    "nul": "\x00 a \x00",
}


@pytest.mark.parametrize("identifier", sorted(INSTRUCTIONS))
def test_no_answer_breaks_or_stalls_a_check(identifier: str) -> None:
    known = INSTRUCTIONS[identifier]
    given = known.read(kwargs_for(known))
    for name, text in HOSTILE.items():
        started = time.process_time()
        assert known.check(text, **given) in (True, False)
        assert time.process_time() - started < 3.0, name  # a quadratic check needs minutes here; a linear one some ms


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab .,!?\"'*-_<>[](){}\n1é😊", max_size=120))
def test_no_text_breaks_any_check(text: str) -> None:
    for known in INSTRUCTIONS.values():
        assert known.check(text, **known.read(kwargs_for(known))) in (True, False)


@pytest.mark.parametrize("identifier", sorted(name for name, known in INSTRUCTIONS.items() if known.kwargs))
def test_an_instruction_without_its_kwargs_is_a_bad_row(identifier: str) -> None:
    with pytest.raises(RowError, match="missing"):
        ENVIRONMENT.check_row({"instruction_id_list": [identifier], "kwargs": [{}]})


def test_kwargs_of_published_rows_may_carry_nulls_and_whole_floats() -> None:
    row = ENVIRONMENT.check_row(
        {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3.0, "keyword": None}], "grading_mode": None}
    )
    assert isinstance(row, FollowingRow)
    assert ENVIRONMENT.verify(row, message("1 2 3")).reward == 1.0


@pytest.mark.parametrize("text", ["", " ", "\n\n", "<think>tea tea tea tea"])
def test_an_empty_answer_follows_nothing(text: str) -> None:
    for identifier, known in INSTRUCTIONS.items():
        row = ENVIRONMENT.check_row({"instruction_id_list": [identifier], "kwargs": [kwargs_for(known)]})
        assert ENVIRONMENT.verify(row, message(text)).reward == 0.0, identifier


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with contextlib.closing(WorkerPool(1)) as made:
        yield made


def test_a_language_row_needs_a_worker_where_the_environment_is_registered(pool: WorkerPool) -> None:
    from gym_servers.registry import environment_names

    if "instruction_following" not in environment_names():
        pytest.skip("instruction_following is not an entry point of the installed package yet")
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "fr"}]}
    text = "Le petit chat dort sur le canapé pendant que nous lisons un livre."
    assert asyncio.run(judge(ENVIRONMENT, row, message(text), pool)).reward == 1.0
