"""Whole numbers of tasks near fractional targets: each batch gives a bin its target rounded down or up, and every prefix of the plan is
within one task of the sum of its targets (spec section 2, point 3, for the bins of a domain).

The targets move with the step, so cumulative rounding per bin does not sum to the batch. What a target has beyond its whole part is
scheduled as in curriculum/mixture.py, as Pfair scheduling (Baruah, Cohen, Plaxton, Varvel 1996), here with rates that change: a bin's
k-th single task may be drawn from the step in which its target's sum passes k - 1, and is due in the step in which that sum reaches k;
the steps' places go to the earliest due, ties to the one whose next window opens in the same step, and then to the next due. That
keeps every lag strictly inside (-1, 1) where none is carried in from outside and no bin's target vanishes for a while and comes back,
as a Gaussian's that passes over it once does not. Targets are whole multiples of 1 / UNIT, so nothing is lost in sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = 1 << 30


def in_units(
    shares: NDArray[np.float64], counts: NDArray[np.int64], lag: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """`shares` [steps, bins], rows summing to 1, times `counts` [steps], in units; each row sums to counts * UNIT exactly.

    Where a share is too small for a unit, and the bin is owed a part of a task from before (lag as of Rounding), it is one unit all
    the same: only from a bin with a target can a step draw what it is owed.
    """
    units = np.rint(shares * (counts[:, None] * float(UNIT))).astype(np.int64)
    rows = np.arange(len(units))
    units[rows, units.argmax(axis=1)] += counts * UNIT - units.sum(axis=1)
    start = np.zeros(units.shape[1], dtype=np.int64) if lag is None else lag
    before = np.vstack([start, start + np.cumsum(units, axis=0)[:-1]])
    tiny = (units == 0) & (shares > 0) & (counts > 0)[:, None] & (before % UNIT != 0)
    largest = units.argmax(axis=1)
    units += tiny
    units[rows, largest] -= tiny.sum(axis=1)
    return units


class Rounding:
    """The counts of each step for targets that are known ahead, from the first row of `targets` on.

    targets: [steps, bins], in units, each row a whole number of tasks. lag: [bins], in units: what earlier targets were above what
    was drawn. Call `counts` and `settle` in turn.
    """

    def __init__(self, targets: NDArray[np.int64], lag: NDArray[np.int64]) -> None:
        self.lag = lag.copy()
        self._targets, self._step = targets, 0
        self._whole, rest = np.divmod(targets, UNIT)
        self._rest = rest
        self._due = lag + np.cumsum(rest, axis=0)
        self._taken = np.zeros(targets.shape[1], dtype=np.int64)
        self._windows = [self._windows_of(self._due[:, column]) for column in range(targets.shape[1])]

    @staticmethod
    def _windows_of(due: NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Of a bin's single tasks 1, 2, ...: 2 x the step in which it is due, + 1 where the next one's window opens only later; and
        for each the end of the chain of windows that overlap from there on."""
        last = max(1, -(-int(due[-1]) // UNIT))
        wanted = np.arange(1, last + 1, dtype=np.int64) * UNIT
        when = np.searchsorted(due, wanted)
        apart = np.append(due, 0)[np.minimum(when, len(due))] <= wanted
        ends = np.append(np.flatnonzero(apart), last - 1)
        chain = ends[np.searchsorted(ends[:-1], np.arange(last))] + 1
        return (2 * when + apart).tolist(), chain.tolist()

    def _urgency(self, column: int) -> tuple[bool, list[int], int, int]:
        """Sort key of the bin's next single task in this step; smaller is drawn first. Of those that are due after the last step,
        the one that comes nearest to being due in it."""
        taken = int(self._taken[column])
        early = int(self._due[self._step, column]) <= taken * UNIT  # its window is not open yet
        codes, chain = self._windows[column]
        windows = codes[taken : chain[taken]] if taken < len(codes) else [2 * len(self._due) + 1]
        return early, windows, taken * UNIT - int(self._due[-1, column]), column

    def counts(self) -> NDArray[np.int64]:
        """Tasks of each bin in the next step, [bins]: its target rounded down or up."""
        counts: NDArray[np.int64] = self._whole[self._step].copy()
        rest = self._rest[self._step]
        open_bins = [int(column) for column in np.flatnonzero(rest)]
        counts[sorted(open_bins, key=self._urgency)[: int(rest.sum()) // UNIT]] += 1
        return counts

    def settle(self, drawn: NDArray[np.int64]) -> None:
        """Go to the next step. `drawn`: [bins], as `counts` said, or otherwise where a bin had too few."""
        self.lag += self._targets[self._step] - drawn * UNIT
        self._taken = np.maximum(self._taken + drawn - self._whole[self._step], 0)
        self._step += 1
