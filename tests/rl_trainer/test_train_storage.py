"""Weights for the engine, checkpoints, export, full disk (pitfalls 14, 28, 29, 35), and the self-check."""

import hashlib
import multiprocessing
import re
import resource
import signal
from dataclasses import replace

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from rl_trainer import selfcheck
from rl_trainer.checkpoint import (
    CheckpointError,
    best_step,
    export_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    save_checkpoint,
)
from rl_trainer.options import OptimizerOptions, PolicyOptions
from rl_trainer.policy import PolicyWorker
from rl_trainer.selfcheck import make_batch, run_selfcheck
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import cast_for_engine, mean_difference, weights_digest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def make_worker(model):
    optimizer = OptimizerOptions(lr=1e-2, warmup_steps=0)
    return PolicyWorker(0, 1, PolicyOptions(model=model, dtype="float32", device="cpu", threads=1, optimizer=optimizer))


def test_export_holds_every_tensor_once_in_the_engines_dtype(model, tmp_path):
    worker = make_worker(model)
    digest = worker.export(tmp_path / "w.safetensors", "bfloat16")
    read = load_file(tmp_path / "w.safetensors")
    assert set(read) == set(load_file(f"{model}/model.safetensors"))
    assert "lm_head.weight" not in read and {t.dtype for t in read.values()} == {torch.bfloat16}
    assert digest == weights_digest(read)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    name = "model.norm.weight"
    for changed in ({k: v for k, v in read.items() if k != name}, {**read, name: read[name] + 1}):
        assert weights_digest(changed) != digest


def test_digest_by_hand():
    tensor = torch.tensor([1.0, 2.0])
    inner = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    expected = hashlib.sha256(f"a:{inner}\nb:{inner}\n".encode()).hexdigest()
    assert weights_digest({"b": tensor, "a": tensor}) == expected
    assert weights_digest({"a": tensor.bfloat16()}) == weights_digest({"a": tensor.bfloat16().clone()})


def test_selection_bias_stays_float32():
    cast = cast_for_engine(
        {"mlp.gate.e_score_correction_bias": torch.ones(2), "w": torch.ones(2), "i": torch.ones(1, dtype=torch.int64)},
        torch.bfloat16,
    )
    assert [t.dtype for t in cast.values()] == [torch.float32, torch.bfloat16, torch.int64]


def test_canary_difference():
    assert mean_difference([[-1.0, -2.0], [-3.0]], [[-1.0, -2.5], [-3.1]]) == pytest.approx(0.2)
    for engine in ([[-1.0]], []):
        with pytest.raises(ValueError, match="canary"):
            mean_difference([[-1.0, -2.0]] if engine else [], engine)


def test_resume_from_a_checkpoint_is_bit_identical(model, tmp_path):
    worker = make_worker(model)
    batch = make_batch(worker)
    worker.train_step(batch, 0)
    path = save_checkpoint(
        tmp_path, 1, worker.weights(), worker.optimizer_state(), sampler={"at": 7}, config={"seed": 3}
    )
    saved = weights_digest(worker.weights())
    worker.train_step(batch, 1)
    resumed, state = make_worker(model), load_checkpoint(path)
    assert state["step"] == 1 and state["sampler"] == {"at": 7} and state["config"] == {"seed": 3}
    resumed.load(state["weights"], state["optimizer"])
    assert weights_digest(resumed.weights()) == saved == weights_digest(state["weights"])
    resumed.train_step(batch, 1)
    assert weights_digest(resumed.weights()) == weights_digest(worker.weights())


def test_keep_last_and_best(tmp_path):
    weights = {"w": torch.ones(2)}
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.6)):
        save_checkpoint(tmp_path, step, weights, {})
        assert mark_best(tmp_path, step, score) == (step <= 2)
    prune_checkpoints(tmp_path, 1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 4] and best_step(tmp_path) == 2
    save_checkpoint(tmp_path, 4, {"w": torch.zeros(2)}, {})
    assert load_checkpoint(tmp_path / "step_000004")["weights"]["w"].tolist() == [0, 0]


def _write_with_limit(folder, answer):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(folder, 2, {"w": torch.ones(1_000_000)}, {})
        answer.put("written")
    except CheckpointError as error:
        answer.put(str(error))


def test_a_file_that_cannot_be_written_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": torch.ones(3)}, {})
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_write_with_limit, args=(str(tmp_path), answer))
    process.start()
    message = answer.get(timeout=60)
    process.join(30)
    assert "could not write the checkpoint of step 2" in message and "earlier checkpoints are intact" in message
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert load_checkpoint(tmp_path / "step_000001")["weights"]["w"].tolist() == [1, 1, 1]


def test_a_broken_or_foreign_checkpoint_is_named(model, tmp_path):
    path = save_checkpoint(tmp_path, 1, {"w": torch.ones(3)}, {})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        make_worker(model).load(load_checkpoint(path)["weights"])
    (path / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="could not read the checkpoint"):
        load_checkpoint(path)


def test_export_loads_in_transformers(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    worker = make_worker(model)
    worker.train_step(make_batch(worker), 0)
    path = save_checkpoint(tmp_path / "checkpoints", 1, worker.weights(), worker.optimizer_state())
    out = export_checkpoint(path, model, tmp_path / "export", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(loaded.model.norm.weight, worker.weights()["model.norm.weight"])
    assert loaded.generation_config.eos_token_id is not None
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hé"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_selfcheck_passes_and_its_failure_is_an_exit_status(monkeypatch):
    checks = run_selfcheck()
    assert all(check.passed for check in checks), checks
    assert [check.name for check in checks] == [
        "packed = padded log-probabilities",
        "packed = split gradients",
        "loss = float64 reference",
        "ids sampled = ids trained",
        "digest after a sync",
        "canary after a sync",
    ]
    assert re.match(r"\d\d tokens of 3 turns", checks[3].detail)
    app = typer.Typer()
    app.callback()(lambda: None)
    selfcheck.register(app)
    monkeypatch.setattr(selfcheck, "run_selfcheck", lambda: [selfcheck.Check("x", False, "why")])
    result = CliRunner().invoke(app, ["selfcheck"])
    assert result.exit_code == 1 and "FAILED" in result.output
    assert "engine: a second copy of the model" in " ".join(result.output.split())


@pytest.mark.parametrize(("broken", "named"), [("ids", "ids sampled"), ("digest", "digest"), ("load", "canary")])
def test_selfcheck_notices_what_it_says_it_checks(monkeypatch, broken, named):
    update, record = selfcheck.CopyEngine.update, selfcheck.Ledger.record
    if broken == "ids":

        def other(self, messages, answer, prompt, raw, generation):
            record(self, messages, answer, prompt, raw, replace(generation, token_ids=generation.token_ids[::-1]))

        monkeypatch.setattr(selfcheck.Ledger, "record", other)
    elif broken == "digest":
        monkeypatch.setattr(selfcheck.CopyEngine, "update", lambda self, path: update(self, path)[::-1])
    else:
        monkeypatch.setattr(PolicyWorker, "load", lambda self, weights: None)
    failed = [check.name for check in run_selfcheck() if not check.passed]
    assert len(failed) == 1 and failed[0].startswith(named)
