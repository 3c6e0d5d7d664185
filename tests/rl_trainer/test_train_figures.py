"""What a training step measured, per environment and over all, by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rl_trainer.options import OptimizerOptions, PolicyOptions
from rl_trainer.packing import TrainSegment
from rl_trainer.policy import PolicyWorker
from rl_trainer.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def test_figures_of_two_environments_by_hand(model):
    """a: 9 tokens 0.1 off, 4 exact. b: 9 tokens of which one is 2 off and so masked; 8 in a segment that is dropped whole."""
    settings = PolicyOptions(model=model, dtype="float32", device="cpu", threads=1, optimizer=OptimizerOptions(lr=1e-4))
    worker = PolicyWorker(0, 1, settings)
    offsets = {"a1": [0.1] * 9, "a2": [0.0] * 4, "b1": [2.0] + [0.0] * 8, "b2": [1.0] * 8}
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    batch, entropies = [], {}
    for k, (name, gaps) in enumerate(offsets.items()):
        n = len(gaps)
        ids = list(range(10 + 20 * k, 13 + 20 * k + n))
        gen = [0.0] * 3 + [value - gap for value, gap in zip(worker.score([ids])[0][2:], gaps, strict=True)]
        batch.append(TrainSegment(ids, [0] * 3 + [1] * n, gen, 1.0 - 0.7 * k, name[0], name))
        with torch.no_grad():
            table = plain(torch.tensor([ids])).logits[0, 2:-1].log_softmax(-1)
        entropies[name] = (-(table.exp() * table).sum(-1)).tolist()
    result = worker.train_step(batch, 0)
    a, b = result["per_environment"]["a"], result["per_environment"]["b"]
    assert (a["tokens"], b["tokens"], result["tokens"]) == (13, 17, 30)
    assert (a["n"], b["n"], result["n"]) == (13, 9, 22)
    assert a["loss_token_share"] == pytest.approx(13 / 22) and b["loss_token_share"] == pytest.approx(9 / 22)
    assert (a["token_masked_fraction"], a["sequence_masked_fraction"]) == (0, 0)
    assert b["token_masked_fraction"] == pytest.approx(1 / 17)  # e^2 is over 5
    assert b["sequence_masked_fraction"] == pytest.approx(8 / 17)  # mean e^1 is over 2, (e^2 + 8) / 9 is not
    for found, names in ((a, ("a1", "a2")), (b, ("b1", "b2")), (result, tuple(offsets))):
        gaps = np.array([gap for name in names for gap in offsets[name]])
        assert found["w_mean"] == pytest.approx(np.exp(gaps).mean(), rel=1e-5)
        assert found["w_max"] == pytest.approx(np.exp(gaps).max(), rel=1e-5)
        assert found["kl_gen_train"] == pytest.approx((np.exp(gaps) - 1 - gaps).mean(), rel=1e-4)
        assert found["exp_abs_delta"] == pytest.approx(np.exp(np.abs(gaps)).mean(), rel=1e-5)
        assert found["abs_delta"] == pytest.approx(np.abs(gaps).mean(), rel=1e-5)
        assert found["entropy"] == pytest.approx(np.mean([e for name in names for e in entropies[name]]), rel=1e-5)
    assert [token["rollout_id"] for token in result["worst_tokens"][:2]] == ["b1", "b2"]


def test_gradient_norm_and_learning_rate_by_hand(model):
    """The norm is that before clipping; a step of SGD-like size cannot hide behind it."""
    settings = {"model": model, "dtype": "float32", "device": "cpu", "threads": 1}
    norms = []
    for clip in (1e9, 1e-3):
        optimizer = OptimizerOptions(lr=2e-3, warmup_steps=4, grad_clip=clip)
        worker = PolicyWorker(0, 1, PolicyOptions(**settings, optimizer=optimizer))
        ids = list(range(10, 20))
        batch = [TrainSegment(ids, [0] + [1] * 9, [0.0, *worker.score([ids])[0]], 1.0, "e", "r")]
        result = worker.train_step(batch, 2)
        assert result["lr"] == pytest.approx(2e-3 * 3 / 4)
        norms.append(result["grad_norm"])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    lp = plain(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])
    (-lp.mean()).backward()  # w = rho = A = 1: the gradient of the loss is that of the mean log-probability
    exact = math.sqrt(sum(float(p.grad.square().sum()) for p in plain.parameters()))
    assert norms == pytest.approx([exact, exact], rel=1e-5)
