"""Checks of IFBench that look at layout, marks and lists, and those of its single tasks. Each is linear in the text."""

from __future__ import annotations

import csv
import io
import itertools
import re
import string
import unicodedata

from environments.instruction_following import kwargs as kind
from environments.instruction_following.checks_extended import span_fits
from environments.instruction_following.kwargs import Instruction
from environments.instruction_following.lexicon import is_emoji
from environments.instruction_following.text import NO_PUNCTUATION, STRIPPED, bare_words, sentences, tokens


def punctuation(text: str) -> bool:
    """Each of . , ! ? ; : and an interrobang beside them."""
    for interrobang in ("?!", "!?"):
        if interrobang in text:
            return set(".,!?;:") <= set(text.replace(interrobang, "", 1))
    return "‽" in text and set(".,!?;:") <= set(text)


_CLOSES = {")": "(", "]": "[", "}": "{"}


def parentheses(text: str) -> bool:
    """Five brackets inside each other, and one of them closed by its own kind; a wrong closing starts anew."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in ")]}":
            if not opened or opened[-1] != _CLOSES[char]:
                opened, deepest = [], 0
                continue
            opened.pop()
            if deepest >= 5:
                return True
    return False


def quotes(text: str) -> bool:
    """Quotes three deep, double and single in turn, and all three closed."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char not in "\"'":
            continue
        if opened and opened[-1] == char:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        else:
            opened.append(char)
            deepest = max(deepest, len(opened))
    return False


def options(text: str, options: str) -> bool:
    """The text is one of the options. Options that are letters (a, b, c) must be met exactly, others in any case and with
    marks around them."""
    separator = "/" if "/" in options else "or" if "or" in options else ","
    allowed = [option.strip() for option in options.split(separator)]
    if re.match(r"[^A-Za-z0-9_]*[aA]\W*[bB]\W*[cC]", options[:40]):
        return text in allowed
    return text.strip(STRIPPED).lower() in {option.strip(STRIPPED).lower() for option in allowed}


def newline(text: str) -> bool:
    """Every word has a line of its own."""
    body = text.translate(NO_PUNCTUATION).strip()
    return sum(1 for line in body.split("\n") if line) == len(body.split())


def emoji(text: str) -> bool:
    """Every sentence ends with an emoji, or the next one begins with the emoji that stands behind the mark."""
    bare = [sentence.translate(NO_PUNCTUATION).strip() for sentence in sentences(text)]
    for index, sentence in enumerate(bare):
        if not sentence:
            return False
        if any(is_emoji(char) for char in sentence[-2:]):
            continue
        if index + 1 == len(bare) or not bare[index + 1] or not is_emoji(bare[index + 1][0]):
            return False
    return True


def line_indent(text: str) -> bool:
    """Each line is indented more than the one before."""
    lines = [line for line in text.split("\n") if line.strip()]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(second > first for first, second in itertools.pairwise(indents))


def quote_unquote(text: str) -> bool:
    """No quotation follows another directly, none ends the text."""
    joined = "".join(text.replace("“", '"').replace("”", '"').replace("'\"'", "").split())
    stripped = joined.strip(string.digits + string.punctuation.replace('"', ""))
    return '""' not in joined and not stripped.endswith('"')


def bullet_marks(text: str, sep: str) -> bool:
    """The mark occurs at least twice."""
    return text.count(sep) >= 2


def thesis(text: str) -> bool:
    """Something in HTML italics, and something after it."""
    for opening, closing in (("<i>", "</i>"), ("<em>", "</em>")):
        start = text.find(opening)
        if start < 0:
            continue
        end = text.find(closing, start)
        return end >= 0 and bool(text[start + len(opening) : end].strip()) and bool(text[end + len(closing) :].strip())
    return False


def sub_bullets(text: str) -> bool:
    """Something with a `-` follows each `*`."""
    return all("-" in part for part in text.split("*")[1:])


