"""The task rows of a run: read from a file or generated, checked by their environment, with prompts that leave room for an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gym_servers.environment import Environment, Split
from gym_servers.protocol import OmnigymError, RowError
from gym_servers.registry import load_environment
from gym_servers.rows import named_tasks, parse_line, read_lines
from rl_trainer.config import ConfigError, RunConfig, TasksConfig

DRAWS_PER_ROW = 50
"""Rows drawn from a generator for each that is wanted, before its difficulties are said to be too few."""


@dataclass(frozen=True)
class LoadedTask:
    """A checked task row. task_id is unique within its environment."""

    environment: str
    task_id: str
    row: dict[str, Any] = field(repr=False, hash=False, compare=False)
    where: str = field(default="", repr=False, hash=False, compare=False)
    """File and line, for errors."""


@dataclass(frozen=True)
class PlannedTask:
    """A task at its place in a step's batch. `group` is explicit: equal tasks or prompts never merge (pitfall 31)."""

    task: LoadedTask
    group: str


def load_rows(config: RunConfig, environment: str) -> list[LoadedTask]:
    """All training tasks of one environment, each row checked by it unless it is elsewhere. Raises RowError or ConfigError."""
    source = config.tasks.get(environment, TasksConfig())
    if source.file is not None:
        return _checked(config, environment, _rows_of(source.file, f"tasks.{environment}.file"))
    # The configuration wants a file for an environment that is elsewhere.
    rows = generated_rows(config, environment, source.n, source.seed, "train")
    return _checked(config, environment, [(f"generated task {k}", row) for k, row in enumerate(rows)])


def load_heldout(config: RunConfig, environment: str) -> list[LoadedTask]:
    """The held-out tasks of the evaluations: the first `val.tasks` of a file, else generated ones, whose parameters are disjoint from
    training (the generator's promise). None of an environment that is elsewhere, where there is no file."""
    source = config.tasks.get(environment, TasksConfig())
    if source.heldout is not None:
        rows = _rows_of(source.heldout, f"tasks.{environment}.heldout")[: config.val.tasks]
    elif environment in config.environment_urls:
        return []
    else:
        made = generated_rows(config, environment, config.val.tasks, config.val.seed, "heldout")
        rows = [(f"held-out task {k}", row) for k, row in enumerate(made)]
    return _checked(config, environment, rows)


def _rows_of(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    rows = [(where, parse_line(line, where)) for where, line in read_lines(path)]
    if not rows:
        raise ConfigError(f"{key}: '{path}' holds no row; `omnigym env generate` makes some")
    return rows


def _checked(config: RunConfig, environment: str, rows: list[tuple[str, dict[str, Any]]]) -> list[LoadedTask]:
    remote = environment in config.environment_urls
    check = check_prompt if remote else load_environment(environment, config.settings.get(environment)).check_row
    return [
        LoadedTask(environment, task_id, row, where)
        for (where, _), (task_id, row) in zip(rows, named_tasks(rows, check), strict=True)
    ]


def check_prompt(row: dict[str, Any]) -> None:
    """All that can be known of a row whose environment is elsewhere. Raises RowError."""
    if not isinstance(row.get("responses_create_params"), dict):
        raise RowError(f"field 'responses_create_params' must be an object; found fields {sorted(row)[:20]}")


def generated_rows(config: RunConfig, environment: str, n: int, seed: int, split: Split) -> list[dict[str, Any]]:
    """`n` generated rows of at most the configured difficulty. Raises ConfigError where the generator has too few, or is none."""
    env = load_environment(environment, config.settings.get(environment))
    if type(env).generate is Environment.generate:
        wanted = (
            f"tasks.{environment}.file"
            if split == "train"
            else f"tasks.{environment}.heldout, or val.tasks=0 for no evaluation"
        )
        raise ConfigError(f"environment '{environment}' has no generator: set {wanted}")
    limit = config.tasks.get(environment, TasksConfig()).max_difficulty
    drawn = env.generate(DRAWS_PER_ROW * n, seed, split)
    rows = list(islice((row for row in drawn if float(row.get("difficulty", 0.0)) <= limit), n))
    if len(rows) < n:
        raise ConfigError(
            f"tasks.{environment}.max_difficulty {limit}: only {len(rows)} of {n} tasks are as easy; raise it or lower n"
        )
    return rows


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
    """Tasks whose prompt has at most `limit` tokens, and the names of the others. Raises RowError for what is no prompt."""
    kept, dropped = [], []
    for task in tasks:
        try:
            tokens = prompt_tokens(task.row)
        except OmnigymError as error:
            raise RowError(f"{task.where}: environment '{task.environment}': {error}") from None
        if tokens <= limit:
            kept.append(task)
        else:
            dropped.append(f"{task.environment}/{task.task_id} ({tokens} tokens)")
    return kept, dropped
