"""Planning a large run: 600 batches of 128 tasks out of 350,000 in seven domains, at the released blend's ratios.

CPU time of this process for reading the profile, making the whole plan (every batch as indices), and working out its page; then what it
takes to plan one batch in the middle anew, as a resumed run does, and one call of replacements. Memory is what this process grew by.
Pass rates are drawn from a distribution with many tasks at both ends, eight rollouts a task. Target: the plan takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

sys.path.append(sys.path.pop(0))  # this file is named like the package: its folder comes last

from measure import show

from curriculum.options import CurriculumOptions
from curriculum.page import build_page
from curriculum.plan import Planner
from curriculum.profile import Profile, read_profile, write_profile
from curriculum.summary import summarise

BLEND = {
    "competition_code": 0.25,
    "mcqa": 0.20,
    "instruction_following": 0.17,
    "math_skywork": 0.12,
    "math_dapo": 0.10,
    "workplace_assistant": 0.10,
    "structured_outputs": 0.05,
}
T = TypeVar("T")


def made_profile(tasks: int) -> Profile:
    """Seeded; domains as large as their share in the mixture."""
    random = np.random.default_rng(0)
    ratios = np.array(list(BLEND.values()))
    rate = random.binomial(8, random.beta(0.9, 0.7, tasks)) / 8
    return Profile(
        task_id=np.array([f"{random.integers(2**63):016x}-{k % 7}" for k in range(tasks)]),
        domain=np.array(list(BLEND))[random.choice(len(BLEND), tasks, p=ratios / ratios.sum())],
        pass_rate=rate,
        n=np.full(tasks, 8),
        stderr=np.sqrt(rate * (1 - rate) / 7),
        mean_tokens=random.uniform(50, 5000, tasks),
        truncated=np.zeros(tasks),
        weights="0" * 64,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=350_000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        value = work()
        seconds[name] = time.process_time() - began
        return value

    with tempfile.TemporaryDirectory(prefix="omnigym-curriculum-") as folder:
        path = Path(folder) / "profile.parquet"
        write_profile(path, made_profile(arguments.tasks))
        size_mb = path.stat().st_size / 2**20
        process = psutil.Process()
        memory = process.memory_info().rss
        profile = timed("read", lambda: read_profile(path))
    options = CurriculumOptions(ratios=BLEND, batch_size=arguments.batch_size, steps=arguments.steps)

    def plan() -> Planner:
        planner = Planner(profile, options)
        for step in range(options.steps):
            planner.batch(step)
        return planner

    planner = timed("plan", plan)
    grown_mb = (process.memory_info().rss - memory) / 2**20
    page = timed("page", lambda: build_page(summarise(planner), "profile.parquet", "run.yaml"))
    timed("resume in the middle", lambda: Planner(profile, options).batch(options.steps // 2))
    timed("replacements", lambda: planner.replacements(options.steps // 2, 0))
    rows = [[name, taken] for name, taken in seconds.items()]
    show(
        ["", "CPU s"],
        [*rows, ["memory of profile and plan, MiB", grown_mb], ["profile on disk, MiB", size_mb]],
        {
            "benchmark": "curriculum",
            "tasks": arguments.tasks,
            "steps": options.steps,
            "batch_size": options.batch_size,
            "seconds": seconds,
            "memory_mb": grown_mb,
            "profile_mb": size_mb,
            "page_bytes": len(page),
        },
    )


if __name__ == "__main__":
    main()
