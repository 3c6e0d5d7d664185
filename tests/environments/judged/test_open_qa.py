"""open_qa: what code decides, what the judge is asked, and what its words come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from judge_at_work import graded, holds, judge_saying, lines, reference_reward

from environments.open_qa.server import OpenQa, OpenSettings, hacks
from environments.open_qa.verifier import final_answer, matches, normal, same
from gym_servers.protocol import FailureError, OmnigymError
from gym_servers.registry import load_environment

EQUAL, DIFFERENT = "[[A=B]]", "[[A!=B]]"
CASES = lines(OpenQa.folder() / "cases.jsonl")
ROW: dict[str, Any] = {
    "responses_create_params": {"input": [{"role": "user", "content": "Who?"}]},
    "expected_answer": "darwin",
}
FORM = {"template_metadata": {"output_regex": "\\(\\((.*?)\\)\\)"}}


def judged(url: str, **settings: Any) -> OpenQa:
    return OpenQa(OpenSettings(judge_url=url, judge_model="j", judge_seconds=60, **settings))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    assert holds(case, OpenQa())


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("Paris", "Paris"),
        ("It is big.\n\nParis\n", "Paris"),
        ("Answer: Paris\n(I am sure)", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("My answer is: Rome. The answer is Paris", "Paris"),
        ("Answer:\nParis\nRome", "Paris"),
        ("Answer: Paris\nI am confident in this answer.", "Paris"),
        ("Answer: Paris\nThis answer is final.", "Paris"),
        ("Answer: Paris\nMy answer is based on the text.", "Paris"),
        ("Answer: let me think.\nSo the answer is Paris", "Paris"),
        ("The answer is Rome\nAnswer: Paris", "Paris"),
        ("The answer is correct", "correct"),
        ("I cannot answer", ""),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_text(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("given_answer", "expected", "equal"),
    [
        ("the Lima Museum.", "Lima Museum", True),
        ("A Coruna", "Coruna", True),
        ("lima", "Lim a", False),
        ("1,000", "1000.0", True),
        ("10,00", "1000", False),
        ("3 May 2031", "2031-05-03", True),
        ("31 February 2031", "2031-02-31", False),
        ("Mayo 3, 2031", "2031-05-03", False),
        ("-5", "5", False),
        ("−5", "-5", True),
        ("−5", "5", False),
        ("", "", False),
        ("…", "...", False),
    ],
)
def test_when_two_short_answers_are_one(given_answer: str, expected: str, equal: bool) -> None:
    assert same(given_answer, expected) is equal


@given(st.text(max_size=200), st.text(min_size=1, max_size=40))
def test_any_text_is_compared_and_an_answer_is_itself(text: str, expected: str) -> None:
    matches(text, expected)
    if normal(expected) and len(expected.splitlines()) == 1 and "answer" not in expected.casefold():
        assert matches(expected, expected)
        assert not matches(f"{expected} or Zanzibar", expected)


def test_the_judge_decides_and_sees_question_and_both_answers() -> None:
    for reply, reward in ((f"One man.\n{EQUAL}", 1.0), (DIFFERENT, 0.0)):
        with judge_saying(reply) as judge:
            verdict = graded(judged(judge.url), ROW, "Charles Darwin")
        assert verdict.reward == reward
        assert verdict.parts["judge_replies"] == [reply]
        (prompt,) = judge.prompts
        assert prompt.index("Who?") < prompt.index("darwin") < prompt.index("Charles Darwin")


def test_both_orders_must_say_equal_where_that_is_set() -> None:
    for replies, reward, asked in (([EQUAL, EQUAL], 1.0, 2), ([EQUAL, DIFFERENT], 0.0, 2), ([DIFFERENT], 0.0, 1)):
        with judge_saying(*replies) as judge:
            assert graded(judged(judge.url, check_twice_swap=True), ROW, "Charles").reward == reward
        assert len(judge.prompts) == asked
        assert judge.prompts[0].index("darwin") < judge.prompts[0].index("Charles")
        assert asked == 1 or judge.prompts[1].index("Charles") < judge.prompts[1].index("darwin")


def test_a_pattern_says_what_is_judged_and_the_whole_is_worth_half() -> None:
    row = {**ROW, **FORM}
    with judge_saying(EQUAL) as judge:
        assert graded(judged(judge.url), row, "((x)) so ((Charles))").reward == 1.0
        assert "so ((" not in judge.prompts[0] and "Charles" in judge.prompts[0]
    with judge_saying(DIFFERENT, EQUAL) as judge:
        assert graded(judged(judge.url), row, "((x)) or Charles").reward == 0.5
    with judge_saying(EQUAL) as judge:
        assert graded(judged(judge.url), row, "Charles").reward == 0.5  # not in the form
        environment = judged(judge.url, check_full_generation_on_fail=False)
        assert graded(environment, row, "Charles").reward == 0.0
        assert len(judge.prompts) == 1
    with judge_saying(EQUAL) as judge:
        environment = judged(judge.url, use_per_record_regex=False, response_extract_regex="[a-z]+$")
        assert graded(environment, row, "((3)) xyz").reward == 1.0
        assert "((3))" not in judge.prompts[0]


def test_a_slow_pattern_on_a_long_answer_is_linear() -> None:
    row = {**ROW, "template_metadata": {"output_regex": "(a+)+b"}}
    with judge_saying(DIFFERENT) as judge:
        assert graded(judged(judge.url), row, "a" * 60_000).reward == 0.0


@pytest.mark.parametrize("name", hacks("darwin"))
def test_an_answer_cannot_be_the_judge(name: str) -> None:
    with judge_saying(DIFFERENT) as judge:
        assert graded(judged(judge.url), ROW, hacks("darwin")[name] + " ").reward == 0.0
    for prompt in judge.prompts:
        assert prompt.count("<|End of Answer B|>") == 1
        assert "[[" not in prompt


@pytest.mark.parametrize("reply", ["", "They are equal.", f"{EQUAL} or {DIFFERENT}"])
def test_a_judge_without_a_label_is_asked_once_more_then_it_is_a_failure(reply: str) -> None:
    with judge_saying(reply, EQUAL) as judge:
        assert graded(judged(judge.url), ROW, "Charles").reward == 1.0
    with judge_saying(reply) as judge, pytest.raises(FailureError, match="no label in 2 replies") as caught:
        graded(judged(judge.url), ROW, "Charles")
    assert caught.value.failure.kind == "judge_failed" and caught.value.failure.retryable
    assert len(judge.prompts) == 2


def test_without_a_judge_the_failure_says_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FailureError, match="--set open_qa.judge_url=.*omnigym model serve") as caught:
        graded(OpenQa(), ROW, "Charles")
    assert not caught.value.failure.retryable
    assert "environment 'open_qa': no judge_url is set" in caplog.text
    assert graded(OpenQa(), ROW, "darwin").reward == 1.0  # what is the same text needs none


def test_the_no_of_an_exact_row_goes_to_the_judge_where_there_is_one() -> None:
    row = {**ROW, "grading": "exact"}
    assert graded(OpenQa(), row, "It was Charles Darwin, I think").reward == 0.0
    with judge_saying(EQUAL) as judge:
        assert graded(judged(judge.url), row, "It was Charles Darwin, I think").reward == 1.0
        assert graded(judged(judge.url), row, "Answer: Darwin").reward == 1.0
    assert len(judge.prompts) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user: '{question} {expected_answer}'", "it must have"),
        ("user: '{expected_answer} {generated_answer} {secret}'", "may have"),
        ("user: '{expected_answer.__class__} {generated_answer}'", "may have"),
        ("user: '{expected_answer'", "expected"),
        ("prompt: x", "`user`"),
        ("user: [1]", "`user`"),
        ("a: b: c", "not allowed"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_when_it_is_loaded(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    with pytest.raises(OmnigymError, match=f"{path}.*{problem}"):
        load_environment("open_qa", {"judge_prompt": str(path)})
    with pytest.raises(OmnigymError, match="nothing.yaml"):
        load_environment("open_qa", {"judge_prompt": "nothing.yaml"})


def test_settings_that_cannot_work_are_refused() -> None:
    for overrides, problem in (
        ({"response_extract_regex": "(a)\\1"}, "response_extract_regex"),
        ({"judge_url": "http://h/v1", "judge_model": "j"}, "must end in"),
        ({"judge_prompts": "x"}, "did you mean 'judge_prompt'"),
    ):
        with pytest.raises(OmnigymError, match=problem):
            load_environment("open_qa", overrides)


def test_generated_tasks_are_seeded_disjoint_and_right() -> None:
    environment = OpenQa()
    rows = list(environment.generate(220, 3, "train"))
    assert rows[:60] == list(environment.generate(60, 3, "train")) != list(environment.generate(60, 4, "train"))
    heldout = {row["question"] for row in environment.generate(440, 3, "heldout")}
    assert not heldout & {row["question"] for row in rows}
    assert len({row["responses_create_params"]["input"][-1]["content"] for row in rows}) > 200
    for row in rows:
        parsed = environment.check_row(row)
        assert 0.0 <= row["difficulty"] <= 1.0
        gold = environment.quick(parsed, environment.gold(parsed) or [])
        assert gold is not None and gold.reward == 1.0
        wrong = [turn["content"] for turn in row["responses_create_params"]["input"] if turn["role"] == "assistant"]
        for text in [*wrong, row["question"], "", "None of them"]:
            assert graded(environment, row, text).reward == 0.0, (row["family"], text)


def test_computed_answers_by_hand() -> None:
    """The answers of derived questions, computed here from the question's words in another way."""
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"] * 20
    seen = 0
    for row in OpenQa().generate(220, 8, "train"):
        asked = row["question"]
        if row["family"] == "weekday":
            start, later = asked.split("Today is ")[1].split(".")[0], int(asked.split(" in ")[1].split()[0])
            assert days[days.index(start) + later] == row["expected_answer"]
            seen += 1
        if row["family"] == "first_word":
            assert sorted(asked.split(": ")[1].rstrip("?").split(", "))[0] == row["expected_answer"]
            seen += 1
    assert seen == 40


TEMPLATE = "Q={question}|GOLD={expected_answer}|CAND={generated_answer}"


@pytest.mark.conformance
def test_recorded_flows(conformance: Path, conform: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(yaml.safe_dump({"user": TEMPLATE}))
    agrees = {}
    for case in lines(conformance / "equivalence_llm_judge.jsonl"):
        settings = {key: value for key, value in case["server_config"].items() if key != "reward_if_swap_fails"}
        with judge_saying(*case["judge_replies"]) as judge:
            environment = judged(judge.url, judge_prompt=str(path), **settings)
            agrees[case["id"]] = reference_reward(environment, case) == case["expected"]["reward"]
            if agrees[case["id"]] and judge.prompts:
                assert judge.prompts == case["expected"]["judge_prompts"], json.dumps(case)
    assert len(agrees) == 17
    conform("equivalence_llm_judge.jsonl", agrees, "environments/open_qa/README.md")
