"""A profile in the making: n rollouts of every task, kept in a journal beside the output, published as a parquet file at the end.

The journal is one JSON line a finished task, after a first line that says what the profile is made with. A task is finished when all
its rollouts ended; what was under way at a kill is sampled again, with the same seeds, and a finished task never is. Of the
profiler's own, 16 bytes of each task are in memory, and what is under way. Rows of task files are read lazily; those of a run are in memory as
they are in the run.

Failed rollouts (infrastructure) are no reward: they leave a task's n smaller. A task with none left has no pass rate: it is reported,
is not in the profile, and is tried again by the next call.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from gym_servers.commands.collection import FailureBudget
from gym_servers.protocol import OmnigymError, Rollout, row_task_id
from gym_servers.rollouts import RolloutRequest, rollout_seed
from gym_servers.rows import parse_line
from rl_trainer.config import RunConfig
from rl_trainer.store import write_whole
from rl_trainer.tasks import LoadedTask

if TYPE_CHECKING:  # a profile of task files needs no torch
    from rl_trainer.generation import Generation

Row = dict[str, Any]
NamedTask = tuple[str, str, Row]
"""Environment, task id, row."""

NO_SPREAD_KNOWN = 0.5
"""Standard error of a single rollout: the largest standard deviation that a reward in [0, 1] can have."""


def row_mark(name: str, row: Row) -> int:
    """64 bits that tell a task, of this environment and id, and its row from another."""
    body = f"{name} {row_task_id(row)}".encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")


@dataclass
class Tally:
    """What ended of one task. place: its number in the order of the tasks."""

    place: int
    mark: int
    rewards: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, rollout: Rollout) -> None:
        """Count one rollout. Raises OmnigymError for a reward that is no pass rate."""
        if rollout.failure is not None or rollout.reward is None:
            self.failures[rollout.failure.kind if rollout.failure is not None else "cancelled"] += 1
            return
        if not 0.0 <= rollout.reward <= 1.0:
            raise OmnigymError(
                f"environment '{rollout.environment}' task '{rollout.task_id}': reward {rollout.reward:g}; a pass rate is a mean of "
                "rewards in [0, 1], so this environment cannot be profiled"
            )
        self.rewards[rollout.attempt] = rollout.reward
        self.tokens += rollout.usage.get("sampled_tokens", 0) - rollout.usage.get("dropped_tokens", 0)
        self.truncated += rollout.truncated

    @property
    def ended(self) -> int:
        """How many rollouts are counted."""
        return len(self.rewards) + self.failures.total()

    def figures(self) -> dict[str, Any]:
        """n, pass_rate, stderr (of pass_rate), mean_tokens and truncated (share), over the rollouts that did not fail; n alone
        where none is left. Sums are in the order of the attempts: who ended first changes no digit."""
        n = len(self.rewards)
        if not n:
            return {"n": 0}
        rewards = [self.rewards[attempt] for attempt in sorted(self.rewards)]
        mean = math.fsum(rewards) / n
        spread = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (n - 1) / n) if n > 1 else NO_SPREAD_KNOWN
        return {
            "n": n,
            "pass_rate": min(1.0, mean),
            "stderr": spread,
            "mean_tokens": self.tokens / n,
            "truncated": self.truncated / n,
        }


@dataclass
class Outcome:
    """What came of a profile, by environment."""

    tasks: Counter[str] = field(default_factory=Counter)
    pass_rates: dict[str, float] = field(default_factory=dict)
    """Sums."""
    solved: Counter[str] = field(default_factory=Counter)
    unsolved: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Rollouts."""
    without: int = 0
    """Tasks of which every rollout failed."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a task of the journal."""
        name = row["domain"]
        self.tasks[name] += 1
        self.pass_rates[name] = self.pass_rates.get(name, 0.0) + row["pass_rate"]
        self.solved[name] += row["pass_rate"] == 1.0
        self.unsolved[name] += row["pass_rate"] == 0.0
        self.failed[name] += sum(row.get("failures", {}).values())

    def describe(self) -> str:
        """A line for each environment, and one for tasks without a result."""
        lines = [
            f"{name}: {count} tasks, mean pass rate {self.pass_rates[name] / count:.3f}, {self.solved[name]} always solved, "
            f"{self.unsolved[name]} never, {self.failed[name]} rollouts failed"
            for name, count in sorted(self.tasks.items())
        ]
        if self.without:
            lines.append(
                f"{self.without} tasks have no pass rate, for every rollout of them failed: they are not in the profile, and are tried "
                "again by the same command"
            )
        return "\n".join(lines)


