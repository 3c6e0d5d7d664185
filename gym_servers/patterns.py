"""Regular expressions from data, searched in model output in linear time (RE2).

A pattern that a row brings may be wrong or hostile, and the text that it reads is the policy's. RE2 has no backtracking; what it
lacks for that (look-around, back-references) is refused with a reason rather than run elsewhere, and so is a pattern that grows large.
Differences from Python's `re` that remain: `\\s`, `\\d`, `\\w` and `\\b` know ASCII only, `$` is the very end of the text.
"""

from __future__ import annotations

from functools import lru_cache

import re2

MAX_PATTERN_CHARS = 2000
MAX_PROGRAM = 2000
"""RE2 instructions: what a pattern grows to once its classes and repetitions are written out."""
MAX_STEPS = 100_000_000
"""Instructions times bytes that all searches of one text may cost at the worst, before the search jumps to its end."""
QUICK_STEPS = 5_000_000
END_CHARS = 2048


class PatternError(ValueError):
    """A pattern that cannot be used: not a regular expression, too large, or beyond what linear time can do."""


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re2._Regexp:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(f"the pattern has {len(pattern)} characters, at most {MAX_PATTERN_CHARS} are read")
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = 1 << 21
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        what = error.args[0] if error.args else error
        reason = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
        shown = pattern[:80].encode(errors="replace").decode()
        raise PatternError(
            f"the pattern '{shown}' cannot be used: {reason}; look-around and back-references are not supported"
        ) from None
    if compiled.programsize > MAX_PROGRAM:
        raise PatternError(
            f"the pattern '{pattern[:80]}' is too large: {compiled.programsize} steps a character, "
            f"at most {MAX_PROGRAM}; use smaller repetition counts"
        )
    return compiled


def check_pattern(pattern: str) -> str:
    """The pattern, if `search_last` can use it. Raises PatternError."""
    _compiled(pattern)
    return pattern


def steps(pattern: str, text: str) -> int:
    """What one search of `text` may cost at the worst, in instructions times bytes. Raises PatternError."""
    return 4 * len(text) * int(_compiled(pattern).programsize)


def is_quick(pattern: str, text: str) -> bool:
    """Whether one search of `text` costs milliseconds at the worst, so that a server's process may do it. Raises PatternError."""
    return steps(pattern, text) <= QUICK_STEPS


def search_last(pattern: str, text: str) -> str | None:
    """What the last match in `text` says: its first group, or all of it where there is none. Case does not matter.

    Matches follow each other as in `re.finditer`. In a text with so many of them that to search on would no longer be linear, the
    search goes on in its last END_CHARS characters. None: there is no match (or the group took no part in it). Raises PatternError.
    """
    compiled = _compiled(pattern)
    text = text.encode(errors="replace").decode()  # a lone surrogate is no character of UTF-8
    last = None
    left = MAX_STEPS - len(text) * compiled.programsize
    for last in compiled.finditer(text):
        left -= (len(text) - last.end()) * compiled.programsize
        if left < 0 and len(text) > END_CHARS:
            last = next(reversed([*compiled.finditer(text[-END_CHARS:])]), last)
            break
    if last is None:
        return None
    group: str | None = last.group(1 if compiled.groups else 0)
    return group
