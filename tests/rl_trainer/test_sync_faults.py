"""What digest, manifest, rehearsal and canary catch at the demo's settings: the real model, bf16 autocast against a bf16 engine.

The engine is transformers' own bf16 forward with the exported weights: it differs from the trainer as vLLM does (0.043 nats a token on
the canary sequences, vLLM 0.038 to 0.057 over a demo run), and needs no server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import need
from loop_world import Quiet, sampler_of, tasks_of

from gym_servers.checkpoints import resolve_model
from gym_servers.environment import Split
from gym_servers.registry import load_environment
from rl_trainer.actors import local_policy
from rl_trainer.config import RunConfig, load_config
from rl_trainer.generation import RunStopped
from rl_trainer.loop import CANARY_FLOOR, Run
from rl_trainer.metrics import MetricsLog
from rl_trainer.packing import TrainSegment
from rl_trainer.store import RunStore
from rl_trainer.weights import mean_difference, weights_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TRAIN: Split = "train"


class Bf16Engine:
    """The checkpoint in bfloat16, with a head that is the embedding's. keep_head: a sync leaves the head as it was."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.keep_head = self.ignore = False

    def update_weights(self, path: Path, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> str:
        from safetensors.torch import load_file

        tensors = load_file(path)
        if not self.ignore:
            self.load(tensors)
        return weights_digest(tensors)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        head = self.model.lm_head.weight.detach().clone()
        self.model.lm_head.weight = self.model.model.embed_tokens.weight
        self.model.load_state_dict(tensors, strict=False)
        if self.keep_head:
            self.model.lm_head.weight = torch.nn.Parameter(head)

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        rows = []
        for ids in token_ids:
            with torch.no_grad():
                lp = torch.log_softmax(self.model(torch.tensor([list(ids)])).logits[0].float(), -1)
            rows.append([float(lp[k, token]) for k, token in enumerate(ids[1:])])
        return rows

    def collect(self, plans: Any, on_done: Any) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return resolve_model("smollm2-135m")
    except Exception as error:
        need("model", False, str(error))
        raise


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return load_config(ROOT / "rl_trainer/configs/demo.yaml", ["policy.threads=1"])


@pytest.fixture
def make(config: RunConfig, folder: Path, tmp_path: Path) -> Callable[[], tuple[Run, Bf16Engine]]:
    def made() -> tuple[Run, Bf16Engine]:
        engine = Bf16Engine(folder)
        store = RunStore.create(tmp_path, "demo", config.to_yaml())
        policy = local_policy(config.policy_options(folder, None))
        sampler = sampler_of(config, {name: tasks_of(name, 1) for name in config.environments})
        run = Run(config, store, sampler, policy, engine, MetricsLog(store, False), Quiet(), weights_folder=tmp_path)
        return run, engine

    return made


def batch_of(run: Run) -> list[TrainSegment]:
    """Two answers to a few tasks of each environment, one better than the other. What AdamW's first steps move hangs on no more."""
    tokenizer = run.policy._tokenizer()  # type: ignore[attr-defined]
    segments = []
    for name in run.config.environments:
        for k, row in enumerate(load_environment(name).generate(2, 1, TRAIN)):
            given = row["responses_create_params"]["input"]
            text = given if isinstance(given, str) else given[-1]["content"]
            prompt = list(tokenizer(text, add_special_tokens=False)["input_ids"])[-120:]
            for better, answer in enumerate(("The answer is 7.", '{"name": "Bob"}')):
                ids = [*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
                mask = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
                lp = [0.0, *run.policy.score([ids])[0]]
                kept = [value * sampled for value, sampled in zip(lp, mask, strict=True)]
                advantage = 2.0 * better - 1.0
                segments.append(TrainSegment(ids, mask, kept, advantage, name, f"{name}-{k}-{better}"))  # type: ignore[arg-type]
    return segments


def step(run: Run, number: int, batch: list[TrainSegment]) -> None:
    trained = run.policy.train_step(batch, number)
    assert trained["grad_norm"] > 0 and trained["lr"] > 0


def test_a_healthy_run_passes_and_the_canary_alone_would_not_tell(
    make: Callable[[], tuple[Run, Bf16Engine]], record_property: Callable[[str, object], None]
) -> None:
    """No false alarm over four steps. In bfloat16 the canary cannot be what tells one step from none: it is asserted, since the
    documentation says so and other checks stand in for it."""
    run, engine = make()
    run.start_sync(0)
    batch = batch_of(run)
    limit = max(run.config.canary_factor * (run.canary_start or 0.0), CANARY_FLOOR)
    for number in range(4):
        step(run, number, batch)
        sequences = run.policy.canary()
        stale = mean_difference(run.policy.score(sequences), engine.score(sequences))
        run.sync(number + 1, moved=True)
        fresh = run.counters["canary"]
        record_property(f"step {number}", f"canary {fresh:.4f}, not synced {stale:.4f}, limit {limit:.4f}")
        print(f"step {number}: canary {fresh:.4f}, not synced {stale:.4f}, limit {limit:.4f}")
        assert fresh < limit and stale < limit


@pytest.mark.parametrize("fault", ["keep_head", "ignore"])
def test_an_engine_that_keeps_old_weights_is_caught_at_the_start(
    make: Callable[[], tuple[Run, Bf16Engine]], fault: str
) -> None:
    run, engine = make()
    setattr(engine, fault, True)
    with pytest.raises(RunStopped, match=r"rehearsal of the sync: .*keeps old weights"):
        run.start_sync(0)


def test_the_same_update_twice_is_caught_by_its_digest(
    make: Callable[[], tuple[Run, Bf16Engine]], tmp_path: Path
) -> None:
    """Also at the first step's lr, half of which the warm-up takes: it changes a hundredth of all bfloat16 weights."""
    run, _ = make()
    run.start_sync(0)
    before = run._sent
    step(run, 0, batch_of(run))
    assert run.policy.export(tmp_path / "w", "bfloat16") != before
    run.sync(1, moved=True)
    with pytest.raises(RunStopped, match="byte for byte"):
        run.sync(2, moved=True)  # a step that did not reach what is exported


def test_a_tensor_left_out_of_the_update_is_refused_by_the_engine(
    make: Callable[[], tuple[Run, Bf16Engine]], folder: Path, tmp_path: Path
) -> None:
    """By vLLM's worker, before the model is touched: each update must bring the whole checkpoint."""
    pytest.importorskip("vllm")
    from safetensors.torch import load_file

    from gym_servers.models.vllm import manifest_of
    from gym_servers.models.vllm_transfer import ShmEngine

    run, _ = make()
    digest = run.policy.export(tmp_path / "w", "bfloat16")
    tensors = load_file(tmp_path / "w")
    worker: Any = SimpleNamespace(manifest=manifest_of(folder, "bfloat16"), report={"refused": ""})
    ShmEngine._check(worker, tensors, digest)
    assert worker.report["refused"] == ""
    left = "model.layers.15.mlp.down_proj.weight"
    tensors.pop(left)
    ShmEngine._check(worker, tensors, weights_digest(tensors))
    assert left in worker.report["refused"]
