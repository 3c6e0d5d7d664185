"""What the benchmarks share: CPU time of processes, and how a result is shown.

CPU time is user plus system. Of this process it comes from the kernel's clock in nanoseconds, of others from /proc in ticks of
10 ms, so that a figure of another process needs a second of work behind it. Wall time is never what is compared: it depends on
what else runs.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import psutil


def tree_cpu_seconds(pid: int) -> float:
    """CPU seconds of process `pid`, its living descendants, and those of them that ended and were waited for."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it ended: its parent counts it now
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def machine() -> str:
    """Processor and cores, for the result."""
    name = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def show(header: Sequence[str], rows: Sequence[Sequence[Any]], result: dict[str, Any]) -> None:
    """A table for people, then one JSON line."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in text) for column in range(len(header))]
    for row in text:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(json.dumps({**result, "machine": machine()}), flush=True)
