"""Is the answer the expected one? Pure functions from two texts to a verdict.

`decide` is bounded and linear: equal text, or equal numbers by exact arithmetic (arithmetic.py). What it cannot tell goes to
`symbolic`, math-verify's comparison, which has no bound of its own and runs in a worker only.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache

from environments.competition_math.arithmetic import TooLarge, Undefined, Unsupported, Value, evaluate, same
from environments.competition_math.extraction import Extracted, extract, search_boxed
from gym_servers.protocol import Verdict

_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_NAME = re.compile(r"(?:[a-zA-Z]|[a-zA-Z]\s*\([a-z]\))\s*=(?!=)\s*")
_NAMED_AFTER = re.compile(r"\s*=\s*[a-zA-Z]$")
_TRAILING = re.compile(r"(?:\\(?:quad|qquad|,|;|!)|~|\s|\.)+$")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)$")
_UNIT = re.compile(
    r"(?<=[0-9)}])\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*[a-zA-Z /^0-9]{1,30}\}(?:\^\{?[23]\}?)?|\s[a-zA-Z]{2,20})$"
)
_SCALE = re.compile(r"hundred|thousand|million|billion|trillion|dozen", re.IGNORECASE)
_SEVERAL = re.compile(r"[0-9]\s+[0-9]")
_UNBRACED = re.compile(r"\\(?:[dtc]?frac|[dt]?binom)\s*[0-9]\s+(?=[0-9](?!\.?[0-9]))|\\log_[0-9]\s+")
"""A command up to its last argument, where arguments are digits without braces: `\\frac 1 2` is one number, not two."""
_MIXED_NUMBER = re.compile(r"-?\s*[0-9]+\s+[0-9]+\s*/\s*[0-9]+")
_WORD = re.compile(r"[A-Za-z][A-Za-z '-]{2,}")
_POWER_OF_TEN = re.compile(r"[0-9.]+\s*(?:\\times|\\cdot|[×·*])\s*10\s*\^\s*(?:\{\s*-?[0-9]+\s*\}|-?[0-9]+)")
_BETWEEN = re.compile(r"\\[,;:!> ]|~|\\(?:q?quad|left|right)(?![a-zA-Z])|\{\s*([-+*×·÷]|\\(?:times|cdot|div))\s*\}")
_COMPUTED = re.compile(
    r"(?<=[0-9.)}\]!%π])\s*(?:[-+*×·⋅∗÷]|\\(?:times|cdot|ast|div|bmod|p?mod)(?![a-zA-Z])|(?:mod|of)\b)\s*[-+]?(?=[0-9.({\\])"
    r"|(?<=[0-9)])\s*\((?=\s*[-+0-9.])"
    r"|\\(?:int|lim|sum|prod|det|[dt]?binom|begin|[lr]floor|[lr]ceil)(?![a-zA-Z])|\\?(?:gcd|lcm|max|min)(?![a-zA-Z])"
    r"|(?<=[0-9)}\]])\s*!"
)
"""An operation between operands, or one with a name. A sign, a fraction, a root and `3 \\times 10^5` are ways to write a number."""
MAX_EXPECTED_CHARS = 1000
"""Less than the part of an answer that is read, so that the expected answer itself fits."""


def plain(text: str) -> str:
    """`text` without what does not change its value: math delimiters, a box, font commands, one `x =`, a unit, degrees."""
    text = text.replace("−", "-").replace("\\varnothing", "\\emptyset").strip()
    content = search_boxed(text)
    if content is not None:
        text = content.strip()
    for opening, closing in _DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
            break
    text = _TRAILING.sub("", text)
    if not _SCALE.search(text):  # "5 million" is not 5
        text = _UNIT.sub("", text)
    text = _DEGREES.sub("", text)
    text = _WRAPPERS.sub(lambda match: match.group(1), text).strip()
    if text.count("=") == 1:
        text = _NAMED_AFTER.sub("", text)
    name = _NAME.match(text)
    return text[name.end() :] if name and "=" not in text[name.end() :] else text


def number(text: str) -> Value:
    """Value of `text`; a percentage is a hundredth of its number. Raises what `evaluate` raises."""
    if text.endswith("%"):
        value = evaluate(text[:-1].removesuffix("\\").strip())
        return Value(
            value.number * Fraction(1, 100) if isinstance(value.number, Fraction) else value.number / 100, value.decimal
        )
    return evaluate(text)


NOT_COMPUTED = "an expression that is not computed"


def is_number(expected: str) -> bool:
    """Whether `expected` is a number as it stands, with nothing left to compute."""
    try:
        number(plain(expected))
    except (Unsupported, Undefined, TooLarge):
        return False
    return not is_computation(plain(expected))


def is_computation(text: str) -> bool:
    """Whether `text` leaves something to compute, as the question did: copied into the box it is no answer."""
    text = _BETWEEN.sub(lambda match: match.group(1) or " ", text)
    return _COMPUTED.search(_POWER_OF_TEN.sub("0", text)) is not None


def verdict(right: bool, answer: str, expected: str, how: str) -> Verdict:
    """The verdict on an extracted answer."""
    shown = answer if len(answer) <= 80 else answer[:77] + "..."
    relation = "equals" if right else "is not"
    return Verdict(
        reward=float(right),
        explanation=f"The answer '{shown}' {relation} the expected '{expected}' ({how}).",
        parts={"extracted_answer": answer[:500], "how": how},
    )


def decide(text: str, expected: str, *, require_box: bool = False) -> tuple[Verdict | None, Extracted | None]:
    """(verdict, answer); the verdict is None where only the symbolic comparison can tell."""
    answer = extract(text, require_box=require_box)
    if answer is None:
        return Verdict(reward=0.0, explanation="There is no answer in the text.", parts={"how": "no answer"}), None
    gold, given = plain(expected), plain(answer.text)
    if _WORD.fullmatch(gold):  # as a product of letters, "sYe" would be "Yes"
        return verdict(given.casefold() == gold.casefold(), answer.text, expected, "same words"), answer
    if given.count("=") > 1 and given != gold:  # math-verify takes any side of a chain, so "x = 11 = 12" would be both
        return verdict(False, answer.text, expected, "a chain of equations"), answer
    joined = _UNBRACED.sub(lambda match: "".join(match.group().split()), given)
    if _SEVERAL.search(joined) and not _MIXED_NUMBER.fullmatch(given) and given != gold:  # read as a sum otherwise
        return verdict(False, answer.text, expected, "numbers side by side"), answer
    try:
        gold_value = number(gold)
    except (Unsupported, Undefined, TooLarge):
        gold_value = None
    if gold_value is not None and "=" in given:
        return verdict(False, answer.text, expected, "an equation, not a number"), answer
    if gold_value is not None and is_computation(given) and not is_computation(gold):
        return verdict(False, answer.text, expected, NOT_COMPUTED), answer
    if _SCALE.search(given) and not _SCALE.search(gold):
        return verdict(False, answer.text, expected, "a number word that was not asked for"), answer
    try:
        given_value = number(given)
    except (Undefined, TooLarge) as error:
        if isinstance(error, TooLarge) and given == gold:
            return verdict(True, answer.text, expected, "same text"), answer
        if gold_value is not None or "\\" not in gold:
            why = "undefined" if isinstance(error, Undefined) else "too large to compute"
            return verdict(False, answer.text, expected, why), answer
        return None, answer
    except Unsupported:
        if given and given == gold:
            return verdict(True, answer.text, expected, "same text"), answer
        return None, answer
    if gold_value is None:
        return None, answer
    equal = same(gold_value, given_value)
    if equal is None:
        return None, answer
    return verdict(equal, answer.text, expected, "exact arithmetic"), answer


def boxed(expected: str) -> str:
    """An answer that gives `expected` as it is written."""
    return expected if "\\boxed" in expected else f"\\boxed{{{expected.strip('$')}}}"


@lru_cache(maxsize=4096)
def gold_problem(expected: str) -> str | None:
    """Why no answer could equal `expected`, so that its row is of no use; None where one can. Bounded and linear."""
    if len(expected) > MAX_EXPECTED_CHARS:
        return f"it has {len(expected)} characters, at most {MAX_EXPECTED_CHARS} are compared"
    gold = plain(expected)
    if not gold:
        return "it is blank"
    try:
        number(gold)
    except Undefined:
        return f"'{gold}' is undefined"
    except (Unsupported, TooLarge):
        pass
    found, _ = decide(boxed(expected), expected)
    if found is not None and found.reward == 0.0:
        return "it does not even equal itself: is a brace missing?"
    return None


def prepare() -> None:
    """Import what `symbolic` needs, outside anybody's CPU limit."""
    import math_verify  # noqa: F401


def symbolic(answer: Extracted, expected: str) -> Verdict:
    """math-verify's comparison, gold first. Unbounded in time and memory: for workers only."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once a process that its own time-outs are off
    gold_text = expected if search_boxed(expected) is not None else f"\\boxed{{{plain(expected)}}}"
    gold = parse(gold_text, extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    given = parse(
        f"\\boxed{{{answer.text}}}",
        # LaTeX only: the expression parser would hand the model's text to sympy's parse_expr.
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,
    )
    return verdict(bool(verify(gold, given, timeout_seconds=None)), answer.text, expected, "math-verify")
