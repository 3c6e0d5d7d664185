"""Checks of the extended training set: the 29 instruction types that stand beside IFEval's 25."""

from __future__ import annotations

import itertools
import re
from typing import Any

from environments.instruction_following import kwargs as kind
from environments.instruction_following.checks_ifeval import frequency, letter_frequency, parts_between
from environments.instruction_following.kwargs import Instruction, compare
from environments.instruction_following.text import marked_sentences, tokens


def word_once(text: str, keyword: str) -> bool:
    """The keyword occurs exactly once, inside longer words too."""
    return text.lower().count(keyword.lower()) == 1


def exclude_word_harder(text: str, keyword: str) -> bool:
    """The keyword does not stand between two spaces, as it is written."""
    return f" {keyword} " not in text


def no_adjacent_consecutive(text: str) -> bool:
    """No word's first letter is the one that follows, in the alphabet, its predecessor's first letter."""
    initials = [word[0].lower()[0] for word in text.split()]
    return all(ord(second) - ord(first) != 1 for first, second in itertools.pairwise(initials))


def keyword_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    """The keyword is the m-th word of the n-th sentence, as it is written; punctuation marks count as words."""
    found = marked_sentences(text)
    if len(found) < n:
        return False
    sentence = tokens(found[n - 1])
    return len(sentence) >= m and sentence[m - 1] == keyword


def palindrome(text: str) -> bool:
    """Some word, as it is written, reads the same backwards; one letter does."""
    return any(word == word[::-1] for word in text.split())


def start_end(text: str) -> bool:
    """The first and the last of two words or more are the same; a mark at the end is a word."""
    found = tokens(text)
    return len(found) >= 2 and found[0].lower() == found[-1].lower()


def letter_counting(text: str, N: int, relation: str) -> bool:
    """So many ASCII letters."""
    return compare(len(re.findall(r"[A-Za-z]", text)), N, relation)


def two_paragraphs_starred(text: str) -> bool:
    """Two paragraphs, divided by `***`."""
    return parts_between(text.split("***")) == 2


def two_paragraphs(text: str) -> bool:
    """Two paragraphs, divided by an empty line."""
    return parts_between(text.split("\n\n")) == 2


def first_word_sent(text: str, first_word: str) -> bool:
    """Every sentence begins with the word."""
    starts = [sentence.split(maxsplit=1) for sentence in marked_sentences(text)]
    return all(start and start[0].lower() == first_word.lower() for start in starts)


def first_word_answer(text: str, first_word: str) -> bool:
    """The text begins with the word, nothing joined to it."""
    start = text.split(maxsplit=1)
    return bool(start) and start[0].lower() == first_word.lower()


def _ends_with(text: str, last_word: str) -> bool:
    end = text.rsplit(maxsplit=1)
    return bool(end) and re.sub(r"[^\w\s]", "", end[-1]).lower() == last_word.lower()


def last_word_sent(text: str, last_word: str) -> bool:
    """Every sentence ends with the word, marks aside."""
    return all(_ends_with(sentence, last_word) for sentence in marked_sentences(text))


def last_word_answer(text: str, last_word: str) -> bool:
    """The text ends with the word, marks aside."""
    return _ends_with(text, last_word)


def bigram_wrapping(text: str) -> bool:
    """Every two words stand between `<<` and `>>`; a last odd word is not looked at."""
    found = text.split()
    pairs = zip(found[0::2], found[1::2], strict=False)
    return all(first.startswith("<<") and second.endswith(">>") for first, second in pairs)


def sentence_hyphens(text: str) -> bool:
    """Sentences are joined by hyphens, with no space at the joint."""
    parts = text.split("-")
    found = marked_sentences(text.replace("-", " "))
    return all(part == sentence for part, sentence in zip(parts, found, strict=False))


def square_brackets(text: str) -> bool:
    """Every word stands in square brackets."""
    return all(word.startswith("[") and word.endswith("]") for word in text.split())


def copied(text: str, prompt_to_repeat: str) -> bool:
    """The text is the request and nothing else, in any case."""
    return text.strip().lower() == prompt_to_repeat.strip().lower()


def copying_multiple(text: str, prompt_to_repeat: str, N: int) -> bool:
    """The request N times, divided by `******`."""
    parts = text.split("******")
    return len(parts) == N and all(copied(part, prompt_to_repeat) for part in parts)


def repeat_phrase(text: str, phrase: str, small_n: int) -> bool:
    """The phrase so often, each within a line, at most one of its words changed, exactly one in the last."""
    model = phrase.split()
    opening, closing = model[0] + " ", " " + model[-1]
    found = changed = 0
    for line in text.split("\n"):
        start = line.find(opening)
        while start >= 0:
            end = line.find(closing, start + len(opening))
            if end < 0:
                break
            end += len(closing)
            words = line[start:end].split()
            changed = sum(1 for word, wanted in zip(words, model, strict=False) if word != wanted)
            if changed > 1 or len(words) > len(model):
                return False
            found += 1
            start = line.find(opening, end)
    return found == small_n and changed == 1


