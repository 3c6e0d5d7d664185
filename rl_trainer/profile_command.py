"""`omnigym profile`: pass rate, tokens and truncation of every task, for a curriculum. Resumable after kill -9 at any moment.

Of a configuration (`--config`): exactly the tasks, the model, the settings and the sampling of its run. Of a run (`--again`): with its
best checkpoint; the resumed run goes on with a new plan. Of task files (`--tasks`): any model, also one behind a URL.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gym_servers.checkpoints import checkpoint_digest, resolve_model
from gym_servers.commands.collection import FailureBudget, Stage, is_url
from gym_servers.commands.folders import Folders
from gym_servers.commands.options import (
    Concurrency,
    Engine,
    MaxFailures,
    MaxTokens,
    ModelName,
    NoProgressSeconds,
    Retries,
    Settings,
    Temperature,
    sampling_of,
)
from gym_servers.commands.rollout import progress_bar
from gym_servers.protocol import OmnigymError, Rollout, RowError
from gym_servers.rows import TaskNames, parse_line, read_lines
from rl_trainer.config import ConfigError, RunConfig, load_config

if TYPE_CHECKING:
    from rl_trainer.profiling import NamedTask, Outcome, Profiler

Row = dict[str, Any]
STATE_SECONDS = 600.0
"""A server may have to read its whole checkpoint to say its digest."""


@dataclass
class TaskFiles:
    """The rows of task files, read lazily. files: (environment, path); environment None: each row says its own."""

    files: list[tuple[str | None, Path]]
    known: list[str] = field(default_factory=list)
    """Environments that `--env` names; none: any that is installed."""

    @classmethod
    def parse(cls, given: Sequence[str], env: Sequence[str]) -> TaskFiles:
        """`NAME=FILE` or `FILE` each; with a single `--env` a plain file is of that one. Raises OmnigymError."""
        known = [name.partition("=")[0] for name in env]
        files: list[tuple[str | None, Path]] = []
        for text in given:
            name, equals, path = text.partition("=")
            if equals and not Path(text).exists():
                files.append((name, Path(path)))
            else:
                files.append((known[0] if len(known) == 1 else None, Path(text)))
        named = {name for name, _ in files if name is not None}
        if known and not named <= set(known):
            raise OmnigymError(
                f"--tasks for '{sorted(named - set(known))[0]}', which no --env names; there are {known}"
            )
        return cls(files, known)

    def rows(self) -> Iterator[tuple[str, str, Row]]:
        """(environment, where, row). Raises RowError."""
        for named, path in self.files:
            for where, line in read_lines(path):
                row = parse_line(line, where)
                agent = row.get("agent_ref")
                name = named or row.get("environment") or (agent.get("name") if isinstance(agent, dict) else None)
                if not isinstance(name, str):
                    raise RowError(
                        f"{where}: no environment: the row has neither 'environment' nor 'agent_ref.name'; give --tasks NAME={path}"
                    )
                if self.known and name not in self.known:
                    raise RowError(f"{where}: environment '{name}', which no --env names; there are {self.known}")
                yield name, where, row

    def environments(self) -> list[str]:
        """Those of all rows, in their order."""
        if all(name is not None for name, _ in self.files):
            return list(dict.fromkeys(str(name) for name, _ in self.files))
        return list(dict.fromkeys(name for name, _, _ in self.rows()))

    def tasks(self, check: Callable[[str, Row], None] | None = None) -> Iterator[NamedTask]:
        """All tasks, ids as in a run. Raises RowError, also of `check`."""
        names: dict[str, TaskNames] = {}
        for name, where, row in self.rows():
            if check is not None:
                try:
                    check(name, row)
                except RowError as error:
                    raise RowError(f"{where}: {error}") from None
            yield name, names.setdefault(name, TaskNames()).name(where, row), row


def served_digest(url: str, token: str) -> str:
    """What the model server at `url` says of its weights; "" where it cannot."""
    request = urllib.request.Request(f"{url.rstrip('/').removesuffix('/v1')}/admin/weights")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=STATE_SECONDS) as reply:
            return str(json.loads(reply.read()).get("digest", ""))
    except urllib.error.HTTPError as error:
        if error.code in (404, 405, 501):
            return ""
        hint = ": is OMNIGYM_TOKEN its token?" if error.code in (401, 403) else ""
        raise OmnigymError(f"the model server at {url} answers {error.code} to what its weights are{hint}") from None
    except (OSError, ValueError) as error:
        raise OmnigymError(f"the model server at {url} does not say which weights it has: {error}") from None


@contextmanager
def shown(total: int, what: str) -> Iterator[Callable[[Rollout], None]]:
    """A bar of `total` rollouts, with the time left and the mean reward so far; call it with each that ended."""
    rewards, scored, failed = 0.0, 0, 0
    with progress_bar() as progress:
        bar = progress.add_task(f"profile {what}", total=total, note="")

        def done(rollout: Rollout) -> None:
            nonlocal rewards, scored, failed
            failed += rollout.failure is not None
            if rollout.reward is not None:
                rewards, scored = rewards + rollout.reward, scored + 1
            mean = f"reward {rewards / scored:.3f} " if scored else ""
            progress.update(bar, advance=1, note=f"{mean}failures {failed}")

        yield done


async def _sample(stage: Stage, profiler: Profiler, files: TaskFiles, total: int, sampling: Row, options: Row) -> None:
    budget = FailureBudget(options["max_failures"])
    collector = stage.collector(sampling, options["retries"], options["no_progress_seconds"])
    with shown(total, ", ".join(stage.names)) as done:
        async for rollout in stage.rollouts(collector, profiler.requests(files.tasks())):
            profiler.add(rollout)
            done(rollout)
            budget.add(rollout)


def profile_files(
    files: TaskFiles, env: list[str], model: str, out: Path, n: int, weights: str | None, sampling: Row, options: Row
) -> Outcome:
    """A profile of task files."""
    from rl_trainer.profiling import Profiler

    names = files.environments()
    started = [name for name in names if name not in files.known]
    with Stage(
        [*env, *started], model, options["concurrency"], options["engine"], options["seed"], options["set"]
    ) as stage:
        digest = checkpoint_digest(Path(stage.model)) if not is_url(model) else served_digest(model, stage.token)
        if not (digest or weights):
            raise OmnigymError(f"the server at {model} does not say which weights it has: name them with --weights")
        checks = {name: stage.row_check(name) for name in stage.names}

        def check(name: str, row: Row) -> None:
            if (checked := checks.get(name)) is not None:
                checked(row)

        found_with: dict[str, Any] = {"weights": digest or weights, "sampling": sampling, "settings": stage.settings}
        if not is_url(model):
            found_with["engine"] = {key: stage.engine.get(key) for key in ("dtype", "max_model_len")}
        with Profiler(out, found_with, n, options["seed"]) as profiler:
            left = sum(1 for _ in profiler.pending(files.tasks(check)))
            if left:
                asyncio.run(_sample(stage, profiler, files, left * n, sampling, options))
            return profiler.publish()


def profile_run(config: RunConfig, model: Path, out: Path, n: int) -> Outcome:
    """A profile of the tasks that a run of `config` would have, with `model` in the run's engine."""
    from rl_trainer.commands import load_tasks
    from rl_trainer.profiling import Profiler, collect_profile, made_with
    from rl_trainer.services import Services

    train, _, dropped = load_tasks(config, model)
    if dropped:
        typer.echo(f"{len(dropped)} prompts are too long and left out, such as {dropped[0]}", err=True)
    tasks = [(name, task.task_id, task.row) for name, members in train.items() for task in members]
    with Profiler(out, made_with(config, checkpoint_digest(model)), n, config.seed) as profiler:
        left = sum(1 for _ in profiler.pending(tasks))
        if not left:
            return profiler.publish()
        with tempfile.TemporaryDirectory(prefix="omnigym-profile-") as folder:
            with Services(config, Path(folder)) as services, shown(left * n, ", ".join(train)) as done:
                services.start_model(model)
                if config.placement.environments == "ray":
                    services.start_ray()
                services.start_environments()
                return collect_profile(profiler, tasks, services.generation(), config.failure_limit, done)


