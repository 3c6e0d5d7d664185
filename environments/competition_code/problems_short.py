"""Problems whose solution is one expression: from adding a constant to filtering a list."""

from __future__ import annotations

import random
from typing import Any

from environments.competition_code.problem import Constants, Problem

WORDS = (
    "apple river stone cloud green table music paper winter garden silver monkey orange pencil basket candle dragon "
    "forest hammer island jacket kettle ladder mirror needle office planet rabbit saddle ticket valley window yellow "
    "zebra butter castle dinner engine finger guitar helmet insect jungle kitten lemon magnet napkin oyster pepper"
).split()


def word(r: random.Random) -> str:
    """A plain word."""
    return r.choice(WORDS)


def text(r: random.Random, size: int) -> str:
    """A line of two words or more."""
    return " ".join(word(r) for _ in range(2 + size))


def numbers(r: random.Random, size: int, low: int = -50, high: int = 99) -> list[int]:
    """Five numbers or more."""
    return [r.randint(low, high) for _ in range(5 + 2 * size)]


def _scaled(r: random.Random, size: int) -> int:
    return r.randint(1, 10 if size < 2 else 10 ** (size + 1))


def add(n: int, k: int) -> int:
    return n + k


def times(n: int, k: int) -> int:
    return n * k


def greet(name: str, greeting: str) -> str:
    return greeting + " " + name


def repeat(text: str, k: int) -> str:
    return text * k


def remainder(n: int, k: int) -> int:
    return n % k


def line(x: int, a: int, b: int) -> int:
    return a * x + b


def difference(a: int, b: int, k: int) -> int:
    return k * (a - b)


def total(numbers: list[int], k: int) -> int:
    return sum(numbers) + k


def below_largest(numbers: list[int], k: int) -> int:
    return max(numbers) - k


def character(text: str, k: int) -> str:
    return text[k - 1]


def occurrences(text: str, letter: str) -> int:
    return text.count(letter)


def replaced(text: str, old: str, new: str) -> str:
    return text.replace(old, new)


def above(numbers: list[int], k: int) -> int:
    return sum(x > k for x in numbers)


def multiples(numbers: list[int], k: int) -> int:
    return sum(x for x in numbers if x % k == 0)


def long_words(words: list[str], k: int, letter: str) -> int:
    return sum(len(word) >= k and letter in word for word in words)


def every(text: str, k: int, start: int) -> str:
    return text[start - 1 :: k]


def _k(low: int, high: int) -> Any:
    return lambda r: {"k": r.randint(low, high)}


def _one(r: random.Random, size: int, constants: Constants) -> list[Any]:
    return [_scaled(r, size)]


def _list(r: random.Random, size: int, constants: Constants) -> list[Any]:
    return [numbers(r, size)]


def _text(r: random.Random, size: int, constants: Constants) -> list[Any]:
    return [text(r, size + 1)]


def _letters(r: random.Random) -> Constants:
    old, new = r.sample("aeiorstnl", 2)
    return {"old": old, "new": new}


