"""Problems that take an algorithm: dynamic programming, graphs, and numbers too large to enumerate.

Each reference stands alone (its imports are within), as its source is the gold program.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from environments.competition_code.problem import Constants, Problem
from environments.competition_code.problems_short import numbers


def ways_to_climb(n: int, steps: list[int]) -> int:
    ways = [1] + [0] * n
    for i in range(1, n + 1):
        ways[i] = sum(ways[i - s] for s in steps if s <= i) % 1000000007
    return ways[n]


def fewest_coins(amount: int, coins: list[int]) -> int:
    best = [0] + [amount + 1] * amount
    for i in range(1, amount + 1):
        best[i] = min((best[i - c] + 1 for c in coins if c <= i), default=amount + 1)
    return best[amount] if best[amount] <= amount else -1


def large_islands(grid: list[str], k: int, mark: str) -> int:
    left = {(i, j) for i, row in enumerate(grid) for j, c in enumerate(row) if c == mark}
    total = 0
    while left:
        todo = [left.pop()]
        size = 0
        while todo:
            i, j = todo.pop()
            size += 1
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if cell in left:
                    left.remove(cell)
                    todo.append(cell)
        total += size >= k
    return total


def rising(numbers: list[int], gap: int) -> int:
    best: list[int] = []
    for i, x in enumerate(numbers):
        best.append(1 + max((best[j] for j in range(i) if x - numbers[j] >= gap), default=0))
    return max(best)


def edit_cost(a: str, b: str, insert: int, delete: int, change: int) -> int:
    row = [j * insert for j in range(len(b) + 1)]
    for x in a:
        above, row = row, [row[0] + delete]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + delete, row[j - 1] + insert, above[j - 1] + (change if x != y else 0)))
    return row[-1]


def knapsack(items: list[list[int]], capacity: int, k: int) -> int:
    best = [[0] * (capacity + 1) for _ in range(k + 1)]
    for weight, value in items:
        for n in range(k, 0, -1):
            for room in range(capacity, weight - 1, -1):
                best[n][room] = max(best[n][room], best[n - 1][room - weight] + value)
    return best[k][capacity]


def fewest_moves(grid: list[str], k: int, wall: str) -> int:
    height, width = len(grid), len(grid[0])
    start = (0, 0, int(grid[0][0] == wall))
    seen, layer, moves = {start}, [start], 0
    while layer:
        after = []
        for i, j, broken in layer:
            if (i, j) == (height - 1, width - 1):
                return moves
            for x, y in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= x < height and 0 <= y < width:
                    state = (x, y, broken + (grid[x][y] == wall))
                    if state[2] <= k and state not in seen:
                        seen.add(state)
                        after.append(state)
        layer, moves = after, moves + 1
    return -1


def cheapest_route(n: int, roads: list[list[int]], toll: int, free: int) -> int:
    import heapq

    near: dict[int, list[tuple[int, int]]] = {}
    for a, b, length in roads:
        near.setdefault(a, []).append((b, length))
        near.setdefault(b, []).append((a, length))
    done = set()
    queue = [(0, 1)]
    while queue:
        cost, town = heapq.heappop(queue)
        if town == n:
            return cost
        if town in done:
            continue
        done.add(town)
        for other, length in near.get(town, []):
            extra = 0 if other == n or other % free == 0 else toll
            heapq.heappush(queue, (cost + length + extra, other))
    return -1


def best_bookings(bookings: list[list[int]], rest: int) -> int:
    from bisect import bisect_right

    ends = [(-(10**9), 0)]
    for start, end, value in sorted(bookings, key=lambda booking: booking[1]):
        before = ends[bisect_right(ends, (start - rest, 10**18)) - 1][1]
        ends.append((end, max(ends[-1][1], before + value)))
    return ends[-1][1]


def far_term(n: int, a: int, b: int) -> int:
    modulus = 1000000007

    def product(x: list[list[int]], y: list[list[int]]) -> list[list[int]]:
        return [[sum(x[i][k] * y[k][j] for k in range(2)) % modulus for j in range(2)] for i in range(2)]

    power, result = [[a, b], [1, 0]], [[1, 0], [0, 1]]
    while n:
        if n % 2:
            result = product(result, power)
        power = product(power, power)
        n //= 2
    return (result[1][0] + result[1][1]) % modulus


def count_by_digits(n: int, k: int, digit: int) -> int:
    digits = [int(c) for c in str(n)]
    free = [0] * k
    tight, started = 0, False
    tight_alive = True
    for place, top in enumerate(digits):
        after = [0] * k
        for remainder, count in enumerate(free):
            for d in range(10):
                if d != digit:
                    after[(remainder + d) % k] += count
        if place:
            for d in range(1, 10):
                if d != digit:
                    after[d % k] += 1
        if tight_alive:
            for d in range(top):
                if d != digit and (started or d):
                    after[(tight + d) % k] += 1
            tight, started, tight_alive = (tight + top) % k, True, top != digit
        free = after
    return (free[0] + (tight_alive and tight == 0)) % 1000000007


def _grid(r: random.Random, size: int, marks: str, share: float) -> list[str]:
    width = r.randint(4, 5 + 2 * size)
    return ["".join(marks[r.random() < share] for _ in range(width)) for _ in range(r.randint(4, 5 + 2 * size))]


def _steps(r: random.Random) -> Constants:
    return {"steps": sorted(r.sample(range(1, 8), r.randint(2, 4)))}


def _coins(r: random.Random) -> Constants:
    return {"coins": sorted(r.sample(range(3, 30), r.randint(3, 4)))}


def _roads(r: random.Random, size: int, constants: Constants) -> Sequence[Any]:
    n = 5 + 4 * size
    chain = [[a, r.randint(1, a - 1), r.randint(1, 50)] for a in range(2, n + 1)]
    extra = [[*r.sample(range(1, n + 1), 2), r.randint(5, 90)] for _ in range(2 * n)]
    roads = chain + extra
    r.shuffle(roads)
    return [n, roads]


def _bookings(r: random.Random, size: int, constants: Constants) -> Sequence[Any]:
    starts = [r.randint(0, 40 + 30 * size) for _ in range(4 + 4 * size)]
    return [[[start, start + r.randint(1, 25), r.randint(1, 99)] for start in starts]]


ALGORITHMS = [
    Problem(
        "ways_to_climb",
        0.68,
        ways_to_climb,
        (("n", "int"),),
        _steps,
        lambda r, size, _: [r.randint(4, 15 + 20 * size)],
        (
            "in how many ways one can climb {n} stairs in steps of {steps} stairs, the order mattering, modulo 1000000007",
            "the number of sequences with terms from {steps} whose sum is {n}, modulo 1000000007",
        ),
    ),
    Problem(
        "fewest_coins",
        0.7,
        fewest_coins,
        (("amount", "int"),),
        _coins,
        lambda r, size, _: [r.randint(20, 80 + 120 * size)],
        (
            "the least number of coins of the values {coins} that make exactly {amount}, or -1 where none do",
            "with how few coins {amount} can be paid if there are coins of {coins}; -1 if it cannot be",
        ),
    ),
    Problem(
        "large_islands",
        0.74,
        large_islands,
        (("grid", "grid"),),
        lambda r: {"k": r.randint(2, 5), "mark": r.choice("#*@%XO")},
        lambda r, size, c: [_grid(r, size + 2, "." + c["mark"], 0.4)],
        (
            "how many groups of {k} or more cells {mark} there are, where cells that share a side belong together",
            "the number of connected regions (by sides) of {mark} with at least {k} cells",
        ),
    ),
    Problem(
        "rising",
        0.76,
        rising,
        (("numbers", "ints"),),
        lambda r: {"gap": r.randint(2, 30)},
        lambda r, size, _: [numbers(r, 6 * size + 4, 0, 300)],
        (
            "the length of the longest subsequence in which each term is at least {gap} more than the one before",
            "how many of {numbers} can be kept, in their order, so that each exceeds the previous kept one by {gap} or more",
        ),
    ),
    Problem(
        "edit_cost",
        0.8,
        edit_cost,
        (("a", "text"), ("b", "text")),
        lambda r: {"insert": r.randint(1, 9), "delete": r.randint(1, 9), "change": r.randint(2, 12)},
        lambda r, size, _: ["".join(r.choices("abcd", k=r.randint(4, 6 + 6 * size))) for _ in range(2)],
        (
            "the least cost to turn {a} into {b}, where inserting a letter costs {insert}, deleting one {delete}, replacing one {change}",
            "the weighted edit distance from {a} to {b} (insertion {insert}, deletion {delete}, substitution {change})",
        ),
    ),
    Problem(
        "knapsack",
        0.84,
        knapsack,
        (("items", "rows"),),
        lambda r: {"capacity": r.randint(20, 80), "k": r.randint(2, 5)},
        lambda r, size, _: [[[r.randint(1, 40), r.randint(1, 99)] for _ in range(5 + 2 * size)]],
        (
            "the greatest total value of at most {k} items that weigh at most {capacity} together; a row is weight and value of an item",
            "what at most {k} of the items (rows of weight and value) can be worth in a bag that holds a weight of {capacity}",
        ),
    ),
    Problem(
        "fewest_moves",
        0.87,
        fewest_moves,
        (("grid", "grid"),),
        lambda r: {"k": r.randint(1, 5), "wall": r.choice("#X@%*")},
        lambda r, size, c: [_grid(r, size + 2, "." + c["wall"], 0.42)],
        (
            "the least number of moves (up, down, left, right) from the top left to the bottom right cell that enter at most {k} cells "
            "{wall}, a first cell {wall} counted; -1 if there is no such way",
            "how short a way by sides from the first cell to the last of {grid} is that has at most {k} cells {wall} on it, its ends "
            "included, in moves; -1 where there is none",
        ),
    ),
    Problem(
        "cheapest_route",
        0.89,
        cheapest_route,
        (("n", "int"), ("roads", "rows")),
        lambda r: {"toll": r.randint(3, 40), "free": r.randint(2, 5)},
        _roads,
        (
            "the least cost from town 1 to town {n} over two-way roads (rows of town, town, length): the sum of the lengths, plus {toll} for "
            "each town entered on the way, except {n} and those whose number {free} divides",
            "what the cheapest way from 1 to {n} costs; a row is a two-way road between two towns and its cost, and entering a town costs {toll} "
            "more unless it is town {n} or divisible by {free}",
        ),
    ),
    Problem(
        "best_bookings",
        0.91,
        best_bookings,
        (("bookings", "rows"),),
        lambda r: {"rest": r.randint(1, 40)},
        _bookings,
        (
            "the greatest total value of bookings (rows of start, end, value) of which each starts {rest} or more after the end of the one before",
            "how much bookings, each a row of start, end and value, can bring in if at least {rest} must lie between an end and the next start",
        ),
    ),
    Problem(
        "far_term",
        0.94,
        far_term,
        (("n", "int"),),
        lambda r: {"a": r.randint(1, 30), "b": r.randint(1, 30)},
        lambda r, size, _: [r.randint(2, 10 ** (2 * size + 1))],
        (
            "f({n}) modulo 1000000007, where f(0) = f(1) = 1 and f(i) = {a} * f(i - 1) + {b} * f(i - 2)",
            "term number {n}, modulo 1000000007, of the sequence 1, 1, ... (its first is number 0) in which each is {a} times the one before "
            "plus {b} times the one before that",
        ),
    ),
    Problem(
        "count_by_digits",
        0.97,
        count_by_digits,
        (("n", "int"),),
        lambda r: {"k": r.randint(3, 15), "digit": r.randint(1, 9)},
        lambda r, size, _: [r.randint(50, 10 ** (3 * size + 3))],
        (
            "how many integers from 1 to {n} have no digit {digit} and a digit sum that {k} divides, modulo 1000000007",
            "the count, modulo 1000000007, of positive integers up to {n} without the digit {digit} whose digits sum to a multiple of {k}",
        ),
    ),
]
"""By difficulty."""
