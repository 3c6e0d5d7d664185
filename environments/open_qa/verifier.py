"""Open answers: what is extracted of one, and whether code alone can tell that it is the expected one. Pure, linear in the text.

`matches` grades rows whose answer is exact (a name, a number, a date): the final answer of the text, not a text that holds it somewhere.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from decimal import Decimal
from typing import Any

MAX_FINAL_CHARS = 300
"""A final answer that is longer is none: exact answers are short."""
_CUE = re.compile(r"\banswer\b(?: is\b)?[*_ \t]*:?[*_ \t]*", re.IGNORECASE)
# "answer:" or "answer is", but no remark on an answer that stands elsewhere ("This answer is final").
_STRONG_CUE = re.compile(
    r"\banswer\b(?: is\b)?[*_ \t]*:[*_ \t]*"
    r"|(?<!\bthis )(?<!\bthat )\banswer is\b(?!\s+(?:final|correct|right|certain|based)\b)[*_ \t]*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,30}|[0-9]{1,3}(?:,[0-9]{3}){1,9})(?:\.[0-9]{1,30})?")
_MONTHS = (
    "january february march april may june july august september october november december".split()
)  # fmt: skip
_ISO = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})")
_DAY_FIRST = re.compile(r"([0-9]{1,2})(?:st|nd|rd|th)?(?: of)? ([a-z]{3,9}),? ([0-9]{4})")
_MONTH_FIRST = re.compile(r"([a-z]{3,9}) ([0-9]{1,2})(?:st|nd|rd|th)?,? ([0-9]{4})")
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")


def last_user_text(params: dict[str, Any]) -> str:
    """The last user message of `responses_create_params`; "" where there is none."""
    given = params.get("input")
    if isinstance(given, str):
        return given
    for item in reversed(given if isinstance(given, list) else []):
        if isinstance(item, dict) and item.get("role") == "user":
            return content_text(item.get("content"))
    return ""


def content_text(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def final_answer(text: str) -> str:
    """What follows the last "answer:" or "answer is" on its line, else the last word "answer", or else the last line; without emphasis."""
    lines = [line for line in text.splitlines() if line.strip()]
    for cue in (_STRONG_CUE, _CUE):
        for number in range(len(lines) - 1, -1, -1):
            cues = list(cue.finditer(lines[number]))
            if cues:
                after = lines[number][cues[-1].end() :].strip()
                return after or "\n".join(lines[number + 1 : number + 2]).strip()
    return lines[-1].strip() if lines else ""


def normal(answer: str) -> str:
    """An answer without case, emphasis, quotes, an article before it, punctuation after it, and further blanks."""
    folded = unicodedata.normalize("NFKC", answer).casefold()
    folded = folded.replace("’", "'").replace("\u2212", "-")  # the minus sign
    folded = " ".join(re.sub(r"[*_`\"“”]", "", folded).split()).strip("'")
    return _ARTICLE.sub("", folded.rstrip(".!,;: ")) if folded else ""


def number(answer: str) -> Decimal | None:
    """The number that a normal answer is; None where it is none."""
    return Decimal(answer.replace(",", "")) if _NUMBER.fullmatch(answer) else None


def day(answer: str) -> date | None:
    """The date that a normal answer is: 2031-03-14, 14 March 2031 or March 14, 2031, months also by three letters."""
    if found := _ISO.fullmatch(answer):
        year, month, of_month = (int(part) for part in found.groups())
    elif found := _DAY_FIRST.fullmatch(answer) or _MONTH_FIRST.fullmatch(answer):
        first, second, last = found.groups()
        name, in_month = (second, first) if first.isdigit() else (first, second)
        months = [k for k, full in enumerate(_MONTHS, 1) if name in (full, full[:3])]
        if not months:
            return None
        year, month, of_month = int(last), months[0], int(in_month)
    else:
        return None
    try:
        return date(year, month, of_month)
    except ValueError:
        return None


def same(given: str, expected: str) -> bool:
    """Whether two short answers are one name, number or date."""
    left, right = normal(given), normal(expected)
    if left == right:
        return bool(left)
    if (value := number(right)) is not None:
        return number(left) == value
    if (when := day(right)) is not None:
        return day(left) == when
    return False


def matches(text: str, expected: str) -> bool:
    """Whether the final answer of `text` is `expected`: exactly that one, so that listing several earns nothing."""
    answer = final_answer(text)
    return len(answer) <= MAX_FINAL_CHARS and same(answer, expected)
