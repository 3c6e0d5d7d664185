"""instruction_following: generated tasks."""

from __future__ import annotations

from typing import Any

import pytest

from environments.instruction_following.generator import FAMILIES
from environments.instruction_following.server import InstructionFollowing
from environments.instruction_following.topics import ENDINGS, HELDOUT, TRAIN

ENVIRONMENT = InstructionFollowing()


def reward(row: dict[str, Any], text: str) -> float:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
    return ENVIRONMENT.verify(ENVIRONMENT.check_row(row), output).reward


def test_tasks_are_a_function_of_index_seed_and_split() -> None:
    rows = list(ENVIRONMENT.generate(80, 3, "train"))
    assert rows == list(ENVIRONMENT.generate(80, 3, "train"))
    assert rows[:10] == list(ENVIRONMENT.generate(10, 3, "train"))
    assert rows != list(ENVIRONMENT.generate(80, 4, "train"))
    assert {row["family"] for row in rows} == {family for family, *_ in FAMILIES}
    assert len({row["difficulty"] for row in rows}) >= 5
    assert all(0.0 <= row["difficulty"] <= 1.0 for row in rows)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_gold_earns_all_and_a_copied_example_nothing(split: Any) -> None:
    copied = 0
    for row in ENVIRONMENT.generate(400, 5, split):
        gold = ENVIRONMENT.gold(ENVIRONMENT.check_row(row))
        assert gold is not None
        assert ENVIRONMENT.verify(ENVIRONMENT.check_row(row), gold).reward == 1.0, row
        assert len(row["instruction_id_list"]) >= 2
        for turn in row["responses_create_params"]["input"]:
            if turn["role"] == "assistant":
                copied += 1
                assert reward(row, turn["content"]) == 0.0, (row["family"], row["prompt"], turn["content"])
    assert copied > 200


LAZY = [
    "The end.",
    "Yes.",
    "<<title>>",
    "* a\n* b\n* c",
    "i am here and it is good for all of you today",
    "This is an answer with many words and nothing at all in it for anybody who reads it.",
]


@pytest.mark.parametrize("lazy", LAZY)
def test_one_answer_does_not_fit_all(lazy: str) -> None:
    assert all(reward(row, lazy) == 0.0 for row in ENVIRONMENT.generate(200, 6, "train"))


def stuffed(row: dict[str, Any]) -> str:
    """The wanted word again and again, in the form that the task asks for."""
    given = dict(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    word = given["keywords:existence"]["keywords"][0]
    match row["family"]:
        case "bullets":
            return "\n".join([f"* {word}"] * given["detectable_format:number_bullet_lists"]["num_bullets"])
        case "ending":
            return f"{' '.join([word] * 12)} {given['startend:end_checker']['end_phrase']}"
        case "title":
            return f"<<{word}>> {' '.join([word] * 12)}"
    return " ".join([word] * 12)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_stuffing_the_wanted_word_earns_nothing(split: Any) -> None:
    for row in ENVIRONMENT.generate(160, 9, split):
        assert reward(row, stuffed(row)) == 0.0, (row["family"], stuffed(row))


def test_the_closing_phrase_alone_earns_nothing() -> None:
    rows = [row for row in ENVIRONMENT.generate(400, 7, "train") if row["family"] == "ending"]
    assert all(reward(row, row["kwargs"][0]["end_phrase"]) == 0.0 for row in rows)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_repeating_the_request_earns_nothing(split: Any) -> None:
    for row in ENVIRONMENT.generate(400, 8, split):
        assert reward(row, row["prompt"]) == 0.0, (row["family"], row["prompt"])
        quoted = f'Sure! Here is my answer to "{row["prompt"]}"'
        assert reward(row, quoted) == 0.0, (row["family"], quoted)


def test_splits_share_no_topic_keyword_phrase_or_request() -> None:
    assert not {topic.name for topic in TRAIN} & {topic.name for topic in HELDOUT}
    assert not {w for topic in TRAIN for w in topic.sentences} & {w for topic in HELDOUT for w in topic.sentences}
    assert not set(ENDINGS["train"]) & set(ENDINGS["heldout"])
    train = {row["prompt"] for row in ENVIRONMENT.generate(800, 0, "train")}
    assert not train & {row["prompt"] for row in ENVIRONMENT.generate(800, 0, "heldout")}


@pytest.mark.parametrize("topic", [*TRAIN, *HELDOUT], ids=lambda topic: topic.name)
def test_a_topics_sentences_have_topic_keyword_and_no_comma(topic: Any) -> None:
    assert len(topic.sentences) == 3
    for keyword, sentence in topic.sentences.items():
        assert topic.name in sentence.lower() and keyword in sentence.lower() and "," not in sentence
        assert 10 <= len(sentence.split()) <= 20
