"""Weights into vLLM on CPU: the backend "shm" of vLLM's weight-transfer interface, registered inside its worker process.

The trainer writes all tensors, with Hugging Face names and the engine's dtype, as one safetensors file in shared memory. Everything
is checked (manifest, digest) before the model is touched, inside the one `update_weights` call, so a refused payload leaves the
old weights serving; a failure after that means a restart. Three corrections of vLLM 0.32 on CPU, without which weights end
up wrong and no error says so: the base class synchronises an accelerator that is not there; expert weights keep a prepack of
the old ones; a tied lm_head keeps a packed copy of the old embedding.
Digest: sha256 over the sorted lines `name:sha256(tensor bytes)`, each with a newline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "shm"


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """Digest of named tensors, by the rule above."""
    lines = []
    for name in sorted(tensors):
        raw = tensors[name].detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        lines.append(f"{name}:{hashlib.sha256(raw).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass
class ShmInit(WeightTransferInitInfo):  # type: ignore[misc]
    """manifest: name -> [shape, dtype] of the whole checkpoint: what every update must bring."""

    manifest: dict[str, Any]


@dataclass
class ShmUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """path of a safetensors file on this host, and the digest of what it must hold."""

    path: str
    digest: str


class ShmEngine(WeightTransferEngine[ShmInit, ShmUpdate]):  # type: ignore[misc]
    """The worker's side."""

    init_info_cls, update_info_cls = ShmInit, ShmUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, info: ShmInit) -> None:
        self.manifest = info.manifest
        self.report: dict[str, Any] = {"digest": "", "updates": 0, "refused": ""}

    def start_weight_update(self) -> None:
        """Nothing is touched before the payload is verified."""

    def finish_weight_update(self) -> None:
        """Never raises here: a failure would refuse every later start."""

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def update_weights(self, info: Any) -> None:
        self.receive_weights(self.parse_update_info(info))

    def receive_weights(self, update: ShmUpdate) -> None:
        self.report["refused"] = ""
        with safe_open(update.path, "pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            self._check(tensors, update.digest)
            if self.report["refused"]:
                return
            self._load(tensors)
            del tensors
        self.report.update(digest=update.digest, updates=self.report["updates"] + 1)

    def _check(self, tensors: dict[str, torch.Tensor], digest: str) -> None:
        got = {name: [list(t.shape), str(t.dtype)] for name, t in tensors.items()}
        if got != self.manifest:
            wrong = sorted(
                name for name in got.keys() | self.manifest.keys() if got.get(name) != self.manifest.get(name)
            )
            self.report["refused"] = f"{len(wrong)} tensors are missing, new or of another shape or dtype: {wrong[:6]}"
            return
        found = digest_of(tensors)
        if found != digest:
            self.report["refused"] = f"digest is {found}, announced was {digest}"

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        wanted = {name for name, _ in self.model.named_parameters()}  # tied names once
        for module in self.model.modules():
            if isinstance(getattr(module, "quant_method", None), UnquantizedFusedMoEMethod):
                module.quant_method.moe_kernel = None  # else the reload keeps the prepack of the old experts
        initialize_layerwise_reload(self.model)
        loaded = set(self.model.load_weights(iter(tensors.items())) or ())
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, VocabParallelEmbedding):  # else a tied lm_head keeps the old packed embedding
                module.quant_method.process_weights_after_loading(module)
        if wanted - loaded:
            raise RuntimeError(f"not loaded: {sorted(wanted - loaded)[:6]}")


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, ShmEngine)


class WorkerExtension:
    """Mixed into vLLM's worker: importing this module there registers the backend."""

    weight_transfer_engine: Any

    def omnigym_report(self) -> dict[str, Any]:
        """digest, updates and refused of the last update."""
        return dict(self.weight_transfer_engine.report)
