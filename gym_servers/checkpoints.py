"""Where checkpoints are: folders by path, and the models that `omnigym model get` keeps in the user's cache."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path

import orjson

from gym_servers.protocol import OmnigymError

HASH_BYTES = 1 << 24
"""Read at a time, of a tensor that is hashed."""

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


def checkpoint_digest(folder: Path) -> str:
    """The digest of a checkpoint's weights (docs/architecture.md): sha256 over the sorted lines `name:sha256(tensor bytes)\n`, a tied
    lm_head left out. In the engine's dtype it is what the trainer sends and the engine receives. Raises OmnigymError."""
    tied = orjson.loads((folder / "config.json").read_bytes()).get("tie_word_embeddings", False)
    lines: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = orjson.loads(file.read(min(size, path.stat().st_size)))
            except orjson.JSONDecodeError as error:
                raise OmnigymError(f"'{path}' is no safetensors file ({error}): get the checkpoint again") from None
            for name, entry in header.items():
                if name == "__metadata__" or (tied and name == "lm_head.weight"):
                    continue
                start, end = entry["data_offsets"]
                file.seek(8 + size + start)
                digest, left = hashlib.sha256(), end - start
                while left:
                    chunk = file.read(min(left, HASH_BYTES))
                    if not chunk:
                        raise OmnigymError(f"'{path}' ends in tensor '{name}': get the checkpoint again")
                    digest.update(chunk)
                    left -= len(chunk)
                lines[name] = digest.hexdigest()
    if not lines:
        raise OmnigymError(f"'{folder}' holds no .safetensors file, so its weights cannot be told from others")
    return hashlib.sha256("".join(f"{name}:{lines[name]}\n" for name in sorted(lines)).encode()).hexdigest()
