"""Requests counted in memory that the processes of one server share, so that whichever answers /metrics tells of all.

Every process has a row of its own and writes nowhere else: no locks. A process that died is followed by another with the same row, so
that no count goes down.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

STATUSES = 600
"""HTTP statuses are below."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: upper bounds of the histogram's buckets; the last bucket has none."""
_TOTAL = STATUSES + len(BOUNDS) + 1
ROW = _TOTAL + 1
"""Numbers of a row: requests by status, requests by bucket, seconds of all of them."""


class Tally(Collector):
    """Counts of one server. row: of this process; fork after it was made, and give each process one of `rows`."""

    def __init__(self, rows: int = 1, row: int = 0, memory: memoryview[float] | None = None) -> None:
        self.rows = rows
        self._all = memory if memory is not None else memoryview(mmap.mmap(-1, 8 * ROW * rows)).cast("d")
        self._mine = self._all[row * ROW : (row + 1) * ROW]

    def of(self, row: int) -> Tally:
        """The same counts as process `row` writes them."""
        return Tally(self.rows, row, self._all)

    def refused(self, status: int) -> None:
        """A request that was answered unread."""
        self._mine[status] += 1

    def answered(self, status: int, seconds: float) -> None:
        """A request and what it took."""
        self._mine[status] += 1
        self._mine[STATUSES + bisect.bisect_left(BOUNDS, seconds)] += 1
        self._mine[_TOTAL] += seconds

    def collect(self) -> Iterator[Metric]:
        """The sums over all processes, as Prometheus wants them."""
        sums = [sum(self._all[column::ROW]) for column in range(ROW)]
        requests = CounterMetricFamily("omnigym_requests", "Requests", labels=["status"])
        for status, count in enumerate(sums[:STATUSES]):
            if count:
                requests.add_metric([str(status)], count)
        yield requests
        buckets: list[tuple[str, float]] = []
        seen = 0.0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), sums[STATUSES:_TOTAL], strict=True):
            seen += count
            buckets.append((bound, seen))
        yield HistogramMetricFamily(
            "omnigym_request_seconds", "Seconds a request took", buckets=buckets, sum_value=sums[_TOTAL]
        )
