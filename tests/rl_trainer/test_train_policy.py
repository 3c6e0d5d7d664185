"""The policy worker: splits, ranks, N, books, determinism, options (pitfalls 1, 8, 16)."""

import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from transformers import AutoConfig, AutoModelForCausalLM

from gym_servers.protocol import OmnigymError
from rl_trainer.books import Books
from rl_trainer.options import AlgorithmOptions, OptimizerOptions, PolicyOptions
from rl_trainer.packing import ATTENTION, TrainSegment, register_attention
from rl_trainer.policy import GradientNotFinite, PolicyWorker, check_head, freeze_router, gradients
from rl_trainer.selfcheck import make_batch
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import weights_digest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def options(model, algorithm=None, **kwargs):
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "micro_batch_tokens": 64}
    return PolicyOptions(
        model=model,
        algorithm=AlgorithmOptions.model_validate(algorithm or {}),
        optimizer=OptimizerOptions(lr=1e-2, warmup_steps=4),
        **{**settings, **kwargs},
    )


def vector(worker):
    return torch.cat([p.detach().flatten() for p in worker.parameters])


def broken(batch):
    """One segment far from the sampler (sequence mask), one token far off, one with advantage 0."""
    far = replace(batch[1], lp_gen=batch[1].lp_gen - 2.0)
    off = batch[2].lp_gen.copy()
    off[np.flatnonzero(batch[2].mask)[0]] -= 2.5
    return [batch[0], far, replace(batch[2], lp_gen=off), replace(batch[3], advantage=0.0), *batch[4:]]


@pytest.mark.parametrize(
    "algorithm", [{}, {"ratio": "sequence"}, {"kl_beta": 0.1}, {"importance": {"mode": "none"}}, {"dual_clip": 3.0}]
)
def test_gradient_is_the_same_under_every_split(model, algorithm, tmp_path):
    other = str(make_tiny_model(tmp_path, seed=5)) if "kl_beta" in algorithm else None
    worker = PolicyWorker(0, 1, options(model, algorithm, reference=other))
    batch = broken(make_batch(worker))
    whole = gradients(worker, batch, 10_000)
    assert whole.norm() > 0
    for budget in (1, 50, 90):
        assert (gradients(worker, batch[::-1], budget) - whole).norm() / whole.norm() < 1e-5


def test_n_metrics_and_books(model):
    worker = PolicyWorker(0, 1, options(model))
    batch = broken(make_batch(worker))
    total, far = sum(s.sampled for s in batch), batch[1].sampled
    result = worker.train_step(batch, 0)
    assert result["tokens"] == total and result["n"] == total - far
    books = Books()
    books.add_all(result["books"])
    books.check({s.rollout_id: s.sampled for s in batch}, n=int(result["n"]))
    assert result["books"][batch[1].rollout_id] == {"sequence_mask": far}
    assert result["books"][batch[2].rollout_id] == {"token_mask": 1, "trained": batch[2].sampled - 1}
    assert result["books"][batch[3].rollout_id] == {"zero_advantage": batch[3].sampled}
    assert result["sequence_masked_fraction"] == far / total
    assert result["worst_tokens"][0]["rollout_id"] == batch[2].rollout_id and len(result["worst_tokens"]) == 10
    assert result["lr"] == pytest.approx(1e-2 / 4) and result["per_environment"]["selfcheck"]["tokens"] == total


def test_sequence_masked_tokens_leave_n(model):
    """The gradient with a sequence-masked segment is the one without that segment; a zero-advantage one dilutes it."""
    worker = PolicyWorker(0, 1, options(model))
    batch = broken(make_batch(worker))
    whole = gradients(worker, batch, 64)
    without = gradients(worker, [s for i, s in enumerate(batch) if i != 1], 64)
    assert (whole - without).norm() / whole.norm() < 1e-5
    kept = [s for i, s in enumerate(batch) if i not in (1, 3)]
    n = sum(s.sampled for s in kept)
    undiluted = gradients(worker, kept, 64) * n / (n + batch[3].sampled)
    assert (whole - undiluted).norm() / whole.norm() < 1e-5


