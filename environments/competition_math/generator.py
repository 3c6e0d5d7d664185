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


def _next(r: random.Random) -> Made:
    start, step = r.randint(1, 20), r.randint(1, 5)
    values = [start + k * step for k in range(4)]
    return (
        f"What number comes next: {', '.join(map(str, values))}, ...?",
        f"Each number is {step} more, so {values[-1]} + {step} = {values[-1] + step}.",
        str(values[-1] + step),
    )


def _product(r: random.Random) -> Made:
    a, b = r.randint(2, 9), r.randint(2, 9)
    return f"What is {a} times {b}?", f"{a} times {b} is {a * b}.", str(a * b)


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
    a, n, m = r.randint(2, 12), r.randint(5, 40), r.randint(3, 17)
    return f"What is the remainder of {a}^{n} divided by {m}?", f"It is {pow(a, n, m)}.", str(pow(a, n, m))


FAMILIES: list[tuple[str, float, int, Callable[[random.Random], Made]]] = [
    ("largest_of_four", 0.05, 2, _largest),
    ("one_digit_sum", 0.10, 2, _sum),
    ("next_number", 0.25, 2, _next),
    ("one_digit_product", 0.35, 2, _product),
    ("percentage", 0.55, 1, _percent),
    ("common_divisor", 0.65, 1, _divisor),
    ("sum_of_fractions", 0.80, 0, _fractions),
    ("linear_equation", 0.85, 0, _linear),
    ("modular_power", 0.95, 0, _modular),
]
"""name, difficulty, few-shot turns, maker"""

INSTRUCTION = "Put the final answer in \\boxed{}."


def _is_heldout(family: str, question: str) -> bool:
    return hashlib.sha256(f"{family}|{question}".encode()).digest()[0] < 64


def _draw(family: str, make: Callable[[random.Random], Made], r: random.Random, heldout: bool) -> Made:
    while True:
        made = make(r)
        if _is_heldout(family, made[0]) == heldout:
            return made


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). Few-shot examples are train tasks."""
    for k in range(n):
        r = random.Random(f"competition_math|{seed}|{split}|{k}")
        family, difficulty, shots, make = FAMILIES[k % len(FAMILIES)]
        question, _, answer = _draw(family, make, r, split == "heldout")
        turns: list[dict[str, str]] = []
        for _ in range(shots):
            shown, reasoning, shown_answer = _draw(family, make, r, False)
            while shown == question:
                shown, reasoning, shown_answer = _draw(family, make, r, False)
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
