"""Checks of IFEval: keywords, lengths, formats. Each is `check(text, **kwargs) -> bool`, linear in the text."""

from __future__ import annotations

import json
import re
from typing import Any

from environments.instruction_following import kwargs as kind
from environments.instruction_following.kwargs import Instruction, compare
from environments.instruction_following.language import detect, english
from environments.instruction_following.text import sentences, tokens, words


def existence(text: str, keywords: list[str]) -> bool:
    """Every keyword occurs, inside longer words too, in any case."""
    low = text.lower()
    return all(keyword.lower() in low for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword occurs so often, inside longer words too."""
    return compare(text.lower().count(keyword.lower()), frequency, relation)


def whole(keyword: str) -> re.Pattern[str]:
    """Pattern of the keyword with word boundaries where it begins and ends with a letter or digit."""
    head = r"\b" if re.match(r"\w", keyword) else ""
    tail = r"\b" if re.search(r"\w\Z", keyword) else ""
    return re.compile(head + re.escape(keyword) + tail, re.IGNORECASE)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word."""
    return not any(whole(word).search(text) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter occurs so often, in either case."""
    return compare(text.lower().count(letter), let_frequency, let_relation)


def response_language(text: str, language: str) -> bool:
    """The text is in that language."""
    return english(text) if language == "en" else detect(text) == language


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compare(len(sentences(text)), num_sentences, relation)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return compare(len(words(text)), num_words, relation)


def parts_between(parts: list[str]) -> int | None:
    """How many parts there are; an empty first or last one is not counted, an empty one elsewhere spoils all: None."""
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return sum(1 for part in parts if part.strip())


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`."""
    return parts_between(text.split("***")) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs, divided by an empty line; the n-th begins with the word (quotes before it are not looked at)."""
    parts = text.split("\n\n")
    filled = sum(1 for part in parts if part.strip())
    if filled != num_paragraphs or nth_paragraph > filled:
        return False
    start = parts[nth_paragraph - 1].split(maxsplit=1)
    if not start:
        return False
    word = start[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def _nth_fits(values: dict[str, Any]) -> None:
    if values["nth_paragraph"] > values["num_paragraphs"]:
        raise ValueError("'nth_paragraph' is greater than 'num_paragraphs'")


def number_placeholders(text: str, num_placeholders: int) -> bool:
    """At least so many `[...]`, each within a line. The first `]` closes all that is open."""
    found = 0
    for line in text.split("\n"):
        at = line.find("[")
        while at >= 0:
            end = line.find("]", at)
            if end < 0:
                break
            found += 1
            at = line.find("[", end)
    return found >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """The marker occurs: `P.S.` and `P.P.S` with spaces between the letters too, any other as it is."""
    low = text.lower()
    if postscript_marker == "P.P.S":
        return re.search(r"p\.\s?p\.\s?s", low) is not None
    if postscript_marker == "P.S.":
        return re.search(r"p\.\s?s\.", low) is not None
    return postscript_marker.lower() in low


_BULLET = re.compile(r"(?:\*[^*]|-).*")


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `*` (not `**`) or `-`."""
    found = 0
    lines = text.split("\n")
    for index, line in enumerate(lines):
        line = line.lstrip()
        if line == "*" and index + 1 < len(lines):  # the line break stands for what follows the star
            found += 1
        elif line and _BULLET.match(line):
            found += 1
    return found == num_bullets


CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def constrained_response(text: str) -> bool:
    """One of the three answers occurs."""
    return any(answer in text for answer in CONSTRAINED)


_SINGLE = re.compile(r"\*([^\n*]*)\*")
_DOUBLE = re.compile(r"\*\*([^\n*]*)\*\*")


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many `*...*` or `**...**` with something between the stars."""
    single = sum(1 for inside in _SINGLE.findall(text) if inside.strip())
    double = sum(1 for inside in _DOUBLE.findall(text) if inside.strip())
    return single + double >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many marks such as `Section 1`."""
    return len(re.findall(re.escape(section_spliter) + r"\s?\d", text)) >= num_sections


_FENCES = ("```json", "```Json", "```JSON", "```")


def json_format(text: str) -> bool:
    """The whole text is JSON, a code fence around it allowed."""
    body = text.strip()
    for fence in _FENCES:
        body = body.removeprefix(fence)
    body = body.removesuffix("```").strip()
    try:
        json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: a bomb of brackets
        return False
    return True


def title(text: str) -> bool:
    """A line has `<<...>>` with something inside."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end > start + 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str) -> bool:
    """Two different answers, divided by `******`."""
    parts = text.split("******")
    if parts_between(parts) != 2:
        return False
    filled = [part.strip() for part in parts if part.strip()]
    return filled[0] != filled[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The text begins with the request."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    """The text ends with the phrase; quotation marks around the text are not looked at."""
    return text.strip().strip('"').lower().endswith(end_phrase.lower())


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """So many words are all in capitals."""
    return compare(sum(1 for token in tokens(text) if token.isupper()), capital_frequency, capital_relation)


def english_capital(text: str) -> bool:
    return text.isupper() and english(text)


def english_lowercase(text: str) -> bool:
    return text.islower() and english(text)


def no_comma(text: str) -> bool:
    return "," not in text


def quotation(text: str) -> bool:
    """The whole text stands between double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: dict[str, Instruction] = {
    "keywords:existence": Instruction(existence, {"keywords": kind.word_list}),
    "keywords:frequency": Instruction(
        frequency, {"keyword": kind.word, "frequency": kind.count, "relation": kind.relation}
    ),
    "keywords:forbidden_words": Instruction(forbidden_words, {"forbidden_words": kind.word_list}),
    "keywords:letter_frequency": Instruction(
        letter_frequency, {"letter": kind.letter, "let_frequency": kind.count, "let_relation": kind.relation}
    ),
    "language:response_language": Instruction(response_language, {"language": kind.language}, detects=True),
    "length_constraints:number_sentences": Instruction(
        number_sentences, {"num_sentences": kind.count, "relation": kind.relation}
    ),
    "length_constraints:number_paragraphs": Instruction(number_paragraphs, {"num_paragraphs": kind.count}),
    "length_constraints:number_words": Instruction(number_words, {"num_words": kind.count, "relation": kind.relation}),
    "length_constraints:nth_paragraph_first_word": Instruction(
        nth_paragraph_first_word,
        {"num_paragraphs": kind.position, "nth_paragraph": kind.position, "first_word": kind.word},
        fits=_nth_fits,
    ),
    "detectable_content:number_placeholders": Instruction(number_placeholders, {"num_placeholders": kind.count}),
    "detectable_content:postscript": Instruction(postscript, {"postscript_marker": kind.word}),
    "detectable_format:number_bullet_lists": Instruction(number_bullet_lists, {"num_bullets": kind.count}),
    "detectable_format:constrained_response": Instruction(constrained_response),
    "detectable_format:number_highlighted_sections": Instruction(
        number_highlighted_sections, {"num_highlights": kind.count}
    ),
    "detectable_format:multiple_sections": Instruction(
        multiple_sections, {"section_spliter": kind.word, "num_sections": kind.count}
    ),
    "detectable_format:json_format": Instruction(json_format),
    "detectable_format:title": Instruction(title),
    "combination:two_responses": Instruction(two_responses),
    "combination:repeat_prompt": Instruction(repeat_prompt, {"prompt_to_repeat": kind.text}),
    "startend:end_checker": Instruction(end_checker, {"end_phrase": kind.word}),
    "change_case:capital_word_frequency": Instruction(
        capital_word_frequency, {"capital_frequency": kind.count, "capital_relation": kind.relation}
    ),
    "change_case:english_capital": Instruction(english_capital, detects=True),
    "change_case:english_lowercase": Instruction(english_lowercase, detects=True),
    "punctuation:no_comma": Instruction(no_comma),
    "startend:quotation": Instruction(quotation),
}
