"""Weights for the inference engine: checkpoint names, the engine's dtype, a digest, and the canary's comparison."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gym_servers.models.engine import FLOAT32_SUFFIXES

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def checkpoint_tensors(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Parameters and persistent buffers under their Hugging Face checkpoint names; a tied lm_head is left out."""
    tensors = dict(model.state_dict() if state is None else state)
    config: Any = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        tensors.pop("lm_head.weight", None)
    if getattr(model, "_weight_conversions", None):
        from transformers.core_model_loading import revert_weight_conversion

        tensors = revert_weight_conversion(model, tensors)
    return tensors


def cast_for_engine(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Detached, contiguous CPU copies in the engine's dtype; integers and FLOAT32_SUFFIXES keep theirs."""
    return {
        name: tensor.detach()
        .to("cpu", tensor.dtype if not tensor.is_floating_point() or name.endswith(FLOAT32_SUFFIXES) else dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def tensor_digest(tensor: Tensor) -> str:
    """sha256 hex of the tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor.detach().cpu().contiguous())).hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the sorted lines `name:sha256hex(bytes)`, each ended by a newline."""
    root = hashlib.sha256()
    for name in sorted(tensors):
        root.update(f"{name}:{tensor_digest(tensors[name])}\n".encode())
    return root.hexdigest()


def write_weights(tensors: Mapping[str, Tensor], path: str | Path) -> str:
    """Write a safetensors file atomically (temporary file, fsync, rename); returns the digest."""
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return weights_digest(tensors)


def export_checkpoint_weights(checkpoint: Path, path: Path, dtype: str) -> str:
    """Write a checkpoint's weights for the engine, as `PolicyWorker.export` wrote them when it was made; returns the digest."""
    from safetensors.torch import load_file

    return write_weights(cast_for_engine(load_file(checkpoint / "model.safetensors"), DTYPES[dtype]), path)


def mean_difference(mine: Sequence[Sequence[float]], engine: Sequence[Sequence[float]]) -> float:
    """Canary: mean |lp_trainer - lp_engine| over the tokens of the fixed sequences, both scored after the sync."""
    if [len(row) for row in mine] != [len(row) for row in engine]:
        raise ValueError(
            f"canary: the trainer scored {[len(r) for r in mine]} tokens, the engine {[len(r) for r in engine]}"
        )
    total = [abs(a - b) for left, right in zip(mine, engine, strict=True) for a, b in zip(left, right, strict=True)]
    if not total:
        raise ValueError("canary: nothing was scored")
    return sum(total) / len(total)