def profile_again(run: Path, n: int | None, overrides: Sequence[str]) -> tuple[Path, Outcome]:
    """A profile of a run's tasks with its best checkpoint (else its last), for a new plan from the step at which it goes on. overrides: those
    with which it will be resumed, such as steps=50 of a run that is finished."""
    from rl_trainer.checkpoint import best_checkpoint, export_checkpoint
    from rl_trainer.store import RunStore, step_label

    store = RunStore.open(run)
    store.lock()
    config = load_config(store.folder / "config.yaml", overrides)
    found = best_checkpoint(store.checkpoints)
    if found is None:
        raise OmnigymError(f"{run} has no checkpoint yet: profile its configuration with --config")
    step = next(step for step in range(config.steps + 1) if not store.committed(step_label(step)))
    if step == config.steps:
        raise OmnigymError(
            f"{run} has done all its {step} steps: no plan is left to be made. For a longer run give steps=N, also when it is resumed"
        )
    chosen, checkpoint = found
    typer.echo(f"the checkpoint of {chosen} steps, for a new plan from step {step}", err=True)
    out = store.profile_path(step)
    with tempfile.TemporaryDirectory(prefix="omnigym-profile-") as folder:
        model = export_checkpoint(checkpoint, resolve_model(config.model), Path(folder) / "model", config.engine.dtype)
        return out, profile_run(config, model, out, n or config.curriculum.samples)