SHORT = [
    Problem(
        "add",
        0.02,
        add,
        (("n", "int"),),
        _k(2, 99),
        _one,
        ("{n} plus {k}", "the number that is {k} more than {n}"),
        "n + {k}",
        2,
    ),
    Problem(
        "times",
        0.04,
        times,
        (("n", "int"),),
        _k(2, 60),
        _one,
        ("{n} times {k}", "the product of {n} and {k}"),
        "n * {k}",
        2,
    ),
    Problem(
        "greet",
        0.06,
        greet,
        (("name", "text"),),
        lambda r: {"greeting": word(r).capitalize()},
        lambda r, size, _: [word(r) if size < 5 else f"{word(r)} {word(r)}"],
        ("the word {greeting}, a space and then {name}", "{name} with the word {greeting} and a space before it"),
        "{greeting} + ' ' + name",
        2,
    ),
    Problem(
        "repeat",
        0.08,
        repeat,
        (("text", "text"),),
        _k(2, 30),
        lambda r, size, _: [word(r)],
        ("the word in {text} {k} times, without spaces between", "{text} repeated {k} times"),
        "text * {k}",
        2,
    ),
    Problem(
        "remainder",
        0.1,
        remainder,
        (("n", "int"),),
        _k(7, 60),
        lambda r, size, _: [r.randint(1, 10 ** (size + 2))],
        ("the remainder of {n} divided by {k}", "what is left when {n} is divided by {k}"),
        "n % {k}",
        2,
    ),
    Problem(
        "line",
        0.13,
        line,
        (("x", "int"),),
        lambda r: {"a": r.randint(2, 12), "b": r.randint(1, 40)},
        _one,
        ("{a} times {x} plus {b}", "the value of {a} * {x} + {b}"),
        "{a} * x + {b}",
        2,
    ),
    Problem(
        "difference",
        0.15,
        difference,
        (("a", "int"), ("b", "int")),
        _k(2, 50),
        lambda r, size, _: [_scaled(r, size), _scaled(r, size)],
        ("{k} times the difference {a} minus {b}", "the number {a} - {b}, multiplied by {k}"),
        "{k} * (a - b)",
        2,
    ),
    Problem(
        "total",
        0.18,
        total,
        (("numbers", "ints"),),
        _k(2, 99),
        _list,
        ("the sum of the numbers, plus {k}", "{k} more than the sum of {numbers}"),
        "sum(numbers) + {k}",
        2,
    ),
    Problem(
        "below_largest",
        0.2,
        below_largest,
        (("numbers", "ints"),),
        _k(2, 60),
        _list,
        ("the largest of the numbers, minus {k}", "the number that is {k} less than the largest of {numbers}"),
        "max(numbers) - {k}",
        2,
    ),
    Problem(
        "character",
        0.22,
        character,
        (("text", "text"),),
        _k(1, 24),
        lambda r, size, _: ["".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=24 + size))],
        (
            "character number {k} of {text}, counted from 1",
            "the character at position {k} of {text} (the first is at 1)",
        ),
        "text[{k} - 1]",
        1,
    ),
    Problem(
        "occurrences",
        0.24,
        occurrences,
        (("text", "text"),),
        lambda r: {"letter": r.choice("aeilnorstbcdgkp")},
        _text,
        ("how often the letter {letter} occurs in {text}", "the number of times that {text} has the letter {letter}"),
        "text.count({letter})",
        1,
    ),
    Problem(
        "replaced",
        0.27,
        replaced,
        (("text", "text"),),
        _letters,
        _text,
        ("{text} with every {old} replaced by {new}", "{text} after each letter {old} was changed to {new}"),
        "text.replace({old}, {new})",
        1,
    ),
    Problem(
        "above",
        0.3,
        above,
        (("numbers", "ints"),),
        _k(-20, 70),
        _list,
        ("how many of the numbers are greater than {k}", "the count of those in {numbers} that exceed {k}"),
        "sum(x > {k} for x in numbers)",
        1,
    ),
    Problem(
        "multiples",
        0.33,
        multiples,
        (("numbers", "ints"),),
        _k(2, 15),
        lambda r, size, _: [numbers(r, size + 5)],
        ("the sum of the numbers that are divisible by {k}", "the sum of all multiples of {k} in {numbers}"),
        "sum(x for x in numbers if x % {k} == 0)",
        1,
    ),
    Problem(
        "long_words",
        0.36,
        long_words,
        (("words", "words"),),
        lambda r: {"k": r.randint(5, 6), "letter": r.choice("aeinrtldg")},
        lambda r, size, _: [[word(r) for _ in range(10 + 3 * size)]],
        (
            "how many words have at least {k} letters and contain the letter {letter}",
            "the number of words in {words} with {k} letters or more, an {letter} among them",
        ),
        "sum(len(word) >= {k} and {letter} in word for word in words)",
        1,
    ),
    Problem(
        "every",
        0.4,
        every,
        (("text", "text"),),
        lambda r: {"k": r.randint(2, 6), "start": r.randint(1, 6)},
        lambda r, size, _: ["".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=12 + 3 * size))],
        (
            "one character in {k} of {text}, beginning with position {start} (the first is at 1)",
            "what remains of {text} when, from character number {start} on, one of each {k} is kept, the first of them",
        ),
        "text[{start} - 1::{k}]",
        1,
    ),
]
"""By difficulty."""
