"""instruction_following: sentences, words, syllables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.instruction_following.language import detect, english
from environments.instruction_following.lexicon import is_emoji, starts_like_verb, syllables
from environments.instruction_following.text import marked_sentences, sentences, tokens, word_tokens, words

SENTENCES = [
    ("Dr. Lee came. He sat.", ["Dr. Lee came.", "He sat."]),
    ("It costs 3.50 today. Really?", ["It costs 3.50 today.", "Really?"]),
    ('He said "go." Then he left.', ['He said "go."', "Then he left."]),
    ("all small. also small! yes", ["all small.", "also small!", "yes"]),
    ("Wait... what? Wait... What?", ["Wait... what?", "Wait...", "What?"]),
    ("We met J. Smith, e.g. at noon.", ["We met J. Smith, e.g. at noon."]),
    ("1. Tea\n2. Milk", ["1.", "Tea\n2.", "Milk"]),
    ("See a.b.c. Then go", ["See a.b.c. Then go"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


MARKED = [
    ("One.Two? Three!", ["One.", "Two?", "Three!"]),
    ("Mr. Fox has 2.5 apples. Ok", ["Mr. Fox has 2.5 apples.", "Ok"]),
    ("Go to site.com now. Go.", ["Go to site.com now.", "Go."]),
    ("A Ph.D. helps. Yes.", ["A Ph.D. helps.", "Yes."]),
    ('"Stop!" she said.', ['"Stop!"', "she said."]),
    ("Hm... no.", ["Hm...", "no."]),
]


@pytest.mark.parametrize(("text", "expected"), MARKED)
def test_marked_sentences(text: str, expected: list[str]) -> None:
    assert marked_sentences(text) == expected


@given(st.text(alphabet='ab. ?!"\n', max_size=60))
def test_splitting_loses_no_letter(text: str) -> None:
    for split in (sentences, marked_sentences):
        assert "".join("".join(split(text)).split()) == "".join(text.split())


def test_tokens() -> None:
    assert tokens("I don't, cannot pay $3.50!") == ["I", "do", "n't", ",", "can", "not", "pay", "$", "3.50", "!"]
    assert word_tokens("well-known (e.g. tea).") == ["well-known", "e.g.", "tea"]
    assert words("it's 3.5") == ["it", "s", "3", "5"]


@pytest.mark.parametrize(
    ("word", "number"),
    [("the", 1), ("table", 2), ("make", 1), ("over", 2), ("walked", 1), ("wanted", 2), ("banana", 3), ("42", 2)],
)
def test_syllables(word: str, number: int) -> None:
    assert syllables(word) == number


def test_verbs_and_emoji() -> None:
    assert starts_like_verb(["Running"]) and starts_like_verb(["Write"]) and starts_like_verb(["summarize"])
    assert not any(starts_like_verb([word]) for word in ("The", "during", "Morning", "42", "Should"))
    assert not starts_like_verb([])
    assert is_emoji("😊") and is_emoji("⭐") and not is_emoji("a") and not is_emoji("1")


def test_language_is_the_same_every_time_and_short_english_is_english() -> None:
    text = "Il gatto dorme sul divano e noi leggiamo un libro."
    assert {detect(text) for _ in range(5)} == {"it"}
    assert english("i have a cat and it is black") and not english(text)
    assert detect("12345") == ""
