"""Environments by name: entry points of the group `omnigym.environments`, each `module:EnvironmentClass`.

An environment is found where its package is installed, or where the variable OMNIGYM_PATH (or `--path`, which adds to it) names the
folder of a project: its pyproject.toml declares the same entry point, and its modules are imported from that folder. Servers and
workers are processes of their own that load environments by name: they inherit the variable.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import tomllib
import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gym_servers.environment import Environment
from gym_servers.protocol import OmnigymError

GROUP = "omnigym.environments"
PATH_VARIABLE = "OMNIGYM_PATH"


class UnknownEnvironment(OmnigymError):
    """No environment of that name is installed."""


def path_folders() -> list[Path]:
    """The folders that OMNIGYM_PATH names."""
    return [Path(part).resolve() for part in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if part]


def add_folder(folder: Path) -> Path:
    """Add a project's folder to OMNIGYM_PATH, for this process and those that it starts; the folder, absolute.

    Raises OmnigymError where there is no such folder, or it declares no environment.
    """
    folder = folder.resolve()
    declared(folder)
    known = path_folders()
    if folder not in known:
        os.environ[PATH_VARIABLE] = os.pathsep.join(map(str, [*known, folder]))
    return folder


@cache
def declared(folder: Path) -> tuple[EntryPoint, ...]:
    """The environments that the pyproject.toml of `folder` declares, at least one. Raises OmnigymError."""
    project = folder / "pyproject.toml"
    if not folder.is_dir():
        raise OmnigymError(f"no folder '{folder}': --path and {PATH_VARIABLE} take folders that exist")
    if not project.is_file():
        raise OmnigymError(
            f"'{folder}' is no environment's folder: it has no pyproject.toml (`omnigym env new` makes one)"
        )
    try:
        points = tomllib.loads(project.read_text()).get("project", {}).get("entry-points", {}).get(GROUP, {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise OmnigymError(f"'{project}' cannot be read: {error}") from None
    if not isinstance(points, dict) or not points:
        raise OmnigymError(
            f'\'{project}\' declares no environment: it needs [project.entry-points."{GROUP}"] with NAME = "module:Class"'
        )
    for name, value in points.items():
        if not isinstance(value, str) or EntryPoint.pattern.match(value) is None or ":" not in value:
            raise OmnigymError(f"'{project}': environment '{name}' = {value!r} must be \"module:Class\"")
    return tuple(EntryPoint(name, value, GROUP) for name, value in points.items())


def _points() -> dict[str, tuple[EntryPoint, Path | None]]:
    """Entry point and, where it is not an installed one, folder of every environment. Raises OmnigymError for a name
    that stands for two."""
    found: dict[str, tuple[EntryPoint, Path | None]] = {
        point.name: (point, None) for point in entry_points(group=GROUP)
    }
    for folder in path_folders():
        for point in declared(folder):
            other, where = found.get(point.name, (point, folder))
            if other.value != point.value or where not in (None, folder):
                where_said = f"in '{where}'" if where else "of an installed package"
                raise OmnigymError(
                    f"two environments are called '{point.name}': {point.value} in '{folder}', and {other.value} "
                    f"{where_said}; rename one"
                )
            found[point.name] = point, folder
    return found


def environment_names() -> list[str]:
    """Names of all environments that can be loaded, sorted."""
    return sorted(_points())


def _load(point: EntryPoint, folder: Path | None) -> Any:
    """What the entry point names. Raises OmnigymError that says at which line of `folder` the import failed."""
    if folder is None:
        return point.load()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: nothing of it stands before what is installed
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(point.module)
    except Exception as error:  # whatever it is, it is the author's to see
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
        at = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(folder)
        if isinstance(error, SyntaxError) and error.filename:
            at = f"{error.filename}:{error.lineno}"
        raise OmnigymError(
            f"environment '{point.name}' ({point.value}) cannot be imported: {at}: {type(error).__name__}: {error}"
        ) from None
    if module.__file__ is None or not Path(module.__file__).resolve().is_relative_to(folder):
        raise OmnigymError(
            f"environment '{point.name}': module '{point.module}' is another one, at '{module.__file__}', not in "
            f"'{folder}'; rename the package in the folder"
        )
    loaded: Any = module
    for part in point.attr.split("."):
        loaded = getattr(loaded, part, None)
        if loaded is None:
            raise OmnigymError(f"environment '{point.name}': '{module.__file__}' has no '{point.attr}'")
    return loaded


@cache
def environment_class(name: str) -> type[Environment]:
    """The class of environment `name`. Raises UnknownEnvironment that names the nearest right one."""
    points = _points()
    if name in points:
        point, folder = points[name]
        loaded = _load(point, folder)
        if not (isinstance(loaded, type) and issubclass(loaded, Environment)):
            raise OmnigymError(f"entry point '{name}' = {point.value} is not an Environment class")
        if getattr(loaded, "name", None) != name:
            raise OmnigymError(
                f"entry point '{name}' = {point.value}: the class calls itself '{getattr(loaded, 'name', '')}'; one name for both"
            )
        return loaded
    names = environment_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise UnknownEnvironment(f"unknown environment '{name}'{hint} Installed: {', '.join(names) or 'none'}")


def about(cls: type[Environment]) -> dict[str, Any]:
    """The environment.yaml beside a class: `description`, `settings`. Raises OmnigymError where it is not such a file."""
    path = cls.folder() / "environment.yaml"
    try:
        read = (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise OmnigymError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(read, dict) or not isinstance(read.get("settings") or {}, dict):
        raise OmnigymError(f"{path}: must have the keys 'description' and 'settings'")
    return read


def load_environment(name: str, overrides: dict[str, Any] | None = None) -> Environment:
    """Environment `name` with the settings of its environment.yaml, `overrides` on top."""
    cls = environment_class(name)
    values = {**(about(cls).get("settings") or {}), **(overrides or {})}
    try:
        return cls(cls.settings_type.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(cls.settings_type.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
        raise OmnigymError(f"environment '{name}': setting '{key}': {first['msg']}{hint}") from None