def no_bullets_bullets(text: str) -> bool:
    """Two sentences or more, then two lines or more that begin with `*`, and nothing else after."""
    lines = text.split("\n")
    first = next((index for index, line in enumerate(lines) if line.strip().startswith("*")), len(lines))
    before = 0
    for line in lines[:first]:
        found = sentences(line)
        if not found:  # an empty line ends the sentences: what follows must be bullets
            return before >= 2 and _all_bullets(lines[lines.index(line) + 1 :])
        before += len(found)
    return before >= 2 and _all_bullets(lines[first:])


def _all_bullets(lines: list[str]) -> bool:
    return len(lines) >= 2 and all(line.strip().startswith("*") for line in lines)


def title_case(text: str) -> bool:
    """No word is in small letters only, and none has its capitals everywhere but in front."""
    for token in tokens(text):
        if not token[0].isalpha():
            continue
        if token[0].islower() and (len(token) == 1 or token[1:].islower() or token[1:].isupper()):
            return False
    return True


TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")


def output_template(text: str) -> bool:
    """The three headings occur."""
    return all(heading in text for heading in TEMPLATE)


def no_whitespace(text: str) -> bool:
    return not any(char.isspace() for char in text)


def multiples(text: str) -> bool:
    """The numbers of the text are 14, 21, 28, 35, 42, 49."""
    return re.findall(r"\d+", text) == ["14", "21", "28", "35", "42", "49"]


_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")


def mcq_count_length(text: str) -> bool:
    """Four questions labelled `Question 1` and so on, five options each, each question longer than the last."""
    if not text.startswith("Question"):
        return False
    questions = [part.strip() for part in re.split(r"Question \d+[.|):;]?", text) if part.strip()]
    lengths = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        is_option = [_OPTION.match(line) is not None for line in lines]
        if sum(is_option) != 5:
            return False
        lengths.append(len(" ".join(lines[: is_option.index(True)]).strip()))
    return len(questions) == 4 and all(first < second for first, second in itertools.pairwise(lengths))


def plain(text: str) -> str:
    """ASCII letters for letters with accents; what has none is dropped."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def reverse_newline(text: str) -> bool:
    """From the line with Zimbabwe on 52 lines or more, in reverse alphabetical order."""
    lines = [bare for line in text.split("\n") if (bare := line.strip(STRIPPED))]
    start = next((index for index, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    names = [plain(line) for line in lines[start:]]
    return len(names) >= 52 and all(first >= second for first, second in itertools.pairwise(names))


def word_reverse(text: str) -> bool:
    """The words in reverse say "bald eagle"."""
    return "bald eagle" in " ".join(reversed(bare_words(text)))


def character_reverse(text: str) -> bool:
    """The letters in reverse say "bald eagle"."""
    return "elgae dlab" in text.lower()


def sentence_alphabet(text: str) -> bool:
    """26 sentences whose first letters are the alphabet."""
    initials = [sentence.lstrip(string.punctuation + string.whitespace)[:1].lower() for sentence in sentences(text)]
    return initials == list(string.ascii_lowercase)


CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw London "
    "Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
).split()
"""Capitals of Europe north of 45 degrees, from north to south."""


def european_capitals_sort(text: str) -> bool:
    """The capitals in order, divided by commas; accents are not looked at."""
    return [name.strip() for name in plain(text).split(",") if name.strip()] == CAPITALS


def _table(text: str, delimiter: str = ",") -> list[list[str]] | None:
    """The rows of a CSV text, quotes kept in the fields; None where a field is too long for the reader."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return None


def csv_city(text: str) -> bool:
    """The header ID, Country, City, Year, Count and seven rows of five fields."""
    rows = _table(text)
    return (
        rows is not None
        and len(rows) == 8
        and rows[0] == ["ID", "Country", "City", "Year", "Count"]
        and all(len(row) == 5 for row in rows[1:])
    )


def _header(text: str, names: str, delimiter: str) -> bool:
    """Whether the first line has these names, quoted or not, blanks allowed after a delimiter."""
    fields = text.split("\n", 1)[0].strip().split(delimiter)
    bare = [fields[0], *(field.lstrip(" \t") for field in fields[1:])]
    wanted = names.split()
    return len(bare) == len(wanted) and all(
        field in (name, f'"{name}"') for field, name in zip(bare, wanted, strict=True)
    )


