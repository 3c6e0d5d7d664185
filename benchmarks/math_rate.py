"""Verdicts per CPU-second of competition_math beside math-verify's own, in one run, and what the worst answers cost.

    python benchmarks/math_rate.py [--pairs 400] [--rounds 3]

Ours is the whole path of a verdict, `judge` with its check of the row, the part in this process and one worker; the CPU time of
all processes counts. math-verify's is `verify(parse(gold), parse(answer))` in this process, warm, with its time-outs as they come.
Both see the same pairs: integers, fractions, decimals and some LaTeX, half of them right. Prints two tables.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import Callable

import psutil
from rich.console import Console
from rich.table import Table

from environments.competition_math.server import CompetitionMath
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

Pair = tuple[str, str]
"""expected answer, answer as a model writes it"""

LATEX = [
    (r"x^2+2x+1", r"(x+1)^2", r"x^2+1"),
    (r"2\sqrt{3}", r"\sqrt{12}", r"3\sqrt{2}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", r"\sqrt{2}"),
    (r"[2,5)", r"[2, 5)", r"(2,5]"),
    (r"\{1,2,3\}", r"\{3,2,1\}", r"\{1,2\}"),
    (r"(3,\frac{\pi}{2})", r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi)"),
    (r"\frac{x}{x+1}", r"1-\frac{1}{x+1}", r"\frac{1}{x+1}"),
    (r"3+4i", r"4i+3", r"3-4i"),
]
WORST = {
    "tower": r"9^{9^{9}}",
    "tower of four": r"9^{9^{9^9}}",
    "power of a sum": r"(x+1)^{3000}",
    "binomial": r"\binom{10^7}{5\cdot10^6}",
    "harmonic sum": r"\sum_{k=1}^{10^8} 1/k",
    "nested fractions": r"\frac{1}{" * 1000 + "1" + "}" * 1000,
    "nested fractions that fit": r"\frac{1}{" * 100 + "x" + "}" * 100,
    "brackets": "(" * 100_000,
    "brackets that fit": "(" * 900 + "y" + ")" * 900,
    "five variables": "(a+b+c+d+e)^{60}",
    "integral": r"\int_0^1 x^{x^{x^x}} dx",
}


def usual_mix(count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs: 55 % integers, 15 % fractions, 10 % decimals, 20 % LaTeX."""
    r = random.Random(seed)
    pairs: list[Pair] = []
    for _ in range(count):
        kind, right = r.random(), r.random() < 0.5
        if kind < 0.55:
            number = r.randint(-500, 5000)
            gold, answer = str(number), str(number if right else number + r.randint(1, 9))
        elif kind < 0.70:
            above, below = r.randint(1, 40), r.randint(2, 40)
            gold = rf"\frac{{{above}}}{{{below}}}"
            answer = f"{above}/{below}" if right else f"{above + 1}/{below}"
        elif kind < 0.80:
            number = r.randint(1, 9999)
            gold, answer = f"{number / 100}", rf"\frac{{{number if right else number + 1}}}{{100}}"
        else:
            gold, same, other = r.choice(LATEX)
            answer = same if right else other
        pairs.append((gold, f"We add both sides and find that the answer is \\boxed{{{answer}}}."))
    return pairs


def cpu_of_all() -> float:
    """CPU seconds of this process, its nursery and its workers, the dead ones too."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def output(text: str) -> list[dict[str, object]]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


async def ours(pairs: list[Pair], pool: WorkerPool) -> list[float]:
    environment = CompetitionMath()
    return [(await judge(environment, {"expected_answer": g}, output(a), pool)).reward for g, a in pairs]


def theirs(pairs: list[Pair]) -> list[float]:
    from math_verify import parse, verify

    return [float(verify(parse(f"\\boxed{{{gold}}}"), parse(answer))) for gold, answer in pairs]


def measured(work: Callable[[], list[float]], rounds: int) -> tuple[float, list[float]]:
    """(best CPU seconds of a round, rewards); one round before it warms up."""
    rewards = work()
    best = float("inf")
    for _ in range(rounds):
        began = cpu_of_all()
        work()
        best = min(best, cpu_of_all() - began)
    return best, rewards


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=400)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    pairs = usual_mix(chosen.pairs)
    warm = [("gym_servers.verification:prepare_environment", ("competition_math",))]
    console = Console()
    with contextlib.closing(WorkerPool(1, warm=warm)) as pool, asyncio.Runner() as runner:
        seconds, rewards = measured(lambda: runner.run(ours(pairs, pool)), chosen.rounds)
        environment = CompetitionMath()
        rows = [(environment.check_row({"expected_answer": gold}), answer) for gold, answer in pairs]
        quick = sum(environment.quick(row, output(answer)) is not None for row, answer in rows)
        peer_seconds, peer_rewards = measured(lambda: theirs(pairs), chosen.rounds)
        table = Table("", "verdicts per CPU-s", "CPU-ms a verdict", title=f"{len(pairs)} pairs of the usual mix")
        for name, cpu in (("competition_math", seconds), ("math-verify", peer_seconds)):
            table.add_row(name, f"{len(pairs) / cpu:.0f}", f"{1000 * cpu / len(pairs):.3f}")
        console.print(table)
        same = sum(mine == peer for mine, peer in zip(rewards, peer_rewards, strict=True))
        console.print(
            f"{peer_seconds / seconds:.1f} times math-verify's rate; {100 * quick / len(pairs):.0f} % decided without a "
            f"worker; {same} of {len(pairs)} verdicts agree"
        )
        table = Table("answer, where x^2+1 is expected", "reward", "CPU-s of all processes", "workers killed")
        for name, text in WORST.items():
            began, kills = cpu_of_all(), pool.kills
            reward = runner.run(ours([("x^2+1", f"\\boxed{{{text}}}")], pool))[0]
            table.add_row(name, f"{reward:g}", f"{cpu_of_all() - began:.2f}", str(pool.kills - kills))
        console.print(table)


if __name__ == "__main__":
    main()
