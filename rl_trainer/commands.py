"""`omnigym train`, `omnigym export`, `omnigym report`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gym_servers.checkpoints import resolve_model
from gym_servers.protocol import OmnigymError
from rl_trainer.config import ConfigError, RunConfig, load_config
from rl_trainer.interrupt import INTERRUPTS
from rl_trainer.options import PolicyOptions
from rl_trainer.store import RunStore, write_whole
from rl_trainer.tasks import LoadedTask, drop_long_prompts, load_heldout, load_rows, prompt_counter

if TYPE_CHECKING:  # numpy is not loaded for --help
    from rl_trainer.sampler import Sampler


def load_tasks(config: RunConfig, model: Path) -> tuple[dict[str, list[LoadedTask]], list[LoadedTask], list[str]]:
    """Training tasks per environment, held-out tasks, and the names of tasks dropped because their prompt is too long."""
    count = prompt_counter(model)
    dropped: list[str] = []

    def fitting(tasks: list[LoadedTask]) -> list[LoadedTask]:
        kept, long = drop_long_prompts(tasks, count, config.prompt_limit)
        dropped.extend(long)
        return kept

    train = {name: fitting(load_rows(config, name)) for name in config.environments}
    empty = [name for name, tasks in train.items() if not tasks]
    if empty:
        raise ConfigError(
            f"environment '{empty[0]}': every prompt is longer than {config.prompt_limit} tokens "
            "(engine.max_model_len - sampling.max_tokens)"
        )
    wanted = config.environments if config.val.tasks else []
    heldout = [task for name in wanted for task in fitting(load_heldout(config, name))]
    return train, heldout, dropped


def print_plan(console: Console, config: RunConfig, model: Path) -> None:
    """What the run would do: nothing is started or written."""
    prepared = prepare(config, model)
    sampler, dropped, heldout = prepared.sampler, prepared.dropped, prepared.heldout
    size = config.tasks_per_step * config.group_size
    console.print(f"model {config.model} at {model}")
    for name, members in sampler.tasks.items():
        console.print(f"environment {name}: {len(members)} training tasks")
    if dropped:
        console.print(
            f"{len(dropped)} prompts over {config.prompt_limit} tokens are left out: {', '.join(dropped[:10])}"
        )
    if sampler.left_out:
        console.print(sampler.left_out)
    console.print(
        f"{config.steps} steps of {config.tasks_per_step} tasks x {config.group_size} rollouts = {size} a step, "
        f"{config.steps * size} in all, up to {config.sampling.max_tokens} tokens each"
    )
    console.print(f"held-out: {len(heldout)} tasks x {config.val.samples} samples, before and after")
    for step in range(min(3, config.steps)):
        batch = sampler.next(step)
        names = ", ".join(f"{p.task.environment}/{p.task.task_id}" for p in batch)
        found = [sampler.plan(step).pass_rate(p.task.environment, p.task.task_id) for p in batch]
        rates = [rate for rate in found if rate is not None]
        mean = f" (profile's pass rate {sum(rates) / len(rates):.2f})" if rates else ""
        console.print(f"step {step}{mean}: {names}", soft_wrap=True)
    console.print(config.to_yaml(), markup=False)


@dataclass(frozen=True)
class Prepared:
    """What a run needs besides servers. dropped: names of tasks whose prompt is too long."""

    sampler: Sampler
    heldout: list[LoadedTask]
    dropped: list[str]
    options: PolicyOptions


def prepare(config: RunConfig, model: Path, store: RunStore | None = None, samples: bool = True) -> Prepared:
    """All of a configuration that can be known to be wrong before a folder is made or a server started. store: of a run that is
    resumed, which the configuration must be able to go on with. samples: whether the run samples rollouts. Raises OmnigymError."""
    from rl_trainer.checkpoint import list_checkpoints, read_state
    from rl_trainer.loop import go_on
    from rl_trainer.metrics import wandb_package
    from rl_trainer.sampler import make_sampler
    from rl_trainer.services import environments_token

    if config.wandb:
        wandb_package()
    if samples and config.local_environments and config.placement.environments == "url":
        environments_token(config.placement)
    if config.policy.device == "cuda" and not config.ray.enabled:  # with Ray the workers may be on other machines
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("policy.device: cuda, and torch sees no CUDA device here; set policy.device=cpu")
    reference = resolve_model(config.policy.reference) if config.policy.reference else None
    tasks, heldout, dropped = load_tasks(config, model)
    sampler = make_sampler(config, tasks, model, store)
    for done, path in list_checkpoints(store.checkpoints)[-1:] if store is not None else ():
        go_on(config, sampler, done, read_state(path))
    return Prepared(sampler, heldout, dropped, config.policy_options(model, reference))


def execute(
    config: RunConfig,
    model: Path,
    store: RunStore,
    prepared: Prepared,
    console: Console,
    mode: str,
    source: RunStore | None,
) -> dict[str, Any] | None:
    """Start what the run needs, run it, stop it. Returns the summary where there were two evaluations."""
    from rl_trainer.actors import Policy, RayPolicy, local_policy
    from rl_trainer.evaluation import summarize
    from rl_trainer.loop import Run
    from rl_trainer.metrics import MetricsLog, PeakMemory
    from rl_trainer.progress import Progress
    from rl_trainer.report import build_report, write_summary
    from rl_trainer.services import Services

    began, memory = time.monotonic(), PeakMemory()
    options, dropped = prepared.options, prepared.dropped
    with Services(config, store.folder) as services, Progress(config.steps, config.environments, console) as progress:
        for name in dropped:
            progress.note(f"prompt over {config.prompt_limit} tokens, left out: {name}")
        if left_out := prepared.sampler.left_out:
            progress.note(left_out)
        if source is None:
            services.start_model(model)
        if config.ray.enabled:
            services.start_ray()
        if source is None:
            services.start_environments()
        policy: Policy
        if config.ray.enabled:
            policy = RayPolicy(options, config.policy.workers, config.policy.step_seconds)
        else:
            policy = local_policy(options)
        log = MetricsLog(store, config.wandb)
        counters = {"prompts_dropped": float(len(dropped)), "server_restarts": 0.0}

        def restarted(text: str) -> None:
            counters["server_restarts"] += 1
            progress.note(text)

        run = Run(
            config,
            store,
            prepared.sampler,
            policy,
            services.generation(restarted) if source is None else None,
            log,
            progress,
            prepared.heldout,
            counters=counters,
        )
        try:
            result = None
            if source is not None:
                run.from_rollouts(source)
            elif mode == "rollouts":
                run.rollouts_only()
            else:
                result = run.train()
        finally:
            policy.close()
            log.close()
    summary = None
    peak = memory.close()
    if result is not None:
        summary = summarize(*result, seconds=time.monotonic() - began, peak_rss_mb=peak)
        write_summary(store, summary)
    build_report(store)
    return summary


def lasting_folder(runs_folder: Path) -> Path:
    """`runs_folder`, but never in the copy of the working directory that Ray makes for a job and deletes after it."""
    inside = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not runs_folder.is_absolute()
    return Path.home() / runs_folder if inside else runs_folder


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; see rl_trainer/configs/demo.yaml.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as optimizer.lr=1e-5.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    rollouts_only: Annotated[bool, typer.Option("--rollouts-only", help="Collect rollouts, train nothing.")] = False,
    from_rollouts: Annotated[
        Path | None, typer.Option(help="Train on the stored rollouts of this run folder; no servers are started.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, from its own configuration.")] = None,
) -> None:
    """Train a policy with GRPO on the environments of a configuration, or go on with a run that was stopped."""
    if resume is not None and config is not None and "=" in str(config):  # `--resume RUN a.b=c`
        config, overrides = None, [str(config), *(overrides or [])]
    if (config is None) == (resume is None):
        raise ConfigError("give a configuration file, or --resume RUN (a run folder), not both")
    if rollouts_only and from_rollouts is not None:
        raise ConfigError("--rollouts-only and --from-rollouts exclude each other")
    if resume is not None and from_rollouts is not None:
        raise ConfigError("--from-rollouts starts a new run: leave --resume out")
    if resume is not None and any(pair.partition("=")[0].strip() == "curriculum.profile" for pair in overrides or []):
        raise ConfigError("a run keeps the profile that it began with; `omnigym profile --again` makes it a new one")
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width))  # a log file is not 80 columns wide
    store = RunStore.open(resume) if resume is not None else None
    chosen = load_config(config if config is not None else resume / "config.yaml", overrides or [])  # type: ignore[operator]
    model = resolve_model(chosen.model)
    if dry_run:
        print_plan(console, chosen, model)
        return
    source = RunStore.open(from_rollouts) if from_rollouts is not None else None
    if store is not None:
        store.lock()
    prepared = prepare(chosen, model, store, samples=source is None)
    if store is None:
        store = RunStore.create(lasting_folder(chosen.runs_folder), chosen.name, chosen.to_yaml())
        store.lock()
    mode = "rollouts" if rollouts_only else "train" if source is None else "from rollouts"
    store.claim(mode)
    if chosen.curriculum.profile is not None:
        store.keep_profile(chosen.curriculum.profile)
    if overrides:
        write_whole(store.folder / "config.yaml", chosen.to_yaml().encode())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    console.print(f"run folder {store.folder}", highlight=False)
    try:
        with INTERRUPTS.installed():  # SIGTERM ends a run as Ctrl-C does: everything it started is stopped
            summary = execute(chosen, model, store, prepared, console, mode, source)
    except KeyboardInterrupt:
        again = f"Go on with: omnigym train --resume {store.folder}{' --rollouts-only' if rollouts_only else ''}"
        if from_rollouts is not None:
            again = "Start it again: training from stored rollouts has nothing to resume"
        raise OmnigymError(f"interrupted; everything is stopped. {again}") from None
    if summary is not None:
        from rl_trainer.evaluation import summary_table

        console.print(summary_table(summary))
        console.print(f"{summary['seconds']:.0f} s, {summary['peak_rss_mb']:.0f} MiB at the peak", highlight=False)
    console.print(f"report: {store.folder / 'report.html'}", highlight=False)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/export where absent.")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint by number of steps; the last where absent.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint with the best validation.")] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Write a checkpoint of a run as a Hugging Face folder, which transformers and vLLM load."""
    from rl_trainer.checkpoint import best_step, export_checkpoint, list_checkpoints

    if dtype not in ("bfloat16", "float32"):
        raise OmnigymError(f"--dtype '{dtype}': must be bfloat16 or float32")
    store = RunStore.open(run)
    found = dict(list_checkpoints(store.checkpoints))
    if not found:
        raise OmnigymError(f"{run} has no checkpoint yet")
    if best:
        step = best_step(store.checkpoints)
        if step is None:
            raise OmnigymError(f"{run} has no validation on record (val.every): leave --best out")
    wanted = max(found) if step is None else step
    if wanted not in found:
        raise OmnigymError(f"{run} has no checkpoint of {wanted} steps; there are: {', '.join(map(str, found))}")
    model = resolve_model(load_config(store.folder / "config.yaml").model)
    target = out or store.folder / "export"
    typer.echo(str(export_checkpoint(found[wanted], model, target, dtype)))


def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write report.html of a run: curves and example rollouts in one file."""
    from rl_trainer.report import build_report

    typer.echo(str(build_report(RunStore.open(run))))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("train")(train)
    app.command("export")(export)
    app.command("report")(report)
