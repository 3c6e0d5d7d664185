"""The engine vLLM, in this process's event loop; its worker is a process of its own that ends with this one.

Log-probabilities are of the distribution sampled from (`processed_logprobs`). The random stream is per request, so in float32 on CPU
the same seed gives the same text in any batch.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from gym_servers.base import Guard
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import (
    FLOAT32_SUFFIXES,
    EngineState,
    FinishReason,
    Generation,
    Sampling,
    Tokenizer,
    WeightsRefused,
)
from gym_servers.models.serving import ListenSettings, part_of, run
from gym_servers.models.transformers_tokenizer import CheckpointTokenizer
from gym_servers.protocol import OmnigymError

WHOLE_DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
"""safetensors' names and torch's, of what no sync casts."""

PAUSE_SECONDS = 60.0
"""No call is open when vLLM is told to pause, so it takes a moment only."""


class VllmSettings(BaseModel):
    """How to run vLLM. threads: OpenMP threads on CPU. kv_gib: KV cache in GiB (CPU)."""

    model_config = ConfigDict(extra="forbid")
    model: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    threads: int = 2
    kv_gib: int = 2
    seed: int = 0


def cpus_for(threads: int) -> list[int]:
    """Which of the CPUs that this process may use its OpenMP threads are bound to. Raises OmnigymError for too many threads."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise OmnigymError(
            f"threads {threads}: this process may use {len(allowed)} CPUs ({', '.join(map(str, allowed))}); "
            f"set threads to {len(allowed)} or fewer, or give the process more CPUs (taskset, cpuset)"
        )
    return allowed[:threads] if threads > 1 else allowed[-1:]


def on_cpu() -> bool:
    """Whether there is no GPU, so that vLLM computes on the CPU: then without graphs, which need a compiler and minutes to make."""
    import torch

    return not torch.cuda.is_available()


def set_environment(settings: VllmSettings) -> None:
    """vLLM reads these when it is imported; its worker inherits them. Raises OmnigymError."""
    os.environ.update(
        {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_gib),
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus_for(settings.threads))),
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
    )
    if on_cpu():  # eager all through: what vLLM decorates on its own would need a C++ compiler, and dies without one at the first token
        os.environ["TORCH_COMPILE_DISABLE"] = "1"


def manifest_of(folder: Path, dtype: str) -> dict[str, Any]:
    """name -> [shape, dtype] of the checkpoint's tensors, as an update must bring them: floats in the engine's dtype, those of
    FLOAT32_SUFFIXES in float32, integers in their own."""
    manifest: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():
                found = file.get_slice(name)
                kept = WHOLE_DTYPES.get(found.get_dtype(), "float32" if name.endswith(FLOAT32_SUFFIXES) else dtype)
                manifest[name] = [found.get_shape(), f"torch.{kept}"]
    if json.loads((folder / "config.json").read_text()).get("tie_word_embeddings"):
        manifest.pop("lm_head.weight", None)
    return manifest


class VllmEngine:
    """An Engine over vLLM's AsyncLLM. Make it with `await VllmEngine.start(settings)`."""

    worker_extension: ClassVar[str] = "gym_servers.models.vllm_transfer.WorkerExtension"
    """Imported in vLLM's worker process."""

    def __init__(self, settings: VllmSettings, llm: Any) -> None:
        self._llm = llm
        self._settings = settings
        tokenizer = CheckpointTokenizer(settings.model)
        self.tokenizer: Tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template
        self.special = tokenizer.special
        self.max_context = settings.max_model_len
        self.state = EngineState(model=settings.model, dtype=settings.dtype)
        self._scores = 0

    @classmethod
    async def start(cls, settings: VllmSettings) -> VllmEngine:
        """Start vLLM and its weight transfer. Raises OmnigymError where the folder holds no checkpoint."""
        folder = Path(settings.model)
        if not (folder / "config.json").is_file():
            raise OmnigymError(f"model '{settings.model}': no config.json there, so it is no checkpoint folder")
        set_environment(settings)
        from vllm.config import WeightTransferConfig
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            enforce_eager=on_cpu(),
            # A prompt split over two steps rewinds its request's generator, which CPU generators cannot: the engine dies.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(settings.max_model_len, 4096),
            seed=settings.seed,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            worker_extension_cls=cls.worker_extension,
            weight_transfer_config=WeightTransferConfig(backend="shm"),
        )
        llm = AsyncLLM.from_engine_args(arguments)
        engine = cls(settings, llm)
        manifest = manifest_of(folder, settings.dtype)
        await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info={"manifest": manifest}))
        await llm.update_weight_version("0")
        return engine

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=list(sampling.stop) or None,
            seed=seed,
            logprobs=0,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final: Any = None
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        try:
            async for output in self._llm.generate(prompt, parameters, request_id):
                final = output
        except VLLMClientError as error:  # such as a token id that the model has not
            raise OmnigymError(f"vLLM refused the request: {error}") from None
        if final is None:
            raise OmnigymError(f"vLLM ended request '{request_id}' without an output")
        sampled = final.outputs[0]
        ids = list(sampled.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(sampled.logprobs or [], ids, strict=True)]
        reason: FinishReason = sampled.finish_reason if sampled.finish_reason in ("stop", "length") else "abort"
        versions = {int(span.version) for span in sampled.weight_versions or []}
        return Generation(ids, logprobs, reason, tuple(sorted(versions)) or (self.state.weight_version,))

    async def abort(self, request_ids: Sequence[str]) -> None:
        await self._llm.abort(list(request_ids))

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams, TokensPrompt

        async def one(ids: list[int]) -> list[float]:
            self._scores += 1
            parameters = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
            final: Any = None
            async for output in self._llm.generate(
                TokensPrompt(prompt_token_ids=ids), parameters, f"score-{self._scores}"
            ):
                final = output
            return [entry[token].logprob for entry, token in zip(final.prompt_logprobs[1:], ids[1:], strict=True)]

        return list(await asyncio.gather(*(one(list(ids)) for ids in sequences)))

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        """Raises WeightsRefused where the old weights keep serving; after any other exception the engine is lost."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._llm
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await llm.pause_generation(mode="wait", clear_cache=True)
        except TimeoutError:
            raise OmnigymError(f"vLLM did not pause within {PAUSE_SECONDS:g} s: restart the model server") from None
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info={"path": path, "digest": digest}))
        (report,) = await llm.collective_rpc("omnigym_report")
        refused = str(report["refused"])
        await llm.finish_weight_update(weight_version=None if refused else str(version))
        await llm.resume_generation()
        if refused:
            raise WeightsRefused(f"weights refused: {refused}")
        if report["digest"] != digest:
            raise OmnigymError(f"the engine loaded digest {report['digest']}, sent was {digest}")
        self.state.weight_version, self.state.digest, self.state.updates = version, digest, report["updates"]

    async def check(self) -> None:
        await self._llm.check_health()

    async def close(self) -> None:
        self._llm.shutdown()


class ServeSettings(VllmSettings, ModelSettings, ListenSettings):
    """Settings of the server process, in one flat object."""


async def make(settings: ServeSettings) -> Guard:
    """The model server over a vLLM that is started for it."""
    engine = await VllmEngine.start(part_of(settings, VllmSettings))
    return build_model_server(engine, part_of(settings, ModelSettings), settings.server())


if __name__ == "__main__":
    run("vllm", "Model server over vLLM", ServeSettings, make)