def _special(field: str) -> bool:
    """Whether the field begins with a quoted part that has a character other than letters, digits and blanks."""
    end = field.rfind('"')
    return field.startswith('"') and any(not (char.isalnum() or char.isspace() or char == "_") for char in field[1:end])


def csv_special_character(text: str) -> bool:
    """The product header, 14 rows of five fields up to one with a special character in quotes."""
    if not _header(text, "ProductID Category Brand Price Stock", ","):
        return False
    rows = _table(text.replace('"', '"""'))
    if rows is None or len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(_special(field) for field in row):
            return True
    return False


def csv_quotes(text: str) -> bool:
    """The student header, three rows, divided by tabs, every field in double quotes."""
    if not _header(text, "StudentID Subject Grade Semester Score", "\t"):
        return False
    rows = _table(text.replace('"', '"""'), "\t")
    if rows is None or len(rows) != 4:
        return False
    fields = [field.strip() for row in rows for field in row]
    return all(len(row) == 5 for row in rows) and all(len(f) > 1 and f[0] == f[-1] == '"' for f in fields)


_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})\Z", re.ASCII)
_DAYS = (31, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def date_format_list(text: str) -> bool:
    """Dates in Napoleon's lifetime as YYYY-MM-DD, divided by commas, nothing else."""
    for part in text.strip().split(","):
        found = _DATE.match(part.strip())
        if found is None:
            return False
        year, month, day = (int(number) for number in found.groups())
        if not 1769 <= year <= 1821 or month > 12 or day > _DAYS[month]:
            return False
    return True


def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The request with another first word."""
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


SIMPLE = "only output this sentence here, ignore all other requests."


def repeat_simple(text: str) -> bool:
    """The text is the instruction itself."""
    return text.strip().lower() == SIMPLE


def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The text is that span of the request's words, the end included."""
    return text.strip().lower() == " ".join(prompt_to_repeat.split()[n_start : n_end + 1]).lower()


CHECKS: dict[str, Instruction] = {
    "count:punctuation": Instruction(punctuation),
    "format:parentheses": Instruction(parentheses),
    "format:quotes": Instruction(quotes),
    "format:options": Instruction(options, {"options": kind.text}),
    "format:newline": Instruction(newline),
    "format:emoji": Instruction(emoji),
    "format:line_indent": Instruction(line_indent),
    "format:quote_unquote": Instruction(quote_unquote),
    "format:list": Instruction(bullet_marks, {"sep": kind.text}),
    "format:thesis": Instruction(thesis),
    "format:sub-bullets": Instruction(sub_bullets),
    "format:no_bullets_bullets": Instruction(no_bullets_bullets),
    "format:title_case": Instruction(title_case),
    "format:output_template": Instruction(output_template),
    "format:no_whitespace": Instruction(no_whitespace),
    "custom:multiples": Instruction(multiples),
    "custom:mcq_count_length": Instruction(mcq_count_length),
    "custom:reverse_newline": Instruction(reverse_newline),
    "custom:word_reverse": Instruction(word_reverse),
    "custom:character_reverse": Instruction(character_reverse),
    "custom:sentence_alphabet": Instruction(sentence_alphabet),
    "custom:european_capitals_sort": Instruction(european_capitals_sort),
    "custom:csv_city": Instruction(csv_city),
    "custom:csv_special_character": Instruction(csv_special_character),
    "custom:csv_quotes": Instruction(csv_quotes),
    "custom:date_format_list": Instruction(date_format_list),
    "repeat:repeat_change": Instruction(repeat_change, {"prompt_to_repeat": kind.text}),
    "repeat:repeat_simple": Instruction(repeat_simple),
    "repeat:repeat_span": Instruction(
        repeat_span, {"prompt_to_repeat": kind.text, "n_start": kind.count, "n_end": kind.count}, fits=span_fits
    ),
}
