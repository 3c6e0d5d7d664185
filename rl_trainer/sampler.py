"""Which tasks a step trains on: a pure function of (seed, step), so that a resumed run plans what the first would have.

A sampler is `next(step)`, `observe`, `state_dict`. `random` draws each environment's tasks without replacement, epoch by
epoch (a seeded permutation each), with counts by the mixture (curriculum/mixture.py); the order inside a batch is shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from curriculum.mixture import batches
from gym_servers.environment import Environment, Split
from gym_servers.protocol import RowError, row_task_id
from gym_servers.registry import load_environment
from gym_servers.rows import parse_line, read_lines
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

    def _plan(self, step: int) -> tuple[dict[str, int], dict[str, int]]:
        """Tasks drawn before `step` and in it, per environment."""
        while len(self._counts) <= step:
            counts, before = next(self._batches), self._before[-1]
            self._counts.append(counts)
            self._before.append({name: before.get(name, 0) + count for name, count in counts.items()})
        return self._before[step], self._counts[step]

    def _order(self, environment: str, epoch: int) -> list[int]:
        order = list(range(len(self.tasks[environment])))
        random.Random(f"order|{self.seed}|{environment}|{epoch}").shuffle(order)
        return order

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
        """What the plan depends on, to notice a resume with other tasks."""
        return {"seed": self.seed, "tasks": {name: len(tasks) for name, tasks in self.tasks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ConfigError where the plan would not be the one that was interrupted."""
        mine = self.state_dict()
        if dict(state) != mine:
            raise ConfigError(
                f"the sampler of the checkpoint was {dict(state)}, it is now {mine}: seed or task files changed, "
                "so the run cannot go on where it stopped. Restore them, or start a new run."
            )


def load_rows(config: RunConfig, environment: str) -> list[LoadedTask]:
    """All training tasks of one environment, each row checked by it unless it is elsewhere. Raises RowError or ConfigError."""
    remote = environment in config.environment_urls
    env = None if remote else load_environment(environment, config.settings.get(environment))
    source = config.tasks.get(environment)
    rows: list[tuple[str, dict[str, Any]]]
    if source is not None and source.file is not None:
        rows = [(where, parse_line(line, where)) for where, line in read_lines(source.file)]
    else:
        assert env is not None  # the configuration wants a file for one that is elsewhere
        n, seed = (source.n, source.seed) if source is not None else (512, 0)
        rows = [(f"generated task {k}", row) for k, row in enumerate(generated_rows(config, env, n, seed, "train"))]
    if not rows:
        raise ConfigError(f"environment '{environment}': there is no task in {source.file if source else 'generator'}")
    return _checked(environment, rows, check_prompt if env is None else env.check_row)


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
    return _checked(environment, rows, env.check_row)


def _checked(
    environment: str, rows: list[tuple[str, dict[str, Any]]], check: Callable[[dict[str, Any]], object]
) -> list[LoadedTask]:
    tasks: list[LoadedTask] = []
    seen: dict[str, int] = {}
    named: set[str] = set()
    for where, row in rows:
        try:
            check(row)
        except RowError as error:
            raise RowError(f"{where}: {error}") from None
        base = row_task_id(row)
        seen[base] = seen.get(base, -1) + 1
        task_id = row.get("task_id") or row_task_id(row, seen[base])
        if task_id in named:
            raise RowError(f"{where}: environment '{environment}': task_id '{task_id}' stands twice")
        named.add(task_id)
        tasks.append(LoadedTask(environment, str(task_id), row))
    return tasks


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


def rollout_seed(seed: int, label: str, group: str, attempt: int) -> int:
    """Sampling seed of one rollout, 31 bits: the same whenever and wherever it is sampled."""
    return random.Random(f"rollout|{seed}|{label}|{group}|{attempt}").getrandbits(31)
