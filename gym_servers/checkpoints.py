"""Where checkpoints are: folders by path, and the models that `omnigym model get` keeps in the user's cache."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from gym_servers.protocol import OmnigymError

MODELS = {"smollm2-135m": "SmolLM2-135M-Instruct, 135 M parameters, Apache-2.0 (98 MB download, 269 MB on disk)"}
"""What `omnigym model get` (rl_trainer/model_get.py) gets."""


def cached_model(name: str) -> Path:
    """Where model `name` is kept: under OMNIGYM_CACHE, else the user's cache."""
    root = os.environ.get("OMNIGYM_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnigym"
    return base / "models" / name


def near_model(name: str) -> str:
    """The end of an error about an unknown name."""
    near = difflib.get_close_matches(name, MODELS, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known to `omnigym model get`: {', '.join(MODELS)}"


def resolve_model(name_or_path: str) -> Path:
    """Folder of a checkpoint: a path that holds a config.json, or a name in the cache. Raises OmnigymError."""
    for path in (Path(name_or_path), cached_model(name_or_path)):
        if (path / "config.json").is_file():
            return path
    if name_or_path in MODELS:
        raise OmnigymError(f"model '{name_or_path}' is not on this machine: run `omnigym model get {name_or_path}`")
    if Path(name_or_path).exists():
        raise OmnigymError(f"model '{name_or_path}': the folder holds no config.json, so it is no checkpoint")
    raise OmnigymError(
        f"model '{name_or_path}' is neither a checkpoint folder nor a known name; {near_model(name_or_path)}"
    )
