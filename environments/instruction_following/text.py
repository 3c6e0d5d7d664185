"""Words and sentences, the same on every machine: own rules, linear in the text's length, nothing downloaded.

Two ways to find sentences, because the two families of instructions count them differently: `sentences` needs a space after
the mark and a plausible start after it (IFBench, the number of sentences); `marked_sentences` ends one at every `.`, `?`, `!`
that is no abbreviation, decimal or initial (the first words and last words of the extended training set).
"""

from __future__ import annotations

import re
import string

PUNCTUATION = string.punctuation
STRIPPED = string.punctuation + " "
"""What is cut from the ends of a word before it is compared."""
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

_WORDS = re.compile(r"\w+")
_TITLES = frozenset("mr mrs ms dr st".split())
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr vs etc al inc ltd co corp gen col capt lt sgt rev hon gov sen rep pres "
    "jan feb mar apr jun jul aug sep sept oct nov dec mt ave blvd dept est".split()
)
_STARTERS = frozenset(
    "he she it they their our we but however that this wherever the a an i in on at if when these those there you his her its".split()
)
_AFTER_ACRONYM = frozenset("he she it they their our we but however that this wherever".split())


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return _WORDS.findall(text)


def bare_words(text: str) -> list[str]:
    """Lower-case words after every ASCII punctuation mark is deleted ("don't" is "dont", "a-b" is "ab")."""
    return text.lower().translate(NO_PUNCTUATION).split()


_TOKEN = re.compile(
    r"""\.{2,}|--+|``|''
    |[A-Za-z](?:\.[A-Za-z])+\.?                      # e.g., U.S.
    |\d++(?:[.,:]\d+)+                               # 3.14, 1,000, 12:30
    |\w+(?:['’]\w+)*(?:[-./&_]\w+(?:['’]\w+)*)*      # words, hyphenated too
    |\S""",
    re.VERBOSE,
)
_CLITICS = ("n't", "'s", "'m", "'d", "'ll", "'re", "'ve")


def tokens(text: str) -> list[str]:
    """Words and punctuation marks one by one, English contractions divided ("don't" is "do", "n't")."""
    found: list[str] = []
    for token in _TOKEN.findall(text):
        low = token.lower()
        if low == "cannot":
            found += [token[:3], token[3:]]
            continue
        for clitic in _CLITICS:
            if low.endswith(clitic) and len(low) > len(clitic):
                found += [token[: -len(clitic)], token[-len(clitic) :]]
                break
        else:
            found.append(token)
    return found


def word_tokens(text: str) -> list[str]:
    """`tokens` that have a letter or a digit."""
    return [token for token in tokens(text) if any(char.isalnum() for char in token)]


_END = re.compile(r"(?<![.?!])[.?!]++(?:[\"'”’)\]}»]++)?+(?=[\s*])")
_BEFORE = re.compile(r"\S+\Z")


def sentences(text: str) -> list[str]:
    """Sentences: a mark, closing quotes or brackets, a space, and no abbreviation or initial before a dot. Enumerators ("1.")
    stand alone. A line break ends no sentence."""
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        mark = end.group().rstrip("\"'”’)]}»")
        if mark.endswith(".") and not _full_stop(text, start, end, len(mark)):
            continue
        piece = text[start : end.end()].strip()
        if piece:
            found.append(piece)
        start = end.end()
    piece = text[start:].strip()
    if piece:
        found.append(piece)
    return found


_NEXT = re.compile(r"[\s*]+(\S\w*)")


def _full_stop(text: str, start: int, end: re.Match[str], dots: int) -> bool:
    """Whether the dot (or the run of dots) that `end` found closes a sentence that began at `start`."""
    match = _BEFORE.search(text, max(start, end.start() - 40), end.start())  # no abbreviation is longer
    before = match.group().lstrip("([{\"'“‘*_") if match else ""
    after = _NEXT.match(text, end.end(), end.end() + 80)
    following = after.group(1) if after else ""
    if dots > 1:  # an ellipsis goes on before a small letter
        return following[:1].isupper()
    low = before.lower()
    initial = len(before) == 1 and before.isalpha()
    acronym = "." in before and before.replace(".", "").isalpha() and len(before) <= 7
    if low in _ABBREVIATIONS or initial or acronym:
        return low not in _TITLES and not initial and following[:1].isupper() and following.lower() in _STARTERS
    return True


def marked_sentences(text: str) -> list[str]:
    """Sentences that end at every `.`, `?` or `!`, except dots of titles, initials, decimals, acronyms and web names. A closing
    quote right after the mark belongs to the sentence. Text after the last mark is a sentence too."""
    flat = text.replace("\n", " ")
    found: list[str] = []
    start = at = 0
    length = len(flat)
    while at < length:
        char = flat[at]
        if char not in ".?!" or (char == "." and _inner_dot(flat, at)):
            at += 1
            continue
        if char == "." and flat.startswith("..", at):
            while at + 1 < length and flat[at + 1] == ".":
                at += 1
        end = at + 1
        if end < length and flat[end] in '"”':
            end += 1
        found.append(flat[start:end].strip())
        start = at = end
    rest = flat[start:].strip()
    if rest:
        found.append(rest)
    return found


_WEB = re.compile(r"\.(?:com|net|org|io|gov|edu|me)")


def _inner_dot(text: str, at: int) -> bool:
    """Whether the dot at `at` ends no sentence."""
    before = text[max(0, at - 12) : at]
    after = text[at + 1 : at + 2]
    if before[-1:].isdigit() and after.isdigit():
        return True
    if _WEB.match(text, at):
        return True
    word = re.search(r"[A-Za-z]*\Z", before)
    name = word.group() if word else ""
    if name.lower() in _TITLES and name[:1].isupper():
        return True
    if name in ("Inc", "Ltd", "Jr", "Sr", "Co"):
        following = re.match(r" +([A-Za-z]+)", text[at + 1 : at + 16])
        return not (following and following.group(1).lower() in _AFTER_ACRONYM)
    if len(name) == 1 and (len(before) == 1 or not before[-2].isalnum()):
        inside = before[-2:-1] == "."
        following = re.match(r" +([A-Za-z]+)", text[at + 1 : at + 16])
        closes = inside and following is not None and following.group(1).lower() in _AFTER_ACRONYM
        return not closes
    return text.startswith("Ph.D.", max(0, at - 2)) or text.startswith("Ph.D.", max(0, at - 4))