class Profiler:
    """The journal of the profile `out`, as a context that holds its lock. made_with: what must be equal for going on with it."""

    def __init__(self, out: Path, made_with: Mapping[str, Any], n: int, seed: int) -> None:
        self.out, self.n, self.seed = out, n, seed
        self.path = out.with_name(f"{out.name}.journal")
        self.made_with = {**made_with, "n": n, "seed": seed}
        self.weights = str(made_with["weights"])
        self.total = 0
        self._places = array("q")
        self._marks = array("Q")
        self._open: dict[tuple[str, str], Tally] = {}
        self._file: BinaryIO

    def __enter__(self) -> Profiler:
        if self.out.exists() and not self.path.exists():
            raise OmnigymError(
                f"'{self.out}' exists, and no journal '{self.path.name}' to go on with: give another --out"
            )
        try:  # what publishing needs is missed before anything is sampled
            import curriculum.profile  # noqa: F401
        except ModuleNotFoundError as error:
            raise OmnigymError(f"a profile needs {error.name}: pip install 'omnigym[curriculum]'") from None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise OmnigymError(f"cannot write '{self.path}': {error.strerror}. Give another --out") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OmnigymError(f"'{self.out}' is being made by another `omnigym profile`") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> None:
        """What earlier calls finished. A last line that a kill cut off is removed."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            row = parse_line(line, f"{self.path}:{number + 1}")
            try:
                if number == 0:
                    self._same(row["made_with"])
                else:
                    self._place(int(row["place"]), int(row["mark"], 16), end if row["n"] else -1)
            except (KeyError, TypeError, ValueError) as error:
                raise OmnigymError(f"{self.path}:{number + 1}: not a line of `omnigym profile` ({error!r})") from None
            end += len(line)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        if not end:
            self._write({"made_with": self.made_with})

    def _same(self, then: Mapping[str, Any]) -> None:
        now = orjson.loads(orjson.dumps(self.made_with))
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) == now.get(key):
                continue
            what = "another model's profile" if key == "weights" else f"a profile made with another '{key}'"
            raise OmnigymError(
                f"'{self.path}' is of {what} ({then.get(key)!r}, now {now.get(key)!r}): give another --out, or what it was "
                "made with"
            )

    def _write(self, row: Mapping[str, Any]) -> int:
        """Append a line; where it begins."""
        place = self._file.tell()
        try:
            self._file.write(orjson.dumps(row) + b"\n")
            self._file.flush()  # nothing that ended is lost with this process
        except OSError as error:
            raise OmnigymError(
                f"cannot write '{self.path}': {error.strerror}. Free some space, then give the same command"
            ) from None
        return place

    def _place(self, place: int, mark: int, offset: int) -> None:
        while len(self._places) <= place:
            self._places.append(-1)
            self._marks.append(0)
        self._places[place], self._marks[place] = offset, mark

    def pending(self, tasks: Iterable[NamedTask]) -> Iterator[tuple[int, NamedTask]]:
        """Tasks that are not finished, with their place, and `total` counted. Raises OmnigymError where the journal has another
        task in its place."""
        self.total = 0
        for place, (environment, task_id, row) in enumerate(tasks):
            self.total = place + 1
            if place < len(self._places) and self._places[place] >= 0:
                if self._marks[place] != row_mark(f"{environment}/{task_id}", row):
                    raise OmnigymError(
                        f"'{self.path}' has another task than '{environment}/{task_id}' at place {place}: its tasks were other "
                        "ones, or in another order. Give the ones that it was begun with, or another --out"
                    )
                continue
            yield place, (environment, task_id, row)

    def requests(self, tasks: Iterable[NamedTask]) -> Iterator[RolloutRequest]:
        """n rollouts of each task that is not finished, read as there is room for them. Seeds are of the task alone."""
        for place, (environment, task_id, row) in self.pending(tasks):
            key = (environment, task_id)
            self._open[key] = Tally(place, row_mark(f"{environment}/{task_id}", row))
            for attempt in range(self.n):
                drawn = rollout_seed(self.seed, environment, task_id, attempt)
                yield RolloutRequest(row, task_id, environment, f"{environment}/{task_id}", attempt, drawn)

    def add(self, rollout: Rollout) -> None:
        """Count a rollout that ended; the last one of a task writes it down."""
        key = (rollout.environment, rollout.task_id)
        tally = self._open[key]
        tally.add(rollout)
        if tally.ended < self.n:
            return
        del self._open[key]
        figures = tally.figures()
        line = {"place": tally.place, "mark": f"{tally.mark:016x}", "domain": key[0], "task_id": key[1], **figures}
        if tally.failures:
            line["failures"] = dict(sorted(tally.failures.items()))
        offset = self._write(line)
        self._place(tally.place, tally.mark, offset if figures["n"] else -1)

    def publish(self) -> Outcome:
        """Write the parquet file, in the order of the tasks, a row group at a time. Raises OmnigymError where no task has a
        result."""
        from curriculum.profile import DTYPES, ROW_GROUP, profile_writer

        outcome = Outcome()
        assert not self._open and len(self._places) >= self.total, "every task has ended"
        if all(offset < 0 for offset in self._places[: self.total]):
            raise OmnigymError(f"no task has a rollout that did not fail: '{self.out}' was not written")
        with profile_writer(self.out, self.weights) as writer, self.path.open("rb") as lines:
            for start in range(0, self.total, ROW_GROUP):
                columns: dict[str, list[Any]] = {name: [] for name in DTYPES}
                for place in range(start, min(self.total, start + ROW_GROUP)):
                    if self._places[place] < 0:
                        outcome.without += 1
                        continue
                    lines.seek(self._places[place])
                    row = orjson.loads(lines.readline())
                    for name in DTYPES:
                        columns[name].append(row[name])
                    outcome.add(row)
                if columns["task_id"]:
                    writer.append(**columns)
        return outcome


def copy_profile(profile: Path, out: Path) -> None:
    """The profile once more under another name, with its journal first: without one a profile is not gone on with."""
    for source, target in (
        (profile.with_name(f"{profile.name}.journal"), out.with_name(f"{out.name}.journal")),
        (profile, out),
    ):
        write_whole(target, source.read_bytes())


def made_with(config: RunConfig, weights: str) -> dict[str, Any]:
    """What a profile of a run's tasks depends on besides its seed."""
    sampling, settings = config.sampling.model_dump(), dict(sorted(config.settings.items()))
    engine = {"dtype": config.engine.dtype, "max_model_len": config.engine.max_model_len}
    return {"weights": weights, "sampling": sampling, "settings": settings, **engine}


def collect_profile(
    profiler: Profiler,
    tasks: Sequence[NamedTask],
    generation: Generation,
    failure_limit: float,
    on_done: Callable[[Rollout], None],
) -> Outcome:
    """Make the profile with the model and environments of a run, and publish it. Raises OmnigymError past the limit of failures."""
    from rl_trainer.generation import RolloutPlan

    budget = FailureBudget(failure_limit, setting="failure_limit")
    plans = (
        RolloutPlan(
            LoadedTask(request.environment, request.task_id, request.row),
            f"profile/{request.group}-a{request.attempt:03d}",
            request.group,
            request.attempt,
            request.seed,
            "profile",
        )
        for request in profiler.requests(tasks)
    )

    def done(rollout: Rollout) -> None:
        profiler.add(rollout)
        on_done(rollout)
        budget.add(rollout)

    if any(True for _ in profiler.pending(tasks)):
        generation.collect(plans, done)
    return profiler.publish()
