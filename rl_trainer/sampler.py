"""Which tasks a step trains on: a pure function of (seed, step), so that a resumed run plans what the first would have.

A sampler is `next(step)`, `observe`, `state_dict`. `random` draws each environment's tasks without replacement, epoch by
epoch (a seeded permutation each), with counts by the mixture (curriculum/mixture.py); the order inside a batch is shuffled.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from curriculum.mixture import batches
from rl_trainer.config import ConfigError
from rl_trainer.tasks import LoadedTask, PlannedTask


class Sampler(Protocol):
    """What the loop asks of a sampler."""

    def next(self, step: int) -> list[PlannedTask]: ...

    def observe(self, step: int, mean_rewards: Mapping[str, float]) -> None:
        """Mean reward of each group of the step; a curriculum may use it, `random` does not."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RandomSampler:
    """Uniform within an environment, fixed ratios between environments."""

    def __init__(
        self, tasks: Mapping[str, Sequence[LoadedTask]], ratios: Mapping[str, float], batch_size: int, seed: int
    ) -> None:
        self.tasks, self.seed = tasks, seed
        self._batches = batches({name: ratio for name, ratio in ratios.items() if ratio > 0}, batch_size)
        self._counts: list[dict[str, int]] = []
        self._before: list[dict[str, int]] = [{}]
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def _plan(self, step: int) -> tuple[dict[str, int], dict[str, int]]:
        """Tasks drawn before `step` and in it, per environment."""
        while len(self._counts) <= step:
            counts, before = next(self._batches), self._before[-1]
            self._counts.append(counts)
            self._before.append({name: before.get(name, 0) + count for name, count in counts.items()})
        return self._before[step], self._counts[step]

    def _order(self, environment: str, epoch: int) -> list[int]:
        """The epoch's permutation of the environment's tasks. The latest is kept: a step draws from one epoch, or the next."""
        kept = self._orders.get(environment)
        if kept is None or kept[0] != epoch:
            order = list(range(len(self.tasks[environment])))
            random.Random(f"order|{self.seed}|{environment}|{epoch}").shuffle(order)
            kept = self._orders[environment] = (epoch, order)
        return kept[1]

    def next(self, step: int) -> list[PlannedTask]:
        """The batch of `step`, counted from 0."""
        before, counts = self._plan(step)
        chosen: list[LoadedTask] = []
        for environment, count in counts.items():
            pool = self.tasks[environment]
            for place in range(before.get(environment, 0), before.get(environment, 0) + count):
                chosen.append(pool[self._order(environment, place // len(pool))[place % len(pool)]])
        random.Random(f"batch|{self.seed}|{step}").shuffle(chosen)
        return [PlannedTask(task, f"s{step:06d}-g{k:04d}") for k, task in enumerate(chosen)]

    def observe(self, step: int, mean_rewards: Mapping[str, float]) -> None:
        """Uniform sampling learns nothing from rewards."""

    def state_dict(self) -> dict[str, Any]:
        """What the plan depends on, to notice a resume with other tasks: of each environment how many, and a hash of their ids in
        order."""
        return {"seed": self.seed, "tasks": {name: _fingerprint(tasks) for name, tasks in self.tasks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ConfigError where the plan would not be the one that was interrupted."""
        mine = self.state_dict()
        changed = [] if state["seed"] == self.seed else [f"the seed was {state['seed']} and is {self.seed}"]
        for name in sorted(state["tasks"].keys() | mine["tasks"].keys()):
            then, now = state["tasks"].get(name), mine["tasks"].get(name)
            if then == now:
                continue
            if then is None or now is None:
                changed.append(f"environment '{name}' {'is new' if then is None else 'is gone'}")
            elif then["n"] != now["n"]:
                changed.append(f"environment '{name}' had {then['n']} tasks and has {now['n']}")
            else:
                changed.append(
                    f"environment '{name}' has {now['n']} tasks as before, but other ones or in another order"
                )
        if changed:
            raise ConfigError(
                f"{'; '.join(changed)}: the run cannot go on where it stopped. Restore it, or start a new run."
            )


def _fingerprint(tasks: Sequence[LoadedTask]) -> dict[str, Any]:
    ids = "".join(f"{task.task_id}\n" for task in tasks)
    return {"n": len(tasks), "ids": hashlib.sha256(ids.encode()).hexdigest()[:16]}
