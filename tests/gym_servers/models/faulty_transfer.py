"""vLLM's worker with the two faults of pitfall 35: it takes a payload with a tensor left out, and leaves a tied lm_head packed.

Imported by name in the worker's process, where it breaks gym_servers.models.vllm_transfer.
"""

from __future__ import annotations

from typing import Any

from gym_servers.models import vllm_transfer


class WorkerExtension(vllm_transfer.WorkerExtension):
    """What vLLM mixes into its worker."""


def _check(self: Any, tensors: dict[str, Any], digest: str) -> None:
    if vllm_transfer.digest_of(tensors) != digest:
        self.report["refused"] = "digest"


vllm_transfer.ShmEngine._check = _check  # type: ignore[method-assign]
vllm_transfer.VocabParallelEmbedding = type("NoLayer", (), {})