def profile(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value on top of --config or --again, such as curriculum.samples=16; more files of --tasks."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A run's YAML file: its tasks, model, settings and sampling.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="A run folder: its tasks once more, with its best checkpoint.")
    ] = None,
    tasks: Annotated[
        list[str],
        typer.Option(
            help="JSONL task rows, or NAME=FILE; a row's environment is 'environment', else 'agent_ref.name'."
        ),
    ] = [],  # noqa: B006
    env: Annotated[
        list[str], typer.Option(help="With --tasks: environment, started here; or NAME=URL. May be repeated.")
    ] = [],  # noqa: B006
    model: Annotated[
        str | None, typer.Option(help="With --tasks: checkpoint folder, a name got by `model get`, or a server's URL.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file; with --config `curriculum.profile` where absent.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Rollouts of each task: curriculum.samples, or 8, where absent.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Names the weights behind a URL, where its server cannot.")
    ] = None,
    concurrency: Concurrency = 32,
    retries: Retries = 2,
    max_failures: MaxFailures = 0.05,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 1024,
    seed: Annotated[int, typer.Option(help="Every rollout's sampling seed follows from it.")] = 0,
    model_name: ModelName = None,
    engine: Engine = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    no_progress_seconds: NoProgressSeconds = 1800.0,
    path: Folders = [],  # noqa: B006
) -> None:
    """Profile tasks: pass rate with its standard error, mean tokens and truncation, into a parquet file; run it again to go on after
    a kill. With --config or --again everything comes from the run's configuration; the options after --weights are of --tasks."""
    if sum((config is not None, again is not None, bool(tasks))) != 1:
        raise OmnigymError(
            "give one of --config (a run's YAML), --again (a run folder) and --tasks (files with --model)"
        )
    if (model is not None or env or weights is not None) and not tasks:
        raise OmnigymError("--model, --env and --weights go with --tasks: --config and --again have their own")
    if tasks and overrides:  # a shell's `--tasks *.jsonl`
        absent = [text for text in overrides if not Path(text.rpartition("=")[2]).is_file()]
        if absent:
            raise OmnigymError(f"'{absent[0]}': no such task file, and key=value goes with --config or --again")
        tasks = [*tasks, *overrides]
    if again is not None:
        if out is not None:
            raise OmnigymError("--again writes into the run folder: leave --out out")
        out, outcome = profile_again(again, n, overrides or [])
    elif config is not None:
        chosen = load_config(config, overrides or [])
        out = out or chosen.curriculum.profile
        if out is None:
            raise ConfigError(f"{config}: no curriculum.profile: set it, or give --out")
        outcome = profile_run(chosen, resolve_model(chosen.model), out, n or chosen.curriculum.samples)
    else:
        if model is None or out is None:
            raise OmnigymError("--tasks needs --model and --out")
        sampling = sampling_of(temperature, max_tokens, model_name)
        options = {
            "concurrency": concurrency,
            "retries": retries,
            "max_failures": max_failures,
            "seed": seed,
            "engine": engine,
            "set": settings,
            "no_progress_seconds": no_progress_seconds,
        }
        files = TaskFiles.parse(tasks, env)
        outcome = profile_files(files, env, model, out, n or 8, weights, sampling, options)
    typer.echo(f"{outcome.describe()}\n{out}", err=True)


def register(app: typer.Typer) -> None:
    """Add `omnigym profile`."""
    app.command("profile")(profile)
