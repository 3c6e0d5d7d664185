"""Which part of a text is the answer: the last balanced box, else what a careful reader would take for it.

One pass, no backtracking: the time is linear in the text, so the server may run it in its own process on model output.
Order: last balanced `\\boxed{}` (or `\\fbox{}`); what follows the last word "answer"; the last math environment; the last
number. A list of numbers is read whole, never for its last element, so that listing guesses earns nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BOXES = ("\\boxed{", "\\fbox{")
ANCHOR_REACH = 60
"""How many characters after the word "answer" the answer may start."""

# ASCII digits only: Python's \d also matches digits of other scripts, which the grammar behind does not read.
_NUMBER = re.compile(
    r"(?<![^\s=*$€£¥₹:])"
    r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]*\.?[0-9]+(?:[+\-*/^][0-9.()]+)*)"
    r"(?:\s?\\?%|\s?percent\b)?"
)
_NUMBERS_ONLY = re.compile(r"[0-9.,;/+\-\s]+")
_LIST_BEFORE = re.compile(r"[0-9](?:[\s,;]+|\s*(?:and|or)\s+)$")
_JOIN = re.compile(r"\s*(?:,\s*)?(?:and|or|,)\s*")
_ANSWER = re.compile("answer", re.IGNORECASE | re.ASCII)
_E_NOTATION = re.compile(r"[eE][+-]?[0-9]")


class Extracted(NamedTuple):
    """text: the answer as it was written; boxed: whether it stood in a box."""

    text: str
    boxed: bool


def search_boxed(text: str) -> str | None:
    """Content of the last balanced `\\boxed{}`; of the last balanced `\\fbox{}` where there is none; None without either.

    Escaped braces do not count as braces. Of nested boxes the innermost, which starts last, is taken.
    """
    found: dict[str, tuple[int, str]] = {}
    open_braces: list[tuple[int, str]] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            box = next((name for name in BOXES if text.startswith(name, position)), None)
            if box is not None:
                position += len(box)
                open_braces.append((position, box))
            else:
                position += 2
            continue
        if character == "{":
            open_braces.append((position + 1, ""))
        elif character == "}" and open_braces:
            start, box = open_braces.pop()
            if box and start > found.get(box, (-1, ""))[0]:
                found[box] = (start, text[start:position])
        position += 1
    for box in BOXES:
        if box in found:
            return found[box][1]
    return None


def extract(text: str, *, require_box: bool = False) -> Extracted | None:
    """The answer of `text`, or None where there is none. An empty box is no answer."""
    text = text.replace("−", "-")
    content = search_boxed(text)
    if content is not None:
        content = content.strip()
        return Extracted(content, True) if content else None
    if require_box:
        return None
    stripped = text.strip()
    if _NUMBERS_ONLY.fullmatch(stripped) and any(character.isdigit() for character in stripped):
        return Extracted(stripped.rstrip(".,;"), False)
    anchor = max((match.start() for match in _ANSWER.finditer(text)), default=-1)
    environments = _environments(text)
    if anchor >= 0:
        found = _after_anchor(text, anchor + len("answer"), environments)
        if found is not None:
            return Extracted(found, False)
    if environments:
        return Extracted(_joined(text, environments), False)
    last: re.Match[str] | None = None
    for match in _NUMBER.finditer(text):
        last = match
    if last is None:
        return None
    found = _accept(text, last)
    return Extracted(found, False) if found is not None else None


def _accept(text: str, match: re.Match[str]) -> str | None:
    """A number found in prose, unless it ends a list of numbers or is cut out of one in e-notation (1e999 is not 1)."""
    before = text[max(0, match.start() - 16) : match.start()]
    if _LIST_BEFORE.search(before) or _E_NOTATION.match(text, match.end()):
        return None
    return match.group().strip("*").strip()


def _after_anchor(text: str, start: int, environments: list[tuple[int, int, str]]) -> str | None:
    """The first math environment or number within reach of `start`; behind the last "=" of the same sentence if any."""
    for begin, _, content in environments:
        if start <= begin <= start + ANCHOR_REACH:
            first = _NUMBER.search(text, start, begin)
            if first is None:
                return content
            break
    end = len(text)
    for stop in ("\n", ". "):
        place = text.find(stop, start)
        if place >= 0:
            end = min(end, place)
    sentence_start = max(start, text.rfind("=", start, end) + 1)
    match = _NUMBER.search(text, sentence_start, min(end, sentence_start + ANCHOR_REACH + 40))
    if match is None or match.start() > sentence_start + ANCHOR_REACH:
        return None
    # "answer: 3, 5, 7" is a list of guesses, not the answer 3.
    if re.match(r"[,;]\s*[0-9]|\s+[0-9]|\s*(?:or|and)\s+[0-9]", text[match.end() : match.end() + 16]):
        return None
    return _accept(text, match)


def _environments(text: str) -> list[tuple[int, int, str]]:
    """Math environments of `text` in order: (begin, end, content). Each closer is searched for once per kind."""
    found: list[tuple[int, int, str]] = []
    missing: set[str] = set()
    position = 0
    while position < len(text):
        opener = ""
        if text.startswith("$$", position):
            opener, closer = "$$", "$$"
        elif text[position] == "$":
            opener, closer = "$", "$"
        elif text.startswith("\\[", position):
            opener, closer = "\\[", "\\]"
        elif text.startswith("\\(", position):
            opener, closer = "\\(", "\\)"
        elif text[position] == "\\":
            position += 2
            continue
        if not opener or closer in missing:
            position += max(1, len(opener))
            continue
        begin = position + len(opener)
        end = text.find(closer, begin)
        if end < 0:
            missing.add(closer)
            position = begin
            continue
        content = text[begin:end].strip()
        if content:
            found.append((position, end + len(closer), content))
        position = end + len(closer)
    return found


def _joined(text: str, environments: list[tuple[int, int, str]]) -> str:
    """The last environment, with those before it that only "and", "or" or a comma separates: together one answer."""
    parts = [environments[-1][2]]
    for (_, end, content), (begin, _, _) in zip(reversed(environments[:-1]), reversed(environments[1:]), strict=True):
        if not _JOIN.fullmatch(text[end:begin]):
            break
        parts.append(content)
    return ", ".join(reversed(parts))
