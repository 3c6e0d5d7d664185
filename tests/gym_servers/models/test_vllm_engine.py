"""vLLM with a tiny model: its log-probabilities against transformers, weight updates and what they must catch."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gym_servers.models.engine import Sampling, WeightsRefused
from gym_servers.protocol import OmnigymError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@asynccontextmanager
async def running(folder: Path, worker_extension: str = "") -> AsyncIterator[Any]:
    from gym_servers.models.vllm import VllmEngine, VllmSettings

    class Chosen(VllmEngine):
        pass

    if worker_extension:
        Chosen.worker_extension = worker_extension
    settings = VllmSettings(model=str(folder), dtype="float32", max_model_len=256, threads=1, kv_gib=1)
    engine = await Chosen.start(settings)
    try:
        yield engine
    finally:
        await engine.close()


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    return tensors


def write(tensors: dict[str, Any], path: Path) -> tuple[str, str]:
    from safetensors.torch import save_file

    from gym_servers.models.vllm_transfer import digest_of

    save_file(tensors, path)
    return str(path), digest_of(tensors)


def expected(folder: Path, ids: list[int]) -> list[float]:
    """Log-probabilities of ids[1:] by transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        lp = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return [float(lp[k, token]) for k, token in enumerate(ids[1:])]


async def canary_gap(engine: Any, folder: Path, ids: list[int]) -> float:
    """Mean |dlp| between the engine and the weights in `folder`, as the trainer's canary has it."""
    (scored,) = await engine.score([ids])
    return sum(abs(a - b) for a, b in zip(scored, expected(folder, ids), strict=True)) / len(scored)


