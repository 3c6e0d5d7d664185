"""Problems that take a loop and some thought: counting, sorting and rewriting by a rule.

Each reference stands alone (its imports are within), as its source is the gold program.
"""

from __future__ import annotations

from typing import Any

from environments.competition_code.problem import Problem
from environments.competition_code.problems_short import numbers, word


def shift_letters(text: str, k: int) -> str:
    return "".join(chr((ord(c) - 97 + k) % 26 + 97) if c.isalpha() else c for c in text)


def digit_sum(n: int, base: int) -> int:
    total = 0
    while n:
        total += n % base
        n //= base
    return total


def order_by_remainder(numbers: list[int], m: int) -> str:
    return " ".join(map(str, sorted(numbers, key=lambda x: (x % m, -x))))


def count_off(n: int, a: int, b: int) -> int:
    """Numbers from 1 to n that one of a and b divides, but not both."""
    return sum((x % a == 0) != (x % b == 0) for x in range(1, n + 1))


def best_window(numbers: list[int], k: int) -> int:
    best = current = sum(numbers[:k])
    for i in range(k, len(numbers)):
        current += numbers[i] - numbers[i - k]
        best = max(best, current)
    return best


def iterate(n: int, a: int, b: int, m: int) -> int:
    x = 1
    for _ in range(n):
        x = (a * x + b) % m
    return x


def squeeze(text: str, k: int) -> str:
    from itertools import groupby

    parts = []
    for c, group in groupby(text):
        n = len(list(group))
        parts.append(f"{n}{c}" if n >= k else c * n)
    return "".join(parts)


def pairs_apart(numbers: list[int], k: int) -> int:
    from collections import Counter

    seen: Counter[int] = Counter()
    total = 0
    for x in numbers:
        total += seen[x - k] + seen[x + k]
        seen[x] += 1
    return total


def last_in_circle(n: int, k: int) -> int:
    survivor = 0
    for size in range(2, n + 1):
        survivor = (survivor + k) % size
    return survivor + 1


def _list(low: int, high: int) -> Any:
    return lambda r, size, _: [numbers(r, 2 * size + 2, low, high)]


RULES = [
    Problem(
        "shift_letters",
        0.43,
        shift_letters,
        (("text", "text"),),
        lambda r: {"k": r.randint(2, 24)},
        lambda r, size, _: [" ".join(word(r) for _ in range(2 + size))],
        (
            "{text} with each letter moved {k} places on in the alphabet, from z on to a; spaces stay",
            "{text} in the Caesar cipher with a shift of {k} (spaces stay spaces)",
        ),
    ),
    Problem(
        "digit_sum",
        0.45,
        digit_sum,
        (("n", "int"),),
        lambda r: {"base": r.choice([*range(2, 10), *range(11, 30)])},
        lambda r, size, _: [r.randint(20, 10 ** (size + 3))],
        (
            "the sum of the digits of {n} when it is written in base {base}",
            "what the digits of {n} in the number system with base {base} add up to",
        ),
    ),
    Problem(
        "order_by_remainder",
        0.48,
        order_by_remainder,
        (("numbers", "ints"),),
        lambda r: {"m": r.randint(3, 25)},
        _list(1, 200),
        (
            "the numbers, separated by spaces, in rising order of their remainder by {m}, and in falling order where that is equal",
            "{numbers} as text with spaces between, sorted by x mod {m} and, where it is the same, the greater number first",
        ),
    ),
    Problem(
        "count_off",
        0.5,
        count_off,
        (("n", "int"),),
        lambda r: dict(zip("ab", sorted(r.sample(range(2, 15), 2)), strict=True)),
        lambda r, size, _: [r.randint(10, 40 + 10 * 3**size)],
        (
            "how many numbers from 1 to {n} are divisible by {a} or by {b}, but not by both",
            "the count of integers from 1 to {n} that exactly one of {a} and {b} divides",
        ),
    ),
    Problem(
        "best_window",
        0.55,
        best_window,
        (("numbers", "ints"),),
        lambda r: {"k": r.randint(2, 14)},
        lambda r, size, _: [numbers(r, 3 * size + 6)],
        (
            "the largest sum of {k} numbers that follow each other",
            "the greatest total of any {k} neighbours in {numbers}",
        ),
    ),
    Problem(
        "iterate",
        0.57,
        iterate,
        (("n", "int"),),
        lambda r: {"a": r.randint(2, 30), "b": r.randint(1, 30), "m": r.choice([101, 307, 997, 1009])},
        lambda r, size, _: [r.randint(1, 4 + 3**size)],
        (
            "the value of x after {n} times x = ({a} * x + {b}) mod {m}, from x = 1",
            "the number that 1 becomes when ({a} * x + {b}) mod {m} is applied to it {n} times",
        ),
    ),
    Problem(
        "squeeze",
        0.6,
        squeeze,
        (("text", "text"),),
        lambda r: {"k": r.randint(2, 40)},
        lambda r, size, c: ["".join(r.choice("abcdef") * max(1, c["k"] + r.randint(-2, 3)) for _ in range(4 + size))],
        (
            "{text} where each run of {k} or more equal letters is written as its length and the letter, and shorter runs stay",
            "{text} with runs of the same letter shortened to count and letter, but only runs of at least {k}",
        ),
    ),
    Problem(
        "pairs_apart",
        0.62,
        pairs_apart,
        (("numbers", "ints"),),
        lambda r: {"k": r.randint(1, 40)},
        lambda r, size, _: [numbers(r, 6 * size + 6)],
        (
            "how many pairs of the numbers differ by exactly {k}",
            "the count of pairs of positions in {numbers} whose values are {k} apart",
        ),
    ),
    Problem(
        "last_in_circle",
        0.65,
        last_in_circle,
        (("n", "int"),),
        lambda r: {"k": r.randint(3, 40)},
        lambda r, size, _: [r.randint(4, 10 + 4 * 2**size)],
        (
            "who is left when {n} people, numbered from 1, stand in a circle and count off from 1 to {k} again and again, and whoever says {k} leaves",
            "the number of the last of {n} people in a circle (1 to {n}) when, from number 1 on, {k} - 1 are passed over and the next one is taken out, until one is left",
        ),
    ),
]
"""By difficulty."""
