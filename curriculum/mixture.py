"""How many tasks of each domain a batch holds (spec section 2, point 3): every batch, and every prefix of the run, is within
one task of each domain's share, and every batch is full.

Rounding the cumulative shares alone does not sum to the batch size, and repairing the sum after the fact can break the
bound. The problem is Pfair scheduling with full utilisation (Baruah, Cohen, Plaxton, Varvel 1996): a domain with share r of
a batch of B gets floor(r B) tasks every step, and the remaining places are unit slots that go to the domains by earliest
pseudo-deadline, ties by the b-bit and then the later group deadline (PD2: Anderson, Srinivasan 2004); that keeps every lag strictly
inside (-1, 1). Arithmetic is exact (fractions), so a plan is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import islice
from math import ceil, floor


class MixtureError(ValueError):
    """Ratios that are no mixture: says which and why."""


def shares(ratios: Mapping[str, float]) -> dict[str, Fraction]:
    """Ratios normalised to sum to exactly 1. Decimal ratios stay exact. Raises MixtureError."""
    if not ratios:
        raise MixtureError("a mixture needs at least one domain")
    exact: dict[str, Fraction] = {}
    for name, ratio in ratios.items():
        try:
            exact[name] = Fraction(str(ratio))
        except ValueError:
            raise MixtureError(f"mixture '{name}': ratio must be a finite number, got {ratio}") from None
        if exact[name] < 0:
            raise MixtureError(f"mixture '{name}': ratio must not be negative, got {ratio}")
    total = sum(exact.values())
    if total == 0:
        raise MixtureError(f"mixture: all ratios are 0: {dict(ratios)}")
    return {name: ratio / total for name, ratio in exact.items()}


def _urgency(rate: Fraction, taken: int) -> tuple[int, int, int]:
    """Sort key of a domain's next slot, rate in (0, 1): pseudo-deadline; whether its window overlaps the next (the b-bit); and of a rate of at
    least 1/2 its group deadline, by when a chain of such windows, each too short for another choice, ends. Smaller is more urgent.
    In a few operations, whatever the rate's denominator is: ratios such as 1/3 as a float have one of 16 digits."""
    end = (taken + 1) / rate
    deadline = ceil(end)
    overlaps = deadline > floor(end)
    if not overlaps or 2 * rate < 1:
        return deadline, -int(overlaps), 0
    rest = 1 - rate
    return deadline, -1, -ceil(ceil(deadline * rest) / rest)


def batches(ratios: Mapping[str, float], batch_size: int) -> Iterator[dict[str, int]]:
    """Counts per domain of batch 0, 1, 2, ...; each sums to `batch_size`. Raises MixtureError."""
    if batch_size < 1:
        raise MixtureError(f"batch_size must be at least 1, got {batch_size}")
    wanted = {name: share * batch_size for name, share in shares(ratios).items()}
    base = {name: floor(want) for name, want in wanted.items()}
    rate = {name: want - base[name] for name, want in wanted.items() if want != base[name]}
    slots = batch_size - sum(base.values())
    taken = dict.fromkeys(rate, 0)
    step = 0
    while True:
        counts = dict(base)
        eligible = [name for name in rate if floor(taken[name] / rate[name]) <= step]
        for name in sorted(eligible, key=lambda name: (_urgency(rate[name], taken[name]), name))[:slots]:
            counts[name] += 1
            taken[name] += 1
        yield counts
        step += 1


def batch_counts(ratios: Mapping[str, float], batch_size: int, step: int) -> dict[str, int]:
    """Counts per domain of batch `step`: a pure function, so that a resumed run plans what the first would have."""
    return next(islice(batches(ratios, batch_size), step, None))
