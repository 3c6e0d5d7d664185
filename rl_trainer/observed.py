"""Live pass rates: what each group of a step earned, kept in the run folder beside the profiles (`observed.jsonl`), one line a group.

A step's lines are written in one piece when it is trained; a resumed run takes back those that its checkpoint does not hold, and
trains those steps again, so every step stands there exactly once. Groups that dynamic sampling dropped are there too, marked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from gym_servers.protocol import Rollout
from rl_trainer.sampler import Plan
from rl_trainer.store import append, is_dropped, write_whole

OBSERVED_FILE = "observed.jsonl"


def group_lines(step: int, sampled: Sequence[Rollout]) -> Iterator[dict[str, Any]]:
    """step, environment, task_id, group, mean_reward and n (over the rollouts that did not fail), dropped: of each group that has
    such a rollout."""
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in sampled:
        if rollout.failure is None and rollout.reward is not None:
            groups[rollout.group].append(rollout)
    for group, members in sorted(groups.items()):
        yield {
            "step": step,
            "environment": members[0].environment,
            "task_id": members[0].task_id,
            "group": group,
            "mean_reward": sum(r.reward for r in members if r.reward is not None) / len(members),
            "n": len(members),
            "dropped": is_dropped(members[0]),
        }


def difficulty(plan: Plan, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of a batch: the mean pass rate that the plan's profile has of its tasks, and the mean that was observed, over the same groups.
    Nothing where the plan's profile has none of them, or there is none."""
    pairs = [
        (expected, row["mean_reward"])
        for row in group_lines(0, rollouts)
        if (expected := plan.pass_rate(row["environment"], row["task_id"])) is not None
    ]
    if not pairs:
        return {}
    expected, observed = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return {"profile_pass_rate": expected, "observed_pass_rate": observed}


class Observed:
    """The file in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / OBSERVED_FILE

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its lines; one that a kill cut off is left out."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield orjson.loads(line)

    def rewind(self, steps: int) -> None:
        """Keep the first `steps` steps only."""
        if self.path.is_file():
            kept = (row for row in self.rows() if row["step"] < steps)
            write_whole(self.path, b"".join(orjson.dumps(row) + b"\n" for row in kept))

    def add(self, step: int, sampled: Sequence[Rollout]) -> None:
        """Append the groups of a step."""
        append(self.path, b"".join(orjson.dumps(row) + b"\n" for row in group_lines(step, sampled)))
