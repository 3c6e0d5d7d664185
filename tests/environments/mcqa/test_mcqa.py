"""mcqa: its own cases, hostile answers, generated tasks."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.mcqa.generator import DAYS, FAMILIES
from environments.mcqa.server import Mcqa, McqaRow, McqaSettings, said
from environments.mcqa.verifier import Mode, boxed_letter, choose
from gym_servers.protocol import RowError, final_text

ENVIRONMENT = Mcqa()
CASES = [json.loads(line) for line in (Mcqa.folder() / "cases.jsonl").read_text().splitlines()]
OPTIONS = {"A": "red", "B": "blue", "C": "dark blue", "D": "12"}
MODES: list[Mode] = [
    "strict_single_letter_boxed",
    "lenient_boxed",
    "lenient_answer_colon",
    "lenient_answer_colon_md",
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    row = {key: value for key, value in case["request"].items() if key != "response"}
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            ENVIRONMENT.check_row(row)
        return
    parsed, output = ENVIRONMENT.check_row(row), case["request"]["response"]["output"]
    assert ENVIRONMENT.verify(parsed, output).reward == case["expected"]["reward"]
    quick = ENVIRONMENT.quick(parsed, output)
    assert quick is not None and quick.reward == case["expected"]["reward"]


def test_a_long_answer_and_a_large_pattern_are_for_a_worker() -> None:
    row = {"options": [{"A": "x"}], "expected_answer": "A", "template_metadata": {"output_regex": r"(\p{L})!"}}
    parsed = ENVIRONMENT.check_row(row)
    assert ENVIRONMENT.quick(parsed, said("A!" + " " * 20_000)) is None
    assert ENVIRONMENT.verify(parsed, said("A!" + " " * 20_000)).reward == 1.0
    assert ENVIRONMENT.quick(parsed, said("A!")) is not None


def test_many_patterns_are_for_a_worker() -> None:
    row = {"options": [{"A": "x"}], "expected_answer": "A", "template_metadata": {"output_regex": [r"(\w+)!"] * 32}}
    parsed = ENVIRONMENT.check_row(row)
    assert ENVIRONMENT.quick(parsed, said("A" * 5000)) is None
    assert ENVIRONMENT.quick(parsed, said("A!")) is not None


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=6),
        st.sampled_from("ABab"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["A", "B", "c", "output_regex"]), inner)
    ),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON
        for name in ("options", "expected_answer", "grading_mode", "template_metadata", "responses_create_params")
    },
)


@given(FIELDS, st.text(max_size=30))
def test_any_row_is_graded_or_refused_by_name(row: dict[str, Any], text: str) -> None:
    try:
        parsed = ENVIRONMENT.check_row(row)
    except RowError as error:
        assert str(error).startswith("environment 'mcqa' task '?': field '")
        return
    assert ENVIRONMENT.verify(parsed, said(text)).reward in (0.0, 1.0)


def test_the_setting_overrules_the_row() -> None:
    row = {"options": [{"A": "x"}], "expected_answer": "A", "grading_mode": "strict_single_letter_boxed"}
    environment = Mcqa(McqaSettings(grading_mode="lenient_answer_colon"))
    for one, reward in ((ENVIRONMENT, 0.0), (environment, 1.0)):
        assert one.verify(one.check_row(row), said("Answer: A")).reward == reward


def test_only_the_end_of_a_long_answer_is_read() -> None:
    environment = Mcqa(McqaSettings(max_answer_chars=100))
    row = environment.check_row({"options": [{"A": "x"}], "expected_answer": "A"})
    assert environment.verify(row, said("\\boxed{A}" + " " * 100)).reward == 0.0
    assert environment.verify(row, said(" " * 1000 + "\\boxed{A}")).reward == 1.0


@given(st.text("ABCDab \\boxed{}text*_:.,()[]$answer\n", max_size=80), st.sampled_from(MODES))
def test_whatever_is_written_chooses_one_option_or_none(text: str, mode: Mode) -> None:
    found = choose(text, OPTIONS, mode)
    assert found.letter in {"", *OPTIONS}


@given(
    st.lists(st.sampled_from("ABCD"), min_size=2, max_size=6).filter(lambda letters: len(set(letters)) > 1), st.data()
)
def test_several_letters_choose_none(letters: list[str], data: st.DataObject) -> None:
    joined = data.draw(st.sampled_from([", ", "", " ", "/", " or ", " and ", ". ", "-", ": ", ") "])).join(letters)
    assert boxed_letter(f"\\boxed{{{joined}}}", OPTIONS) == ""
    for mode in ("lenient_answer_colon", "lenient_answer_colon_md"):
        assert choose(f"Answer: {joined}", OPTIONS, mode).letter == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box", "strict", "lenient"),
    [
        ("A. B. C. D.", "", ""),
        ("A-B-C-D", "", ""),
        ("A: or B: or C", "", ""),
        ("A) red, B) blue", "", ""),
        ("A) red, B)", "", ""),
        ("A - D", "", ""),
        ("A: red", "A", "A"),
        ("A) red (A)", "A", "A"),
        ("(B) blue, as in the U.S.", "B", "B"),
        ("E: vitamin C", "E", "E"),
        ("E: vitamin C.", "E", "E"),
        ("E: vitamin B or C", "", ""),
        ("it is red", "", "A"),
        ("not red", "", ""),
        ("it isn't red", "", ""),
        ("red, not red", "", ""),
    ],
)
def test_a_list_of_labels_and_a_negated_text_choose_none(box: str, strict: str, lenient: str) -> None:
    options = {**OPTIONS, "E": "Vitamin C"}
    assert choose(f"\\boxed{{{box}}}", options, "strict_single_letter_boxed").letter == strict
    assert choose(f"\\boxed{{{box}}}", options, "lenient_boxed").letter == lenient


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 9000,
        "\\text{" * 9000,
        "{" * 60_000,
        "answer:" * 9000,
        "Answer:\n" * 8000,
        "A" * 65_000,
        "_*`" * 20_000,
    ],
)
def test_hostile_answers_are_read_in_linear_time(text: str) -> None:
    for mode in MODES:
        assert choose(text, OPTIONS, mode).letter in {"", "A"}
        assert choose(f"\\boxed{{{text}}}", OPTIONS, mode).letter in {"", "A"}


def test_tasks_are_a_function_of_index_seed_and_split() -> None:
    rows = list(ENVIRONMENT.generate(60, 3, "train"))
    assert rows == list(ENVIRONMENT.generate(60, 3, "train"))
    assert rows[:10] == list(ENVIRONMENT.generate(10, 3, "train"))
    assert rows != list(ENVIRONMENT.generate(60, 4, "train"))
    assert {row["family"] for row in rows} == {family for family, *_ in FAMILIES}
    assert all(0.0 <= row["difficulty"] <= 1.0 for row in rows)
    assert len({row["grading_mode"] for row in rows}) == 3
    assert any("template_metadata" in row for row in rows)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_gold_earns_all_and_hacks_and_copies_nothing(split: Literal["train", "heldout"]) -> None:
    places: Counter[float] = Counter()
    for row in ENVIRONMENT.generate(300, 5, split):
        parsed = ENVIRONMENT.check_row(row)
        assert isinstance(parsed, McqaRow)
        assert 4 <= len(set(parsed.texts.values())) == len(parsed.options) <= 10
        places[list(parsed.texts).index(parsed.expected_answer) / (len(parsed.options) - 1)] += 1
        gold = ENVIRONMENT.gold(parsed)
        assert gold is not None and ENVIRONMENT.verify(parsed, gold).reward == 1.0
        for name, output in ENVIRONMENT.probes(parsed).items():
            assert ENVIRONMENT.verify(parsed, output).reward == 0.0, (name, final_text(output), row)
        for turn in row["responses_create_params"]["input"]:
            if turn["role"] == "assistant":
                assert ENVIRONMENT.verify(parsed, said(turn["content"])).reward == 0.0
    first, last = places[0.0], places[1.0]
    assert 30 < first < 80 and 30 < last < 80  # a fifth each would be 60


def question(row: dict[str, Any]) -> str:
    return str(row["responses_create_params"]["input"][-1]["content"])


def test_train_and_heldout_share_no_question() -> None:
    def asked(split: Literal["train", "heldout"]) -> set[tuple[str, ...]]:
        """Every question by its words in any order (a list has its order in the right option), so that wording tells none apart."""
        found = set()
        for row in ENVIRONMENT.generate(1500, 1, split):
            words = "".join(c if c.isalnum() else " " for c in question(row).split("\n")[0]).split()
            parameters = [
                word for word in words if word.isdigit() or word[0].isupper() or row["family"] == "kind_of_four"
            ]
            right = {key: text for option in row["options"] for key, text in option.items()}[row["expected_answer"]]
            found.add((row["family"], right, *sorted(parameters[1:])))
        return found

    for wanted in (
        "small_sum",
        "product",
        "remainder",
        "weekday",
        "sorted_list",
        "extreme_of_four",
        "kind_of_four",
    ):
        train, heldout = ({one for one in asked(split) if one[0] == wanted} for split in ("train", "heldout"))
        assert len(train) > 20 and len(heldout) > 10
        assert not train & heldout, wanted


def test_right_options_are_right() -> None:
    for row in ENVIRONMENT.generate(450, 8, "train"):
        words = question(row).split("\n")[0].replace("?", " ").replace(".", " ").split()
        numbers = [int(word) for word in words if word.isdigit()]
        right = {key: text for option in row["options"] for key, text in option.items()}[row["expected_answer"]]
        if row["family"] == "weekday":
            start = date(2024, 1, 1) + timedelta(days=DAYS.index(words[2]))
            assert (start + timedelta(days=numbers[0])).strftime("%A") == right
        elif row["family"] == "remainder":
            assert (numbers[0] - int(right)) % numbers[1] == 0 and 0 <= int(right) < numbers[1]
        elif row["family"] == "modular_power":
            base, exponent = map(int, words[2].split("^"))
            value = 1
            for _ in range(exponent):
                value = value * base % numbers[-1]
            assert str(value) == right
        elif row["family"] == "chain_of_comparisons":
            pairs = [(words[k - 3], words[k + 1]) for k, word in enumerate(words) if word == "than"]
            above = {low: high for high, low in pairs}
            place, name = 0, right
            while name in above:
                place, name = place + 1, above[name]
            asked = question(row).split("Who is the ")[1].split()[0]
            assert place == {"second": 1, "third": 2}.get(asked, 0)
