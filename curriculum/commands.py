"""`omnigym curriculum plan`: what each batch of a run will look like, before any of it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
import yaml
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console

from curriculum.options import CurriculumConfig, CurriculumError, CurriculumOptions, Order
from curriculum.page import build_page, difficulty_table, domain_table, notes
from curriculum.plan import Planner
from curriculum.profile import read_profile
from curriculum.summary import summarise
from gym_servers.rows import whole_file


class PlannedRun(BaseModel):
    """The keys of a run's configuration that its plan depends on, with the run's defaults; the trainer checks the others."""

    steps: int = Field(ge=1)
    tasks_per_step: int = Field(default=6, ge=1)
    mixture: dict[str, float]
    seed: int = 0
    sampler: Order | None = None
    curriculum: CurriculumConfig = CurriculumConfig()


def read_run(path: Path) -> PlannedRun:
    """Raises CurriculumError, which names the file and the key."""
    if not path.is_file():
        raise CurriculumError(f"no configuration file '{path}'")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CurriculumError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise CurriculumError(f"{path}: expected keys and values, found {type(tree).__name__}")
    try:
        return PlannedRun.model_validate(tree)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "missing":
                problems.append(f"key '{key}' is required and absent")
            elif problem["type"] == "extra_forbidden":
                known = sorted(CurriculumConfig.model_fields)
                problems.append(f"unknown key '{key}'; the keys of curriculum are {known}")
            else:
                problems.append(f"key '{key}': {problem['msg']}, found {problem['input']!r}")
        raise CurriculumError(f"{path}: {'; '.join(problems)}") from None


def plan(
    config: Annotated[Path, typer.Option(help="The run's YAML: steps, tasks_per_step, mixture, seed, curriculum.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
    profile: Annotated[Path | None, typer.Option(help="What `omnigym profile` wrote; else curriculum.profile.")] = None,
    json: Annotated[Path | None, typer.Option(help="The same figures as JSON.")] = None,
) -> None:
    """Show what each batch of a run will look like: difficulty, tasks per domain, what runs dry, what is never seen."""
    run = read_run(config)
    source = profile or run.curriculum.profile
    if source is None:
        raise CurriculumError(f"{config} names no curriculum.profile: give --profile, which `omnigym profile` makes")
    options = CurriculumOptions(
        ratios=run.mixture,
        batch_size=run.tasks_per_step,
        steps=run.steps,
        seed=run.seed,
        order=run.sampler or "gaussian",
        **run.curriculum.model_dump(include={"start_mean", "end_mean", "sigma", "hold_out_unsolved"}),
    )
    summary = summarise(Planner(read_profile(source), options))
    with whole_file(out) as file:
        file.write(build_page(summary, str(source), str(config)).encode())
    if json is not None:
        with whole_file(json) as file:
            file.write(orjson.dumps(summary.to_json(), option=orjson.OPT_INDENT_2))
    console = Console()
    console.print(
        f"{run.steps} steps of {run.tasks_per_step} tasks, order {options.order}, seed {run.seed}", highlight=False
    )
    console.print(domain_table(summary), difficulty_table(summary))
    for note in notes(summary):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if run.sampler is None:
        console.print(
            f"{config} names no sampler: this is what sampler: gaussian would do.", markup=False, soft_wrap=True
        )
    console.print(f"plan in {out}", markup=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add `omnigym curriculum`."""
    group = typer.Typer(help="The difficulty curriculum.", no_args_is_help=True)
    group.command("plan")(plan)
    app.add_typer(group, name="curriculum")
