"""Environments by name: entry points of the group `omnigym.environments`, each `module:EnvironmentClass`."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import yaml
from pydantic import ValidationError

from gym_servers.environment import Environment
from gym_servers.protocol import OmnigymError

GROUP = "omnigym.environments"


class UnknownEnvironment(OmnigymError):
    """No environment of that name is installed."""


def environment_names() -> list[str]:
    """Names of all installed environments, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


@cache
def environment_class(name: str) -> type[Environment]:
    """The class of environment `name`. Raises UnknownEnvironment that names the nearest right one."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded = point.load()
            if not (isinstance(loaded, type) and issubclass(loaded, Environment)):
                raise OmnigymError(f"entry point '{name}' = {point.value} is not an Environment class")
            return loaded
    names = environment_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise UnknownEnvironment(f"unknown environment '{name}'{hint} Installed: {', '.join(names) or 'none'}")


def load_environment(name: str, overrides: dict[str, Any] | None = None) -> Environment:
    """Environment `name` with the settings of its environment.yaml, `overrides` on top."""
    cls = environment_class(name)
    path = cls.folder() / "environment.yaml"
    values: dict[str, Any] = {}
    if path.is_file():
        values = dict((yaml.safe_load(path.read_text()) or {}).get("settings") or {})
    values.update(overrides or {})
    try:
        return cls(cls.settings_type.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(cls.settings_type.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
        raise OmnigymError(f"environment '{name}': setting '{key}': {first['msg']}{hint}") from None