def test_metrics_do_not_depend_on_the_packing(model):
    results = []
    for budget in (1, 4096):
        worker = PolicyWorker(0, 1, options(model, micro_batch_tokens=budget))
        results.append(worker.train_step(broken(make_batch(worker)), 0))
    for name in ("loss", "grad_norm", "w_mean", "w_max", "kl_gen_train", "exp_abs_delta", "abs_delta", "entropy", "n"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5), name


def test_kl_of_the_sampler_by_hand(model):
    worker = PolicyWorker(0, 1, options(model))
    ids = list(range(10, 20))
    lp = worker.score([ids])[0]
    gen = [0.0, *(x - 0.1 for x in lp)]
    result = worker.train_step([TrainSegment(ids, [0] + [1] * 9, gen, 1.0, "e", "r")], 0)
    assert result["w_mean"] == pytest.approx(math.exp(0.1), rel=1e-5)
    assert result["kl_gen_train"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert result["abs_delta"] == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("mode", ["empty", "all_masked"])
def test_no_tokens_skips_the_step_and_says_so(model, mode):
    worker = PolicyWorker(0, 1, options(model))
    before = vector(worker).clone()
    batch = [] if mode == "empty" else [replace(s, lp_gen=s.lp_gen - 3.0) for s in make_batch(worker)]
    assert worker.train_step(batch, 0)["skipped"] == 1.0
    assert torch.equal(before, vector(worker))


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_retraining_is_bit_identical(model, dtype):
    digests = []
    for _ in range(2):
        worker = PolicyWorker(0, 1, options(model, dtype=dtype))
        batch = make_batch(worker)
        for step in range(3):
            worker.train_step(batch, step)
        digests.append(weights_digest(worker.weights()))
    assert digests[0] == digests[1]
    fresh = PolicyWorker(0, 1, options(model))
    assert digests[0] != weights_digest(fresh.weights())
    assert all(p.dtype == torch.float32 for p in worker.parameters)


@pytest.mark.parametrize("algorithm", [{}, {"ratio": "sequence"}, {"dual_clip": 1.01}, {"kl_beta": 0.5}])
def test_two_optimizer_steps_use_the_old_log_probabilities(model, algorithm):
    """The second update's ratio is not 1: it equals an update computed with lp_old from before the first."""
    once = PolicyWorker(0, 1, options(model, algorithm))
    batch = broken(make_batch(once))
    once.train_step(batch, 0)
    twice = PolicyWorker(0, 1, options(model, {**algorithm, "optimizer_steps_per_batch": 2}))
    plan = twice._plan(batch)
    old = twice._score(batch, plan, twice.scorer)
    twice.train_step(batch, 0)
    reference = PolicyWorker(0, 1, options(model, {**algorithm, "optimizer_steps_per_batch": 1}))
    reference.train_step(batch, 0)
    assert torch.equal(vector(reference), vector(once))
    from rl_trainer.step_metrics import StepMetrics

    total = sum(s.sampled for s in batch)
    metrics = StepMetrics(batch, reference.options.algorithm)
    ref = None if reference.reference is None else reference._score(batch, plan, reference.reference)
    reference.optimizer.zero_grad()
    reference._accumulate(batch, plan, float(total), old, ref, metrics)
    reference._apply(total / metrics.kept_tokens(), 0)
    torch.testing.assert_close(vector(reference), vector(twice), rtol=1e-5, atol=1e-7)
    assert not torch.equal(vector(once), vector(twice))


def test_clipped_tokens_are_counted_where_ratios_can_differ_from_one(model):
    """The second of two inner steps: by hand from its own log-probabilities. The first has none, and one step has no such figure."""
    algorithm = {"clip_low": 1e-6, "clip_high": 1e-6, "importance": {"mode": "none"}}
    twice = PolicyWorker(0, 1, options(model, {**algorithm, "optimizer_steps_per_batch": 2}))
    batch = make_batch(twice)
    once = PolicyWorker(0, 1, options(model, algorithm))
    plan = once._plan(batch)
    old = once._score(batch, plan, once.scorer)
    result = once.train_step(batch, 0)
    assert "clipped_fraction" not in result
    new = once._score(batch, plan, once.scorer)
    clipped = 0
    for members, before in old.items():
        advantage = torch.cat([torch.full((batch[i].sampled,), float(batch[i].advantage)) for i in members])
        ratio = (new[members] - before).exp()
        clipped += int((ratio * advantage > ratio.clamp(1 - 1e-6, 1 + 1e-6) * advantage).sum())
    total = sum(segment.sampled for segment in batch)
    assert 0 < clipped < total
    assert twice.train_step(batch, 0)["clipped_fraction"] == pytest.approx(clipped / total, abs=2 / total)


def test_a_gradient_that_is_not_finite_says_what_was_taken(model):
    worker = PolicyWorker(0, 1, options(model))
    before = vector(worker)
    for index, said in ((0, "weights are unchanged"), (1, "1 inner steps on the same batch were taken before it")):
        with pytest.raises(GradientNotFinite, match=said):
            worker._apply(math.nan, index)
    assert torch.equal(vector(worker), before)


def test_a_checkpoint_s_optimizer_takes_the_options_of_the_configuration(model):
    first = PolicyWorker(0, 1, options(model))
    first.train_step(make_batch(first), 0)
    chosen = OptimizerOptions(lr=1e-2, warmup_steps=4, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    second = PolicyWorker(0, 1, options(model).model_copy(update={"optimizer": chosen}))
    second.load(first.weights(), first.optimizer_state())
    for group in second.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.1)
    moments = [state["exp_avg"] for state in second.optimizer.state.values()]
    assert moments and all(moment.abs().sum() > 0 for moment in moments[:1])
    names = {"state": {"model.norm.weight": {}}, "param_groups": []}
    with pytest.raises(OmnigymError, match="is of several GPU workers, which one cannot go on with"):
        second.load(first.weights(), names)


def tiny(kind, **more):
    config = AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    register_attention()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.startswith("lm_head"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_models_whose_logits_are_hidden_states_times_head_are_taken(kind):
    check_head(tiny(kind))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {}),
        ("phi", {}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0}),
    ],
)
def test_models_that_scale_cap_or_bias_their_logits_are_refused(kind, more):
    with pytest.raises(OmnigymError, match="scales, caps or biases its logits: they differ .* by .* nats a token"):
        check_head(tiny(kind, **more))


