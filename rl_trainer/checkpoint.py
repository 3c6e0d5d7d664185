"""Atomic, complete checkpoints, and export to a Hugging Face folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gym_servers.protocol import OmnigymError

STEP_FOLDER = re.compile(r"step_(\d{6,})")
BEST = "best.json"


class CheckpointError(OmnigymError):
    """A checkpoint could not be written or read; says which and what to do."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    folder: str | Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    *,
    sampler: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/step_NNNNNN`: weights (as given, float32 master), optimizer, RNG, sampler, configuration.

    Everything is written beside its place, fsynced and renamed: a checkpoint is there whole or not at all, and
    earlier ones are not touched.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    target = folder / f"step_{step:06d}"
    temporary = folder / f".step_{step:06d}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(plain, temporary / "model.safetensors", metadata={"format": "pt"})
        torch.save({"optimizer": optimizer, "rng": torch.get_rng_state()}, temporary / "optimizer.pt")
        state = {"step": step, "sampler": sampler, "config": config, "extra": extra}
        (temporary / "state.json").write_text(json.dumps(state, default=str))
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if target.exists():
            old = folder / f".{target.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
        _sync(folder)
    # torch and safetensors report a full disk as errors of their own
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise CheckpointError(
            f"could not write the checkpoint of step {step} to {target}: {error}. {free / 2**20:.0f} MiB are free there; "
            "earlier checkpoints are intact. Free some space or set another run folder, then resume."
        ) from error
    return target


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints, oldest first."""
    folder = Path(folder)
    if not folder.exists():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := STEP_FOLDER.fullmatch(path.name))]
    return sorted(found)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process left of checkpoints it was writing; the last whole one of a step stays."""
    for path in Path(folder).glob(".step_*.old"):  # killed while it was replaced
        target = path.with_name(path.name[1:].removesuffix(".old"))
        if not target.exists():
            path.rename(target)
    for path in Path(folder).glob(".step_*"):
        shutil.rmtree(path)


def read_state(path: Path) -> dict[str, Any]:
    """step, sampler, config, extra: all but the tensors. Raises CheckpointError."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        return state
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"could not read the checkpoint {path}: {error}. Delete it to resume from the one before.")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """weights, optimizer, rng, step, sampler, config, extra."""
    from safetensors.torch import load_file

    path = Path(path)
    state = read_state(path)
    try:
        # Written by this program into the user's own run folder; weights_only still refuses arbitrary objects.
        saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        return {"weights": load_file(path / "model.safetensors"), **saved, **state}
    except Exception as error:
        raise _unreadable(path, error) from error


def mark_best(folder: str | Path, step: int, score: float) -> bool:
    """Remember `step` as the best if its score beats the one on record; True if it does."""
    record = Path(folder) / BEST
    if record.exists() and json.loads(record.read_text())["score"] >= score:
        return False
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step, "score": score}))
    temporary.replace(record)
    return True


def best_step(folder: str | Path) -> int | None:
    """The step marked best, if any."""
    record = Path(folder) / BEST
    return int(json.loads(record.read_text())["step"]) if record.exists() else None


def best_checkpoint(folder: str | Path) -> tuple[int, Path] | None:
    """(step, path) of the best checkpoint, else, where none is marked or that one is gone, of the last."""
    found = list_checkpoints(folder)
    best = best_step(folder)
    for step, path in found:
        if step == best:
            return step, path
    return found[-1] if found else None


def prune_checkpoints(folder: str | Path, keep_last: int) -> list[Path]:
    """Remove all but the last `keep_last` (at least 1) and the best; returns what was removed."""
    best = best_step(folder)
    removed = []
    for step, path in list_checkpoints(folder)[: -max(1, keep_last)]:
        if step != best:
            shutil.rmtree(path)
            removed.append(path)
    return removed


def export_checkpoint(path: str | Path, base_model: str | Path, out: str | Path, dtype: str = "bfloat16") -> Path:
    """Hugging Face folder: the checkpoint's weights with base_model's configuration, tokenizer, generation settings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(base_model), dtype=torch.float32)
    load_into(model, load_checkpoint(path)["weights"])
    model.to(getattr(torch, dtype)).save_pretrained(out)
    AutoTokenizer.from_pretrained(str(base_model)).save_pretrained(out)
    return Path(out)


def load_into(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load named tensors; every one must fit, and only a tied lm_head may be missing."""
    report = model.load_state_dict(dict(weights), strict=False)
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    missing = [name for name in report.missing_keys if not (tied and name == "lm_head.weight")]
    if missing or report.unexpected_keys:
        raise CheckpointError(
            f"the checkpoint does not fit the model: missing {missing[:5]}, unexpected {report.unexpected_keys[:5]}"
        )
