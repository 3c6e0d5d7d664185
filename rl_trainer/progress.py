"""What a run shows: one live display on a terminal, plain lines elsewhere (a log file, a job's output)."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gym_servers.protocol import Rollout
from rl_trainer.metrics import sampled_tokens


def duration(seconds: float) -> str:
    """75 -> 1:15."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Progress:
    """The one display of a run: step, rollouts done of total, reward per environment, tokens/s, time left.

    Time left is the mean of the steps so far times those to come; evaluations are taken to cost what they cost before.
    """

    def __init__(self, steps: int, environments: list[str], console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps, self.environments = steps, environments
        self.current, self.name, self.total, self.done, self.tokens = 0, "start", 0, 0, 0
        self._began = self._phase_began = time.monotonic()
        self._step_seconds: list[float] = []
        self._evaluation_seconds = 0.0
        self._rewards: dict[str, list[float]] = {name: [] for name in environments}
        self._phase_rewards: dict[str, list[float]] = defaultdict(list)
        self._failures = 0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, step: int, name: str, total: int = 0) -> None:
        """A phase of step `step` begins; `total` rollouts are to come."""
        if self.name.startswith("eval") and self.name != name:
            self._evaluation_seconds = time.monotonic() - self._phase_began
        if not self.name.startswith("generate") or name == "generate":
            self._phase_rewards.clear()
        self.current, self.name, self.total, self.done, self.tokens = step, name, total, 0, 0
        self._phase_began = time.monotonic()
        if self._live is None and total:
            self.console.print(f"step {step}: {name}, {total} rollouts")

    def rollout(self, rollout: Rollout) -> None:
        """A rollout ended."""
        self.done += 1
        self.tokens += sampled_tokens(rollout)
        if rollout.reward is not None:
            self._phase_rewards[rollout.environment].append(rollout.reward)
        self._failures += rollout.failure is not None

    def step(self, record: Mapping[str, Any]) -> None:
        """A step is done."""
        self._step_seconds.append(sum(record["phase_seconds"].values()))
        parts = []
        for name, figures in record["environments"].items():
            self._rewards.setdefault(name, []).append(figures["reward_mean"])
            parts.append(f"{name} {figures['reward_mean']:.2f}")
        if self._live is None:
            speed = record.get("tokens_per_second")
            self.console.print(
                f"step {record['step'] + 1}/{self.steps}: reward {', '.join(parts)}"
                + (f", {speed:.0f} tokens/s" if speed else "")
                + f", {self._step_seconds[-1]:.0f} s, {duration(self.left())} left",
                highlight=False,
            )

    def note(self, text: str) -> None:
        """A line that stays."""
        (self._live.console if self._live is not None else self.console).print(text, highlight=False)

    def left(self) -> float:
        """Seconds to the end, as far as can be known."""
        if not self._step_seconds:
            return math.nan
        mean = sum(self._step_seconds) / len(self._step_seconds)
        return mean * max(0, self.steps - self.current - 1) + self._evaluation_seconds

    def __rich__(self) -> Group:
        elapsed = time.monotonic() - self._phase_began
        speed = f", {self.tokens / elapsed:.0f} tokens/s" if self.tokens and elapsed > 0 else ""
        failures = f", {self._failures} failed" if self._failures else ""
        head = Text(
            f"step {min(self.current + 1, self.steps)}/{self.steps}  {self.name}"
            + (f" {self.done}/{self.total} rollouts{speed}" if self.total else "")
            + f"{failures}  {duration(time.monotonic() - self._began)} so far, {duration(self.left())} left"
        )
        table = Table.grid(padding=(0, 2))
        for name in self.environments:
            now, past = self._phase_rewards.get(name), self._rewards.get(name, [])
            trend = " ".join(f"{value:.2f}" for value in past[-8:])
            mean = f"{sum(now) / len(now):.2f}" if now else "-"
            table.add_row(f"  {name}", f"reward now {mean}", f"steps: {trend or '-'}")
        fraction = (self.current + (self.done / self.total if self.total else 0)) / self.steps
        bar = Padding(ProgressBar(total=1.0, completed=min(1.0, fraction), width=60), 0)  # by itself it ends no line
        return Group(head, bar, table)