def test_capped_attention_is_refused():
    with pytest.raises(ValueError, match="attention with capped scores or sinks is not supported"):
        check_head(tiny("gemma2", attn_logit_softcapping=50.0))


def test_gradient_checkpointing_changes_nothing(model):
    plain, saving = (PolicyWorker(0, 1, options(model, gradient_checkpointing=flag)) for flag in (False, True))
    batch = make_batch(plain)
    expected = gradients(plain, batch, 64)
    assert (gradients(saving, batch, 64) - expected).norm() / expected.norm() < 1e-6


def test_router_weights_are_frozen_but_gate_proj_is_not():
    layer = torch.nn.ModuleDict({"gate": torch.nn.Linear(2, 2), "gate_proj": torch.nn.Linear(2, 2)})
    assert freeze_router(layer) == ["gate.weight", "gate.bias"]
    assert layer["gate_proj"].weight.requires_grad and not layer["gate"].weight.requires_grad


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"omnigym model get"):
        PolicyWorker(0, 1, options(str(tmp_path / "nothing")))


def _rank(rank, world, model, port, folder):
    worker = PolicyWorker(rank, world, options(model, threads=1), init_method=f"tcp://127.0.0.1:{port}")
    batch = broken(make_batch(worker))
    results = [worker.train_step(batch, step) for step in range(2)]
    torch.save((vector(worker), results[0]), f"{folder}/{rank}.pt")
    worker.close()


def test_two_ranks_equal_one(model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(2, model, port, str(tmp_path)), nprocs=2)
    alone = PolicyWorker(0, 1, options(model))
    start = vector(alone).clone()
    batch = broken(make_batch(alone))
    expected = alone.train_step(batch, 0)
    alone.train_step(batch, 1)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert torch.equal(parts[0][0], parts[1][0])
    for name in ("loss", "grad_norm", "n", "kl_gen_train", "w_max", "entropy"):
        assert parts[0][1][name] == pytest.approx(expected[name], rel=1e-5), name
    assert parts[0][1]["books"] == expected["books"]
    moved = vector(alone) - start
    # Adam divides by the gradient's own size, so rounding of a tiny gradient shows: compare the whole update.
    assert (parts[0][0] - vector(alone)).norm() / moved.norm() < 1e-3