def copy_span_idx(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The text is that span of the request's characters, the end excluded."""
    return text.strip().lower() == prompt_to_repeat[n_start:n_end].strip().lower()


def span_fits(values: dict[str, Any]) -> None:
    if values["n_end"] < values["n_start"]:
        raise ValueError("'n_end' is less than 'n_start'")


def no_dot(text: str) -> bool:
    return "." not in text


def no_exclamation(text: str) -> bool:
    return "!" not in text


def lowercase_counting(text: str, N: int) -> bool:
    """At most N words are in small letters."""
    return len(re.findall(r"\b[a-z]+\b", text)) <= N


_DIVIDER = re.compile(r"\* ?\* ?\*")


def counting_composition(text: str, n_sent: int, n_words: int) -> bool:
    """Three paragraphs divided by `***` or `* * *`, each of so many sentences of so many words (marks are words too)."""
    parts = [part for part in _DIVIDER.split(text) if part.strip()]
    if parts_between(_DIVIDER.split(text)) != 3:
        return False
    for part in parts:
        found = marked_sentences(part)
        if len(found) != n_sent or any(len(tokens(sentence)) != n_words for sentence in found):
            return False
    return True


def count_unique(text: str) -> bool:
    """No word or mark, as it is written, occurs twice."""
    found = tokens(text)
    return len(found) == len(set(found))


def count_increment_word(text: str, keyword1: str, keyword2: str) -> bool:
    """The first keyword once, the second twice, inside longer words too."""
    low = text.lower()
    return low.count(keyword1.lower()) == 1 and low.count(keyword2.lower()) == 2


CHECKS: dict[str, Instruction] = {
    "keywords:word_once": Instruction(word_once, {"keyword": kind.word}),
    "keywords:word_count_different_numbers": Instruction(
        frequency, {"keyword": kind.word, "frequency": kind.count, "relation": kind.relation}
    ),
    "keywords:exclude_word_harder": Instruction(exclude_word_harder, {"keyword": kind.word}),
    "keywords:no_adjacent_consecutive": Instruction(no_adjacent_consecutive),
    "keywords:keyword_specific_position": Instruction(
        keyword_specific_position, {"keyword": kind.word, "n": kind.position, "m": kind.position}
    ),
    "keywords:palindrome": Instruction(palindrome),
    "keywords:start_end": Instruction(start_end),
    "letters:letter_counting": Instruction(letter_counting, {"N": kind.count, "relation": kind.relation}),
    "letters:letter_counting2": Instruction(
        letter_frequency, {"letter": kind.letter, "let_frequency": kind.count, "let_relation": kind.relation}
    ),
    "paragraphs:paragraphs": Instruction(two_paragraphs_starred),
    "paragraphs:paragraphs2": Instruction(two_paragraphs),
    "first_word:first_word_sent": Instruction(first_word_sent, {"first_word": kind.word}),
    "first_word:first_word_answer": Instruction(first_word_answer, {"first_word": kind.word}),
    "last_word:last_word_sent": Instruction(last_word_sent, {"last_word": kind.word}),
    "last_word:last_word_answer": Instruction(last_word_answer, {"last_word": kind.word}),
    "detectable_format:bigram_wrapping": Instruction(bigram_wrapping),
    "detectable_format:sentence_hyphens": Instruction(sentence_hyphens),
    "detectable_format:square_brackets": Instruction(square_brackets),
    "copy:copy": Instruction(copied, {"prompt_to_repeat": kind.text}),
    "copy:copying_simple": Instruction(copied, {"prompt_to_repeat": kind.text}),
    "copy:copying_multiple": Instruction(copying_multiple, {"prompt_to_repeat": kind.text, "N": kind.position}),
    "copy:repeat_phrase": Instruction(repeat_phrase, {"phrase": kind.word, "small_n": kind.position}),
    "new:copy_span_idx": Instruction(
        copy_span_idx, {"prompt_to_repeat": kind.text, "n_start": kind.count, "n_end": kind.count}, fits=span_fits
    ),
    "punctuation:punctuation_dot": Instruction(no_dot),
    "punctuation:punctuation_exclamation": Instruction(no_exclamation),
    "count:lowercase_counting": Instruction(lowercase_counting, {"N": kind.count}),
    "count:counting_composition": Instruction(
        counting_composition, {"n_sent": kind.position, "n_words": kind.position}
    ),
    "count:count_unique": Instruction(count_unique),
    "count:count_increment_word": Instruction(count_increment_word, {"keyword1": kind.word, "keyword2": kind.word}),
}
