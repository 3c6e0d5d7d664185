"""Seeded tasks from one-digit sums to linear equations; few-shot turns help a small model with the easy ones.

Train and held-out tasks never share a task: a hash of the parameters decides to which split they belong.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd
from typing import Any

Made = tuple[str, str, str]
"""question, one-line reasoning, answer"""


def _sum(r: random.Random) -> Made:
    a, b = r.randint(1, 9), r.randint(1, 9)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", str(a + b)


def _largest(r: random.Random) -> Made:
    values = r.sample(range(1, 100), 4)
    return (
        f"Which number is the largest: {', '.join(map(str, values))}?",
        f"The largest is {max(values)}.",
        str(max(values)),
    )


def _smallest(r: random.Random) -> Made:
    values = r.sample(range(10, 1000), 4)
    return (
        f"Which number is the smallest: {', '.join(map(str, values))}?",
        f"The smallest is {min(values)}.",
        str(min(values)),
    )


def _next(r: random.Random) -> Made:
    start, step = r.randint(1, 20), r.randint(1, 3)
    values = [start + k * step for k in range(4)]
    return (
        f"What number comes next: {', '.join(map(str, values))}?",
        f"Each number is {step} more than the one before. The next is {values[-1] + step}.",
        str(values[-1] + step),
    )


def _product(r: random.Random) -> Made:
    a, b = r.randint(3, 12), r.randint(6, 12)
    return f"What is {a} times {b}?", f"{a} times {b} is {a * b}.", str(a * b)


def _difference(r: random.Random) -> Made:
    b = r.randint(2, 9)
    a = b + r.randint(8, 20)
    return f"What is {a} - {b}?", f"{a} - {b} = {a - b}.", str(a - b)


def _three(r: random.Random) -> Made:
    a, b, c = (r.randint(2, 9) for _ in range(3))
    return f"What is {a} + {b} + {c}?", f"{a} + {b} = {a + b} and {a + b} + {c} = {a + b + c}.", str(a + b + c)


def _carry(r: random.Random) -> Made:
    a, b = r.randint(15, 60), r.randint(11, 39)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", str(a + b)


def _half(r: random.Random) -> Made:
    half = r.randint(4, 49)
    return f"What is half of {2 * half}?", f"Half of {2 * half} is {half}.", str(half)


def _count(r: random.Random) -> Made:
    letter = r.choice("abcde")
    n = r.randint(2, 9)
    letters = [letter] * n + [r.choice("fghijk") for _ in range(r.randint(2, 5))]
    r.shuffle(letters)
    return (
        f"How often is {letter} in this list: {' '.join(letters)}?",
        f"The letter {letter} is there {n} times.",
        str(n),
    )


def _percent(r: random.Random) -> Made:
    p, base = r.choice([5, 10, 20, 25, 50, 75]), r.randint(1, 40) * 20
    return f"What is {p}% of {base}?", f"{p}/100 of {base} is {p * base // 100}.", str(p * base // 100)


def _divisor(r: random.Random) -> Made:
    k = r.randint(2, 12)
    a, b = k * r.randint(2, 15), k * r.randint(2, 15)
    return f"What is the greatest common divisor of {a} and {b}?", f"Both divide by {gcd(a, b)}.", str(gcd(a, b))


def _fractions(r: random.Random) -> Made:
    a, b = Fraction(r.randint(1, 8), r.randint(2, 9)), Fraction(r.randint(1, 8), r.randint(2, 9))
    total = a + b
    answer = str(total) if total.denominator == 1 else f"\\frac{{{total.numerator}}}{{{total.denominator}}}"
    return f"Add {a} and {b}. Give the result as a fraction in lowest terms.", f"The sum is {total}.", answer


def _linear(r: random.Random) -> Made:
    a, x, b = r.randint(2, 12), r.randint(-12, 12), r.randint(-30, 30)
    return f"Solve for x: {a}x + ({b}) = {a * x + b}.", f"x = ({a * x + b} - ({b})) / {a} = {x}.", str(x)


def _modular(r: random.Random) -> Made:
    a, n, m = (
        r.randint(2, 12),
        r.randint(5, 40),
        r.choice([13, 17, 19, 23]),
    )  # a small modulus makes 0 and 1 good guesses
    return f"What is the remainder of {a}^{n} divided by {m}?", f"It is {pow(a, n, m)}.", str(pow(a, n, m))


FAMILIES: list[tuple[str, float, int, Callable[[random.Random], Made]]] = [
    ("product", 0.05, 2, _product),
    ("one_digit_sum", 0.10, 1, _sum),
    ("largest_of_four", 0.15, 2, _largest),
    ("three_terms", 0.20, 2, _three),
    ("difference", 0.25, 2, _difference),
    ("smallest_of_four", 0.30, 2, _smallest),
    ("two_digit_sum", 0.35, 2, _carry),
    ("next_number", 0.45, 2, _next),
    ("count", 0.50, 2, _count),
    ("half", 0.55, 2, _half),
    ("percentage", 0.60, 2, _percent),
    ("common_divisor", 0.70, 2, _divisor),
    ("sum_of_fractions", 0.80, 1, _fractions),
    ("linear_equation", 0.90, 1, _linear),
    ("modular_power", 0.95, 1, _modular),
]
"""name, difficulty, few-shot turns, maker"""

INSTRUCTION = "Put the final answer in \\boxed{}."


def _is_heldout(family: str, question: str) -> bool:
    return hashlib.sha256(f"{family}|{question}".encode()).digest()[0] < 64


def draw(family: str, make: Callable[[random.Random], Made], r: random.Random, heldout: bool) -> Made:
    """A task of `make` that belongs to that split."""
    while True:
        made = make(r)
        if _is_heldout(family, made[0]) == heldout:
            return made


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). Few-shot examples are train tasks."""
    for k in range(n):
        r = random.Random(f"competition_math|{seed}|{split}|{k}")
        family, difficulty, shots, make = FAMILIES[k % len(FAMILIES)]
        question, _, answer = draw(family, make, r, split == "heldout")
        turns: list[dict[str, str]] = []
        for _ in range(shots):
            shown, reasoning, shown_answer = draw(family, make, r, False)
            while shown == question or shown_answer == answer:  # copying an example earns nothing
                shown, reasoning, shown_answer = draw(family, make, r, False)
            turns.append({"role": "user", "content": f"{shown} {INSTRUCTION}"})
            turns.append({"role": "assistant", "content": f"{reasoning} \\boxed{{{shown_answer}}}"})
        turns.append({"role": "user", "content": f"{question} {INSTRUCTION}"})
        yield {
            "responses_create_params": {"input": turns},
            "question": question,
            "expected_answer": answer,
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "competition_math"},
        }
