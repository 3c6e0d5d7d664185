"""Which tasks of one domain each step draws: bins of equal pass rate, a target that moves over them, and what is left in each.

A domain whose tasks were profiled with n rollouts has the bins 0/n, 1/n, ..., n/n; a task is in the bin nearest to its pass rate. The
target of a step is the Gaussian's density at the bins that have an eligible task, normalised. A bin is empty when each of its tasks was
drawn in this epoch; its target goes to the nearest bins that are not, in equal parts where two are as near. Counts follow the targets
within rounding (curriculum/rounding.py). The domain's next epoch begins once all of its tasks are drawn, within a batch too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum.options import CurriculumOptions
from curriculum.rounding import Rounding, in_units

Indices = NDArray[np.int64]
Shares = NDArray[np.float64]


def raw_stream(name: str, n: int) -> NDArray[np.uint64]:
    """n random 64-bit integers that depend on `name` alone: the raw output of PCG64, the same in every version of numpy."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    return np.random.PCG64(seed).random_raw(n)


def permutation(name: str, n: int) -> Indices:
    """A permutation of 0..n-1 that depends on `name` alone."""
    return np.argsort(raw_stream(name, n), kind="stable")


def bin_of(pass_rate: NDArray[np.float64], n: int) -> Indices:
    """The bin, 0..n, nearest to each pass rate: j stands for the rate j / n, and halves go up."""
    return np.floor(pass_rate * n + 0.5).astype(np.int64)


def log_density(rates: NDArray[np.float64], mean: float, sigma: float) -> Shares:
    """Log of the Gaussian's density at `rates`, up to a constant."""
    log: Shares = -0.5 * ((rates - mean) / sigma) ** 2
    return log


def target(rates: NDArray[np.float64], mean: float, sigma: float) -> Shares:
    """Share of each of the bins at `rates` [bins]: the Gaussian's density there, normalised. However far the mean is, it sums to 1."""
    log = log_density(rates, mean, sigma)
    weight: Shares = np.exp(log - log.max())
    share: Shares = weight / weight.sum()
    return share


def to_nearest(rates: NDArray[np.float64], empty: NDArray[np.bool_]) -> Shares:
    """Where the target of each bin goes, [bins, bins], rows summing to 1: to itself, or where it is empty to the nearest bins that are
    not. Not all may be empty."""
    distance = np.abs(rates[:, None] - rates[None, :])
    distance[:, empty] = np.inf
    nearest = np.isclose(distance, distance.min(axis=1, keepdims=True), rtol=0, atol=1e-9)
    share: Shares = nearest / nearest.sum(axis=1, keepdims=True)
    return share


@dataclass(frozen=True)
class Bins:
    """The eligible tasks of a domain by pass rate: rates ascending [bins], and of each bin its tasks' indices, ascending, not empty."""

    rates: NDArray[np.float64]
    members: Sequence[Indices]

    @classmethod
    def by_pass_rate(cls, indices: Indices, pass_rate: NDArray[np.float64], n: int) -> Bins:
        """indices, pass_rate: [tasks] of a domain. n: rollouts of a task in the profile."""
        places = bin_of(pass_rate, n)
        kinds = np.unique(places)
        return cls(kinds / n, [indices[places == kind] for kind in kinds])


class DomainOrder:
    """The tasks of one domain, step by step: call `draw` once a step.

    shares: [steps, bins], rows summing to 1. counts: [steps], tasks of this domain in each step. seed: names the permutations of
    each bin in each epoch; None keeps the order of the indices.
    """

    def __init__(self, bins: Bins, shares: Shares, counts: Indices, seed: str | None) -> None:
        self.bins, self._shares, self._step_counts, self._seed = bins, shares, counts, seed
        self._sizes = np.array([len(members) for members in bins.members], dtype=np.int64)
        self._step = 0
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._left = self._sizes.copy()
        self._queues = [
            members if self._seed is None else members[permutation(f"{self._seed}|{rate:.9f}|{epoch}", len(members))]
            for rate, members in zip(self.bins.rates, self.bins.members, strict=True)
        ]
        self._rounding: Rounding | None = None
        self._lag = np.zeros(len(self._sizes), dtype=np.int64)

    def _schedule(self, first: int) -> Rounding:
        """The rounding from this step on, whose count is `first`; an empty bin's lag goes where its target goes."""
        moved = to_nearest(self.bins.rates, self._left == 0)
        counts = self._step_counts[self._step :].copy()
        counts[0] = first
        lag = np.rint(self._lag @ moved).astype(np.int64)
        return Rounding(in_units(self._shares[self._step :] @ moved, counts, lag), lag)

    def draw(self) -> Indices:
        """The next step's tasks, [count], those of an ending epoch before those of the next."""
        wanted = int(self._step_counts[self._step])
        chosen = [np.empty(0, dtype=np.int64)]
        if not wanted and self._rounding is not None:
            self._rounding.settle(np.zeros_like(self._sizes))
        while wanted:
            left = int(self._left.sum())
            if not left:
                self._start_epoch(self.epoch + 1)
            elif wanted >= left:  # the rest of the epoch
                chosen.append(self._take(self._left))
                wanted -= left
            else:
                if self._rounding is None:
                    self._rounding = self._schedule(wanted)
                counts = self._fitted(self._rounding.counts())
                chosen.append(self._take(counts))
                self._rounding.settle(counts)
                if np.any((self._left == 0) & (counts > 0)):  # a bin has run dry
                    self._lag, self._rounding = self._rounding.lag, None
                wanted = 0
        self._step += 1
        return np.concatenate(chosen)

    def _fitted(self, counts: Indices) -> Indices:
        """`counts`, where a bin has fewer left filled up from the nearest bins that have more: first the nearest, of two as near the one
        with more left, then the easier."""
        short = np.maximum(counts - self._left, 0)
        fitted: Indices = counts - short
        for column in np.flatnonzero(short):
            for _ in range(int(short[column])):
                spare = self._left - fitted
                distance = np.round(np.abs(self.bins.rates - self.bins.rates[column]), 9)
                open_bins = np.flatnonzero(spare > 0)
                nearest = min(open_bins, key=lambda b: (distance[b], -spare[b], -self.bins.rates[b]))
                fitted[nearest] += 1
        return fitted

    def _take(self, counts: Indices) -> Indices:
        """The next `counts` [bins] tasks of the bins."""
        starts = self._sizes - self._left
        self._left = self._left - counts
        return np.concatenate(
            [queue[start : start + n] for queue, start, n in zip(self._queues, starts, counts, strict=True)]
        )


def gaussian_shares(rates: NDArray[np.float64], options: CurriculumOptions) -> Shares:
    """The target of every step, [steps, bins]."""
    return np.stack([target(rates, options.mean(step), options.sigma) for step in range(options.steps)])
