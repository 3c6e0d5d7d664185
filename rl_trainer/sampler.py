"""Which tasks a step trains on: a pure function of (seed, step), so that a resumed run plans what the first would have.

A sampler is `next(step)`, `observe`, `state_dict`. `random` draws each environment's tasks without replacement, epoch by
epoch (a seeded permutation each), with counts by the mixture (curriculum/mixture.py); the order inside a batch is shuffled.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from curriculum.mixture import batches
from gym_servers.environment import Environment, Split
from gym_servers.protocol import RowError
from gym_servers.registry import load_environment
from gym_servers.rows import named_tasks, parse_line, read_lines
from rl_trainer.config import ConfigError, RunConfig

DRAWS_PER_ROW = 50
"""Rows drawn from a generator for each that is wanted, before its difficulties are said to be too few."""


@dataclass(frozen=True)
class LoadedTask:
    """A checked task row. task_id is unique within its environment."""

    environment: str
    task_id: str
    row: dict[str, Any] = field(repr=False, hash=False, compare=False)


@dataclass(frozen=True)
class PlannedTask:
    """A task at its place in a step's batch. `group` is explicit: equal tasks or prompts never merge (pitfall 31)."""

    task: LoadedTask
    group: str


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


def load_rows(config: RunConfig, environment: str) -> list[LoadedTask]:
    """All training tasks of one environment, each row checked by it unless it is elsewhere. Raises RowError or ConfigError."""
    remote = environment in config.environment_urls
    env = None if remote else load_environment(environment, config.settings.get(environment))
    source = config.tasks.get(environment)
    rows: list[tuple[str, dict[str, Any]]]
    if source is not None and source.file is not None:
        rows = [(where, parse_line(line, where)) for where, line in read_lines(source.file)]
        if not rows:
            raise ConfigError(
                f"tasks.{environment}.file: '{source.file}' holds no row; `omnigym env generate` makes some"
            )
    else:
        assert env is not None  # the configuration wants a file for one that is elsewhere
        n, seed = (source.n, source.seed) if source is not None else (512, 0)
        rows = [(f"generated task {k}", row) for k, row in enumerate(generated_rows(config, env, n, seed, "train"))]
    return [
        LoadedTask(environment, task_id, row)
        for task_id, row in named_tasks(rows, check_prompt if env is None else env.check_row)
    ]


def check_prompt(row: dict[str, Any]) -> None:
    """All that can be known of a row whose environment is elsewhere. Raises RowError."""
    if not isinstance(row.get("responses_create_params"), dict):
        raise RowError(f"field 'responses_create_params' must be an object; found fields {sorted(row)[:20]}")


def generated_rows(config: RunConfig, env: Environment, n: int, seed: int, split: Split) -> list[dict[str, Any]]:
    """`n` generated rows of at most the configured difficulty. Raises ConfigError where the generator has too few."""
    source = config.tasks.get(env.name)
    limit = 1.0 if source is None else source.max_difficulty
    drawn = env.generate(DRAWS_PER_ROW * n, seed, split)
    rows = list(islice((row for row in drawn if float(row.get("difficulty", 0.0)) <= limit), n))
    if len(rows) < n:
        raise ConfigError(
            f"tasks.{env.name}.max_difficulty {limit}: only {len(rows)} of {n} tasks are as easy; raise it or lower n"
        )
    return rows


def load_heldout(config: RunConfig, environment: str) -> list[LoadedTask]:
    """The held-out tasks of the evaluations: parameters disjoint from training (the generator's promise).
    None of an environment that is elsewhere: it generates nothing."""
    if environment in config.environment_urls:
        return []
    env = load_environment(environment, config.settings.get(environment))
    rows = [
        (f"held-out task {k}", row)
        for k, row in enumerate(generated_rows(config, env, config.val.tasks, config.val.seed, "heldout"))
    ]
    return [LoadedTask(environment, task_id, row) for task_id, row in named_tasks(rows, env.check_row)]


def prompt_counter(model: Path) -> Callable[[dict[str, Any]], int]:
    """Tokens of a row's first prompt, rendered as the model server renders it."""
    from gym_servers.models.converter import responses_to_chat
    from gym_servers.models.template import ChatTemplate
    from gym_servers.models.transformers_tokenizer import CheckpointTokenizer

    tokenizer = CheckpointTokenizer(str(model))
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special)

    def count(row: dict[str, Any]) -> int:
        body = responses_to_chat(row["responses_create_params"])
        text = template.render(body["messages"], body.get("tools") or None, reasoning=None, generation=True, raw={})
        return len(tokenizer.encode(text))

    return count


def drop_long_prompts(
    tasks: Sequence[LoadedTask], prompt_tokens: Callable[[dict[str, Any]], int], limit: int
) -> tuple[list[LoadedTask], list[str]]:
    """Tasks whose prompt has at most `limit` tokens, and the names of the others."""
    kept, dropped = [], []
    for task in tasks:
        tokens = prompt_tokens(task.row)
        if tokens <= limit:
            kept.append(task)
        else:
            dropped.append(f"{task.environment}/{task.task_id} ({tokens} tokens)")
    return kept, dropped
