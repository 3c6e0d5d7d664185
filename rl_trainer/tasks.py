"""The task rows of a run: read from a file or generated, checked by their environment, with prompts that leave room for an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

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
