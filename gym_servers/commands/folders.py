"""The option `--path`, which every command that loads environments by name has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gym_servers.registry import PATH_VARIABLE, add_folder


def _add(folders: list[Path]) -> list[Path]:
    return [add_folder(folder) for folder in folders]


Folders = Annotated[
    list[Path],
    typer.Option(
        "--path",
        callback=_add,
        is_eager=True,
        help=f"Folder of an environment's project that is not installed; may be repeated. Also: {PATH_VARIABLE}.",
    ),
]
"""A parameter of this type need not be read: parsing it makes the folders known."""
