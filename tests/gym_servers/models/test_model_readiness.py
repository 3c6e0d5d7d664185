"""A model server's process: ready only with a live engine, draining, its CPUs; and what a template and a request may name."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from live_server import Recording, model_world
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import gym_servers.models.vllm as vllm_module
from gym_servers.base import Guard
from gym_servers.models.app import build_model_server
from gym_servers.models.calls import ModelSettings
from gym_servers.models.scripted import ScriptedEngine
from gym_servers.models.serving import ListenSettings, serve
from gym_servers.models.template import ChatTemplate
from gym_servers.models.vllm import VllmEngine, VllmSettings, cpus_for
from gym_servers.protocol import OmnigymError
from rl_trainer.tasks import prompt_counter
from rl_trainer.weights import cast_for_engine


def test_a_dead_or_poisoned_engine_is_not_ready() -> None:
    class Mortal(ScriptedEngine):
        dead = ""

        async def check(self) -> None:
            if self.dead:
                raise RuntimeError(self.dead)

    engine = Mortal(["x"])
    with model_world(engine) as world:
        assert world.http.get("/readyz").status_code == 200
        engine.dead = "EngineCore died"
        reply = world.http.get("/readyz")
        assert (reply.status_code, reply.json()) == (503, {"status": "not ready", "reason": "EngineCore died"})
        engine.dead, engine.state.poisoned = "", "half of the weights"
        reply = world.http.get("/readyz")
        assert reply.status_code == 503
        assert "half of the weights" in reply.json()["reason"]


def test_a_model_server_drains_when_it_is_told_to_stop() -> None:
    guards: list[Guard] = []

    async def make(settings: ListenSettings) -> Guard:
        guards.append(build_model_server(ScriptedEngine(["x"]), ModelSettings(secret="s"), settings.server()))
        return guards[0]

    async def run() -> None:
        announced = io.StringIO()
        task = asyncio.create_task(serve(ListenSettings(), make, announced))
        while not announced.getvalue() or signal.getsignal(signal.SIGTERM) is ignore:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await task

    def ignore(*_: object) -> None:
        """uvicorn raises the signal again once it has ended."""

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        asyncio.run(run())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert guards[0].draining
    assert guards[0].settings.request_seconds == 86_400


@pytest.mark.parametrize(("threads", "bound"), [(1, [9]), (2, [4, 7]), (3, [4, 7, 9])])
def test_threads_are_bound_to_cpus_that_the_process_may_use(
    threads: int, bound: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {9, 4, 7})
    assert cpus_for(threads) == bound


def test_more_threads_than_cpus_is_an_error_that_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {9, 4})
    with pytest.raises(OmnigymError, match=r"threads 3: .* 2 CPUs \(4, 9\); set threads to 2 or fewer"):
        vllm_module.set_environment(VllmSettings(model="-", threads=3))


def test_a_pause_that_never_comes_is_a_named_error_and_poisons(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        async def pause_generation(self, **_: Any) -> None:
            await asyncio.Event().wait()

    transfer: Any = types.ModuleType("vllm.distributed.weight_transfer.base")
    transfer.WeightTransferUpdateRequest = object
    monkeypatch.setitem(sys.modules, transfer.__name__, transfer)
    tokenizer = types.SimpleNamespace(chat_template=None, special=(), end_token="")
    monkeypatch.setattr(vllm_module, "CheckpointTokenizer", lambda folder: tokenizer)
    monkeypatch.setattr(vllm_module, "PAUSE_SECONDS", 0.05)
    with model_world(Recording(["x"])) as world:
        stuck = VllmEngine(VllmSettings(model="-"), Stuck())
        monkeypatch.setattr(world.engine, "update_weights", stuck.update_weights)
        assert "did not pause within 0.05 s" in world.update(1, status=503)["error"]["message"]
        assert "did not pause within 0.05 s" in world.state()["poisoned"]


def test_a_template_gets_the_tokenizer_s_special_tokens(tmp_path: Path) -> None:
    """Both where the model server renders a prompt and where the trainer counts it."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    raw = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "[UNK]": 3}, unk_token="[UNK]"))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
    made.chat_template = template
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert prompt_counter(tmp_path)({"responses_create_params": {"input": "a"}}) == 2
    checkpoint = vllm_module.CheckpointTokenizer(str(tmp_path))
    assert dict(VllmEngine(VllmSettings(model=str(tmp_path)), None).special)["bos_token"] == "<s>"
    engine = Recording(lambda asked: [2, 1], tokenizer=checkpoint)
    engine.chat_template, engine.special = checkpoint.chat_template, checkpoint.special
    with model_world(engine) as world:
        world.chat([{"role": "user", "content": "a"}])
    assert engine.calls[0][0] == [0, 2]


@pytest.mark.parametrize("adds", [True, False])
def test_our_own_template_begins_as_the_tokenizer_would(tmp_path: Path, adds: bool) -> None:
    """With the token that the tokenizer puts before any text; not with one that it has and never puts there."""
    raw = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "[UNK]": 3}, unk_token="[UNK]"))
    if adds:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
    made.save_pretrained(tmp_path)
    tokenizer = vllm_module.CheckpointTokenizer(str(tmp_path))
    text = ChatTemplate(None, tokenizer.special).render([{"role": "user", "content": "a"}], generation=True)
    assert text.removeprefix("<s>" if adds else "") == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text).count(0) == adds


def test_a_manifest_wants_what_a_sync_brings(tmp_path: Path) -> None:
    """The tensors that no cast to the engine's dtype may round stay as they are on both sides."""
    tensors = {
        "w": torch.ones(2, 3),
        "gate.e_score_correction_bias": torch.ones(4),
        "steps": torch.ones(2, dtype=torch.int64),
        "lm_head.weight": torch.ones(2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    tensors.pop("lm_head.weight")
    sent = {name: [list(t.shape), str(t.dtype)] for name, t in cast_for_engine(tensors, torch.bfloat16).items()}
    assert vllm_module.manifest_of(tmp_path, "bfloat16") == sent
    assert sent["gate.e_score_correction_bias"] == [[4], "torch.float32"]


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_what_an_earlier_request_stored_is_refused(name: str) -> None:
    with model_world(Recording(["x"])) as world:
        said = world.post("/v1/responses", "r", 400, input="?", **{name: "abc"})["error"]["message"]
        assert f"'{name}'" in said
        assert "send the whole history as 'input'" in said
        world.post("/v1/responses", "r", input="?", **{name: None})
