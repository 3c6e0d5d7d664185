"""`omnigym env new NAME`: a small environment that works, in a folder of its own, to change into one's own.

The files are templates beside this package (gym_servers/templates): those at its top for every kind, and one folder a kind.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined

from gym_servers.protocol import OmnigymError
from gym_servers.registry import environment_names

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
KINDS = sorted(folder.name for folder in TEMPLATES.iterdir() if folder.is_dir())
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MOST_NAME_CHARS = 40


def check_name(name: str) -> None:
    """Raises OmnigymError where `name` can be no environment's, or is one's or a package's already."""
    if not _NAME.fullmatch(name) or len(name) > MOST_NAME_CHARS:
        raise OmnigymError(
            f"'{name}' is no name for an environment: lower-case letters, digits and '_' between them, "
            f"at most {MOST_NAME_CHARS}, such as my_env"
        )
    if keyword.iskeyword(name):
        raise OmnigymError(f"'{name}' is a word of Python's: choose another name")
    if name in environment_names():
        raise OmnigymError(f"there is an environment '{name}' already: choose another name")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        raise OmnigymError(f"there is a Python package '{name}' already ({spec.origin}): choose another name")


def write(name: str, kind: str, folder: Path) -> None:
    """The project `folder`, with the package `name` in it. Raises OmnigymError where something stands there."""
    if folder.exists():
        raise OmnigymError(f"'{folder}' exists: choose another name, or another folder with --into")
    templates = Templates(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    words = {"name": name, "class_name": "".join(part.capitalize() for part in name.split("_"))}
    package = folder / name
    targets = {
        "pyproject.toml.jinja": folder / "pyproject.toml",
        "test.py.jinja": folder / f"test_{name}.py",
        "__init__.py.jinja": package / "__init__.py",
    }
    for path in sorted((TEMPLATES / kind).iterdir()):
        targets[f"{kind}/{path.name}"] = package / path.name.removesuffix(".jinja")
    try:
        package.mkdir(parents=True)
        for template, target in targets.items():
            target.write_text(templates.get_template(template).render(words))
    except OSError as error:
        raise OmnigymError(
            f"cannot write '{folder}': {error.strerror}; choose a folder that you can write to"
        ) from None


def new(
    name: Annotated[str, typer.Argument(help="Of the environment and its package, such as my_env.")],
    kind: Annotated[str, typer.Option(help=f"What to begin from: {', '.join(KINDS)}.")] = "single_turn",
    into: Annotated[Path, typer.Option(help="Folder to make the project's folder in.")] = Path("."),
) -> None:
    """Write a small environment that works into ./NAME: verifier, server, settings, generator, cases, README, test."""
    if kind not in KINDS:
        raise OmnigymError(f"--kind '{kind}': must be {' or '.join(KINDS)}")
    check_name(name)
    folder = into / name
    write(name, kind, folder)
    typer.echo(f"{folder}: an environment of the kind {kind}. Next:")
    for command, why in (
        (f"python -m pytest {folder}", "its own test"),
        (f"omnigym env check {name} --path {folder}", "what is missing or suspicious"),
        (f"omnigym env generate {name} --path {folder} --n 3", "its tasks"),
        (f"pip install -e {folder}", "or keep giving --path"),
    ):
        typer.echo(f"  {command:<60}  # {why}")
    typer.echo(
        f"Then change {folder / name}: generator.py asks, verifier.py decides, cases.jsonl and probes() hold it to that."
    )
