"""Which option does an answer choose? Pure functions from a text and the options to a letter.

Order: the row's `output_regex` (case does not matter, the last match counts), then the grading mode. Everything but a large regex
from the row is one pass over the text without backtracking, so the server may run it in its own process.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from environments.competition_math.extraction import search_boxed
from gym_servers.patterns import QUICK_STEPS, search_last, steps
from gym_servers.protocol import Verdict

Mode = Literal["strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md"]
Options = Mapping[str, str]
"""Text of each option by its upper-case letter."""

SCRIPTS = str.maketrans({"أ": "A", "ب": "B", "ج": "C", "د": "D", "অ": "A", "ব": "B", "ড": "C", "ঢ": "D"})
"""Letters that number options in Arabic and Bengali."""
MAX_WRAPPERS = 4
WORDS_AROUND = 200
"""Most characters that a box may hold beside the option's text."""
_EMPHASIS = str.maketrans("", "", "*_`")
_LABEL = re.compile(r"[^A-Za-z]{0,8}([A-Z])\s{0,8}[:).\-]")
_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_COMMAND = re.compile(r"\\[a-zA-Z]{1,16}\s?\{")
_OTHER = re.compile(r"(?<![^\W_])([A-Z])(?:\s{0,8}[:).\-]|\W*$)")
"""A letter that stands alone as a label, or at the end."""
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|except|without)\b|n['’]t\b")
_ALONE = re.compile(r"(?<![^\W_])[A-Z](?![^\W_])")


class Found(NamedTuple):
    """letter: the option chosen, "" where none is. how: what told it."""

    letter: str
    how: str


def normal(text: str) -> str:
    """`text` as options are compared: without emphasis and case, single spaces."""
    return " ".join(text.translate(_EMPHASIS).casefold().split())


def unwrapped(text: str) -> str:
    """`text` without `\\text{}` around all of it."""
    for _ in range(MAX_WRAPPERS):
        text = text.strip()
        inner = text[6:-1]
        if not (text.startswith("\\text{") and text.endswith("}")) or not _closed(inner):
            return text
        text = inner
    return text.strip()


def _closed(text: str) -> bool:
    """Whether no brace of `text` closes one that stands before it."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _box(text: str) -> str | None:
    return search_boxed(text) if "\\boxed{" in text else None


def boxed_letter(text: str, options: Options) -> str:
    """The one upper-case letter in the last box, or the label before the text there; "" where it is no option."""
    inner = _box(text)
    if inner is None:
        return ""
    inner = unwrapped(inner)
    letters = [character for character in inner if character.isalpha()]
    if len(letters) == 1 and letters[0].isupper():
        return letters[0] if letters[0] in options else ""
    label = _LABEL.match(inner)
    return label.group(1) if label and label.group(1) in options and not _lists(inner, options) else ""


def _lists(inner: str, options: Options) -> bool:
    """Whether a box that begins with a label has another option's letter too, and what follows the label is not its option's text."""
    label = _LABEL.match(inner)
    if label is None:
        return False
    letter, rest = label.group(1), inner[label.end() :]
    if normal(rest).rstrip(" .") == normal(options.get(letter, "")).rstrip(" ."):
        return False  # "B: vitamin C"
    return any(other in options and other != letter for other in _OTHER.findall(rest))


def boxed_option(text: str, options: Options) -> str:
    """The option whose text is the last box's; else the only one whose text is in it as whole words, with few words around and no
    negation before it."""
    inner = _box(text)
    if inner is None:
        return ""
    inner = unwrapped(inner)
    given = normal(inner)
    texts = {letter: normal(option) for letter, option in options.items() if normal(option)}
    found = [letter for letter, option in texts.items() if option == given]
    if not found and not _lists(inner, options):
        found = [letter for letter, option in texts.items() if _holds(given, option)]
    return found[0] if len(found) == 1 else ""


def _holds(given: str, option: str) -> bool:
    """Whether `given` says `option` as whole words and numbers: 5 is neither in 25 nor in 2.5 nor in -5, nor is red in "not red"."""
    if len(given) > len(option) + WORDS_AROUND:
        return False
    places = [at.start() for at in re.finditer(rf"(?<![\w.,/-]){re.escape(option)}(?!\w)(?![.,/][0-9])", given)]
    return bool(places) and _NEGATION.search(given, 0, places[-1]) is None


def answer_line(text: str, options: Options) -> str:
    """The letter, or the option's whole text, on the line of the last "Answer:"."""
    lines = _ANSWER.findall(text.translate(_EMPHASIS))
    if not lines:
        return ""
    given = unwrapped(lines[-1])
    if len(given) == 1 and given.upper() in options:
        return given.upper()
    found = [letter for letter, option in options.items() if normal(option) == normal(given)]
    return found[0] if len(found) == 1 else ""


def answer_line_marked_up(text: str, options: Options) -> str:
    """The letter on the last line "Answer:" that names exactly one option, whatever LaTeX, brackets or script it is written in."""
    for line in reversed(_ANSWER.findall(unicodedata.normalize("NFKC", text).translate(_EMPHASIS))):
        given = _COMMAND.sub(" ", line).translate(SCRIPTS)
        bare = given.strip(" \t\r$(){}[].,;:!\\")
        if len(bare) == 1:
            found = {bare.upper()}
        else:
            found = {letter for letter in _ALONE.findall(given) if letter in options}
        if len(found) == 1 and found <= set(options):
            return found.pop()
    return ""


def matched(text: str, patterns: Sequence[str], options: Options) -> str:
    """What the first of `patterns` that finds a letter or an option's text says; a letter need not be one of the options."""
    for pattern in patterns:
        said = search_last(pattern, text)
        if said is None:
            continue
        given = unicodedata.normalize("NFKC", said).translate(SCRIPTS).strip()
        if len(given) == 1 and given.isalpha():
            return given.upper()
        found = [letter for letter, option in options.items() if normal(option) == normal(given)]
        if len(found) == 1:
            return found[0]
    return ""


def all_quick(text: str, patterns: Sequence[str]) -> bool:
    """Whether `choose` costs milliseconds at the worst."""
    return sum(steps(pattern, text) for pattern in patterns) <= QUICK_STEPS


def choose(text: str, options: Options, mode: Mode, patterns: Sequence[str] = ()) -> Found:
    """The option that `text` chooses. Raises PatternError for a pattern that cannot be used."""
    text = text.strip()
    if letter := matched(text, patterns, options):
        return Found(letter, "output_regex")
    if mode == "lenient_answer_colon":
        return Found(answer_line(text, options), mode)
    if mode == "lenient_answer_colon_md":
        return Found(answer_line_marked_up(text, options), mode)
    letter = boxed_letter(text, options)
    if not letter and mode == "lenient_boxed":
        letter = boxed_option(text, options)
    return Found(letter, mode)


def verdict(text: str, expected: str, options: Options, mode: Mode, patterns: Sequence[str] = ()) -> Verdict:
    """1 where `text` chooses `expected`, an upper-case letter."""
    found = choose(text, options, mode, patterns)
    parts = {"extracted_answer": found.letter or None, "expected_answer": expected, "how": found.how}
    if not found.letter:
        return Verdict(reward=0.0, explanation=f"The answer chooses no option ({found.how}).", parts=parts)
    right = found.letter == expected
    relation = "as expected" if right else f"expected is {expected}"
    explanation = f"The answer chooses {found.letter}, {relation} ({found.how})."
    return Verdict(reward=float(right), explanation=explanation, parts=parts)
