"""Questions that computing answers: arithmetic on large numbers, counting by search, sequences and sums over primes."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import comb, gcd, isqrt

Computed = tuple[str, str, str]
"""question, a program that prints the answer, answer"""


def _large_product(r: random.Random) -> Computed:
    a, b = r.randint(1000, 99999), r.randint(1000, 99999)
    return f"What is {a} times {b}?", f"print({a} * {b})", str(a * b)


def _long_sum(r: random.Random) -> Computed:
    values = [r.randint(100, 9999) for _ in range(r.randint(6, 10))]
    return (
        f"Add these numbers: {', '.join(map(str, values))}.",
        f"print(sum({values}))",
        str(sum(values)),
    )


def _large_remainder(r: random.Random) -> Computed:
    a, b = r.randint(10**8, 10**11), r.randint(101, 9999)
    return f"What is the remainder of {a} divided by {b}?", f"print({a} % {b})", str(a % b)


def _large_divisor(r: random.Random) -> Computed:
    k = r.randint(100, 999)
    a, b = k * r.randint(100, 9999), k * r.randint(100, 9999)
    return (
        f"What is the greatest common divisor of {a} and {b}?",
        f"from math import gcd\nprint(gcd({a}, {b}))",
        str(gcd(a, b)),
    )


def _large_power(r: random.Random) -> Computed:
    a, n, m = r.randint(2, 99), r.randint(100, 10**6), r.randint(1000, 99999)
    return f"What is the remainder of {a}^{{{n}}} divided by {m}?", f"print(pow({a}, {n}, {m}))", str(pow(a, n, m))


def _digits_of_power(r: random.Random) -> Computed:
    a, n = r.randint(2, 19), r.randint(30, 300)
    return (
        f"What is the sum of the decimal digits of {a}^{{{n}}}?",
        f"print(sum(map(int, str({a}**{n}))))",
        str(sum(map(int, str(a**n)))),
    )


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))


_PRIME = "def prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))\n"


def _primes_between(r: random.Random) -> Computed:
    low = r.randint(100, 4000)
    high = low + r.randint(100, 600)
    return (
        f"How many primes p are there with {low} <= p <= {high}?",
        f"{_PRIME}print(sum(prime(n) for n in range({low}, {high + 1})))",
        str(sum(map(_is_prime, range(low, high + 1)))),
    )


def _sum_of_divisors(r: random.Random) -> Computed:
    n = r.randint(20, 200) * r.randint(20, 200)
    return (
        f"What is the sum of all positive divisors of {n}?",
        f"print(sum(d for d in range(1, {n + 1}) if {n} % d == 0))",
        str(sum(d for d in range(1, n + 1) if n % d == 0)),
    )


def _recurrence(r: random.Random) -> Computed:
    a, b, n, m = r.randint(2, 9), r.randint(1, 9), r.randint(30, 400), r.choice([997, 1009, 9973, 10007])
    x, y = 1, 1
    for _ in range(n - 2):
        x, y = y, (a * y + b * x) % m
    return (
        f"Let f(1) = f(2) = 1 and f(n) = {a} f(n-1) + {b} f(n-2) for n > 2. What is the remainder of f({n}) divided by {m}?",
        f"x, y = 1, 1\nfor _ in range({n - 2}):\n    x, y = y, ({a} * y + {b} * x) % {m}\nprint(y)",
        str(y),
    )


def _multiples_without(r: random.Random) -> Computed:
    limit, k, digit = r.randint(1000, 9000), r.randint(3, 17), r.randint(0, 9)
    return (
        f"How many positive multiples of {k} up to {limit} do not contain the digit {digit}?",
        f"print(sum('{digit}' not in str(n) for n in range({k}, {limit + 1}, {k})))",
        str(sum(str(digit) not in str(n) for n in range(k, limit + 1, k))),
    )


def _sums_of_two_squares(r: random.Random) -> Computed:
    low = r.randint(50, 2000)
    high = low + r.randint(60, 300)
    sums = {x * x + y * y for x in range(isqrt(high) + 1) for y in range(isqrt(high) + 1)}
    return (
        f"How many integers n with {low} <= n <= {high} can be written as the sum of two squares of integers (zero is allowed)?",
        f"squares = [x * x for x in range({isqrt(high) + 1})]\n"
        f"sums = {{x + y for x in squares for y in squares}}\nprint(sum({low} <= n <= {high} for n in sums))",
        str(sum(low <= n <= high for n in sums)),
    )


def _lattice_paths(r: random.Random) -> Computed:
    width, height, k = r.randint(6, 14), r.randint(6, 14), r.randint(2, 5)
    x, y = r.randint(1, width - 1), r.randint(1, height - 1)
    ways = comb(width + height, width) - comb(x + y, x) * comb(width + height - x - y, width - x)
    return (
        f"A path goes from (0, 0) to ({width}, {height}) in unit steps to the right or up and never visits ({x}, {y}). Each such path "
        f"can be drawn in {k} colours. How many coloured paths are there?",
        f"from math import comb\nall_paths = comb({width + height}, {width})\n"
        f"through = comb({x + y}, {x}) * comb({width + height - x - y}, {width - x})\nprint({k} * (all_paths - through))",
        str(k * ways),
    )


def _partitions(r: random.Random) -> Computed:
    parts = sorted(r.sample(range(2, 30), r.randint(3, 5)))
    n = r.randint(60, 400)
    ways = [1] + [0] * n
    for part in parts:
        for i in range(part, n + 1):
            ways[i] += ways[i - part]
    return (
        f"In how many ways can {n} be written as a sum of numbers from {parts}, each used as often as wanted, the order not mattering?",
        f"ways = [1] + [0] * {n}\nfor part in {parts}:\n    for i in range(part, {n + 1}):\n"
        f"        ways[i] += ways[i - part]\nprint(ways[{n}])",
        str(ways[n]),
    )


PROBLEMS: list[tuple[str, float, int, Callable[[random.Random], Computed]]] = [
    ("large_product", 0.15, 1, _large_product),
    ("long_sum", 0.2, 1, _long_sum),
    ("large_remainder", 0.25, 1, _large_remainder),
    ("large_divisor", 0.35, 1, _large_divisor),
    ("large_power", 0.45, 1, _large_power),
    ("digits_of_power", 0.5, 1, _digits_of_power),
    ("multiples_without", 0.6, 1, _multiples_without),
    ("sum_of_divisors", 0.65, 0, _sum_of_divisors),
    ("primes_between", 0.7, 0, _primes_between),
    ("recurrence", 0.75, 0, _recurrence),
    ("sums_of_two_squares", 0.8, 0, _sums_of_two_squares),
    ("partitions", 0.9, 0, _partitions),
    ("lattice_paths", 0.95, 0, _lattice_paths),
]
"""name, difficulty, worked examples in the prompt, maker"""