def test_sampling_and_weight_updates(tmp_path: Path) -> None:
    from rl_trainer.tiny_model import make_tiny_model

    first, second = tmp_path / "first", tmp_path / "second"
    make_tiny_model(first, seed=0)
    make_tiny_model(second, seed=1)

    def distance(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    async def scenario() -> None:
        async with running(first) as engine:
            prompt = engine.tokenizer.encode("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
            sampling = Sampling(max_tokens=24)
            answers = await asyncio.gather(*(engine.generate(prompt, sampling, k, f"a{k}") for k in range(6)))
            again = await engine.generate(prompt, sampling, 3, "again")
            assert again == answers[3]  # per-request seeds: the same text alone as in a batch
            assert len({tuple(a.token_ids) for a in answers}) > 1
            for a in answers:
                assert a.weight_versions == (0,)
                scored = expected(first, [*prompt, *a.token_ids])[len(prompt) - 1 :]
                assert distance(a.logprobs, scored) < 1e-3
            ids = [*prompt, *answers[0].token_ids]
            (canary,) = await engine.score([ids])
            assert distance(canary, expected(first, ids)) < 1e-3

            tensors = tensors_of(second)
            one_out = {name: t for name, t in tensors.items() if "layers.1.mlp.down_proj" not in name}
            with pytest.raises(WeightsRefused, match="down_proj"):
                await engine.update_weights(*write(one_out, tmp_path / "one_out"), 1)
            path, digest = write(tensors, tmp_path / "full")
            with pytest.raises(WeightsRefused, match="digest"):
                await engine.update_weights(path, "0" * 64, 1)
            (canary,) = await engine.score([ids])
            assert distance(canary, expected(first, ids)) < 1e-3  # refused: the old weights keep serving

            for version in (1, 2):  # the same update twice
                await engine.update_weights(path, digest, version)
                (canary,) = await engine.score([ids])
                assert distance(canary, expected(second, ids)) < 1e-3
                new = await engine.generate(prompt, sampling, 3, f"v{version}")
                assert new.weight_versions == (version,)
                assert distance(new.logprobs, expected(second, [*prompt, *new.token_ids])[len(prompt) - 1 :]) < 1e-3
            assert (engine.state.weight_version, engine.state.digest) == (2, digest)
            with pytest.raises(OmnigymError, match="out of vocabulary"):
                await engine.generate([10**6], sampling, 0, "no such token")

    asyncio.run(scenario())


def test_the_canary_catches_what_a_digest_cannot(tmp_path: Path) -> None:
    """A tied lm_head that is left as it was, and the update of an earlier step sent again: the digest is right each time. A payload with
    a tensor left out, its digest right too, loses the engine even where no manifest refuses it.
    """
    from rl_trainer.loop import CANARY_FLOOR
    from rl_trainer.tiny_model import make_tiny_model

    folders = [tmp_path / name for name in ("first", "second", "third")]
    for seed, folder in enumerate(folders):
        make_tiny_model(folder, seed=seed)
    first, second, third = folders

    async def scenario() -> None:
        ids = [7 * k % 300 + 5 for k in range(40)]
        async with running(first) as engine:
            limit = max(1.5 * await canary_gap(engine, first, ids), CANARY_FLOOR)
            path, digest = write(tensors_of(second), tmp_path / "update")
            await engine.update_weights(path, digest, 1)
            assert await canary_gap(engine, second, ids) < limit
            await engine.update_weights(path, digest, 2)  # the trainer is at `third`
            assert (engine.state.digest, await canary_gap(engine, third, ids) > limit) == (digest, True)
        async with running(first, "faulty_transfer.WorkerExtension") as engine:
            await engine.update_weights(path, digest, 1)
            assert (engine.state.digest, await canary_gap(engine, second, ids) > limit) == (digest, True)
            tensors = tensors_of(second)
            tensors.pop("model.layers.1.mlp.down_proj.weight")
            with pytest.raises(Exception, match="not loaded") as caught:
                await engine.update_weights(*write(tensors, tmp_path / "one_out"), 2)
            assert not isinstance(caught.value, WeightsRefused)
            assert engine.state.weight_version == 1

    asyncio.run(scenario())


def test_the_server_process_and_a_reasoning_budget_on_the_real_engine(tmp_path: Path) -> None:
    """Over HTTP, two turns: what the server wrote is masked 0, all else has the log-probability that the engine gives it when the
    whole segment is scored at once.
    """
    import httpx

    from gym_servers.hosts.local import LocalHost
    from gym_servers.models.wire import unpack_ledger
    from gym_servers.signing import sign_rollout_id
    from rl_trainer.tiny_model import make_tiny_model

    make_tiny_model(tmp_path / "model", seed=0)
    settings = {"model": str(tmp_path / "model"), "dtype": "float32", "max_model_len": 512, "threads": 1, "kv_gib": 1}
    with LocalHost() as host:
        command = [sys.executable, "-m", "gym_servers.models.vllm", "--settings", json.dumps(settings)]
        server = host.start("the model server", command, {"OMNIGYM_TOKEN": "t", "OMNIGYM_SECRET": "s"})
        url, rollout = server.wait_ready(300), f"/r/{sign_rollout_id('r', 's')}"
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer t"}, timeout=300) as http:

            def post(path: str, **body: Any) -> httpx.Response:
                reply = http.post(path, json=body)
                assert reply.status_code == 200, reply.text
                return reply

            switched = {"reasoning": True, "reasoning_budget": 6}
            messages: list[Any] = [{"role": "user", "content": "hello"}]
            for _ in range(2):
                body = {"messages": messages, "max_tokens": 24, "chat_template_kwargs": switched, "seed": 5}
                message = post(f"{rollout}/v1/chat/completions", **body, return_token_ids=True).json()["choices"][0][
                    "message"
                ]
                assert message["generation_loss_mask"][:7] == [1] * 6 + [0]
                messages += [
                    {name: message[name] for name in ("role", "content", "reasoning_content")},
                    {"role": "tool", "tool_call_id": "-", "content": "go on"},
                ]
            export = unpack_ledger(post(f"{rollout}/close").content)
            (segment,) = export.segments
            (scores,) = post("/admin/score", token_ids=[segment.token_ids]).json()["logprobs"]
    assert segment.sampled == export.usage["sampled_tokens"] < 48
    assert export.usage["requests"] == 4
    pairs = [(a, b) for a, b, m in zip(scores, segment.lp_gen[1:], segment.mask[1:], strict=True) if m]
    assert len(pairs) == segment.sampled
    assert max(abs(a - b) for a, b in pairs) < 1e-3
