"""Packing: budget, boundaries, neighbours, and chunked log-probabilities (pitfalls 2, 3, 9, 13, 17)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_trainer.logprobs import token_logprobs
from rl_trainer.options import AlgorithmOptions, PolicyOptions
from rl_trainer.packing import TrainSegment, pack, plan_bins
from rl_trainer.policy import PolicyWorker
from rl_trainer.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def options(model, **kwargs):
    return PolicyOptions(model=model, dtype="float32", device="cpu", threads=1, **kwargs)


def segment(ids, mask, name="r"):
    return TrainSegment(ids, mask, [-1.0 * t for t in range(len(ids))], 1.0, "e", name)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100))
def test_bins_hold_everything_once_within_the_budget(lengths, budget):
    bins = plan_bins(lengths, budget)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(len(m) == 1 or sum(lengths[i] for i in m) <= budget for m in bins)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6), st.randoms())
def test_packed_targets_are_the_sampled_tokens_with_their_own_figures(masks, random):
    batch = []
    for k, mask in enumerate(masks):
        mask = [0, *map(int, mask)]
        batch.append(segment([100 * k + t for t in range(len(mask))], mask, f"r{k}"))
    order = list(range(len(batch)))
    random.shuffle(order)
    packed = pack(batch, order)
    assert packed.ids.shape[1] == sum(packed.lengths)
    expected = [(i, t) for i in order for t in np.flatnonzero(batch[i].mask)]
    assert packed.targets.tolist() == [100 * i + t for i, t in expected]
    assert packed.lp_gen.tolist() == [-float(t) for _, t in expected]
    assert [order[s] for s in packed.segment.tolist()] == [i for i, _ in expected]
    assert packed.ids[0, packed.source].tolist() == [100 * i + t - 1 for i, t in expected]
    assert packed.position_ids[0, packed.source].tolist() == [t - 1 for _, t in expected]


def test_segments_that_do_not_fit_together_are_refused():
    for ids, mask, lp, message in (
        ([1, 2], [0], [0, 0], "differ in length"),
        ([1, 2], [1, 0], [0, 0], "nothing stands before"),
        ([1, 2], [0, 2], [0, 0], "other than 0 and 1"),
        ([1, 2], [0, 1], [0, float("nan")], "not finite"),
    ):
        with pytest.raises(ValueError, match=f"rollout x, segment 3: .*{message}"):
            TrainSegment(ids, mask, lp, 1.0, "e", "x", 3)


def test_packed_equals_single_and_neighbours_change_nothing(model):
    worker = PolicyWorker(0, 1, options(model))
    random = np.random.default_rng(0)
    batch = [segment(random.integers(3, 300, n), [0] * 2 + [1] * (n - 2)) for n in (9, 31, 17, 4)]
    with torch.no_grad():
        single = [worker.scorer(pack(batch, [i]))[0] for i in range(4)]
        for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
            packed = pack(batch, order)
            lp = worker.scorer(packed)[0]
            for place, i in enumerate(order):
                torch.testing.assert_close(lp[packed.segment == place], single[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_ratio_is_one_before_the_first_update_at_every_temperature(model, temperature):
    from transformers import AutoModelForCausalLM

    worker = PolicyWorker(0, 1, options(model, algorithm=AlgorithmOptions(temperature=temperature)))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(20, 45)
    with torch.no_grad():
        sampler = (plain(ids[None]).logits[0, :-1] / temperature).log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    lp = np.concatenate([[0], sampler.numpy()])
    result = worker.train_step([TrainSegment(ids.numpy(), [0] + [1] * 24, lp, 0.0, "e", "r")], 0)
    assert result["w_mean"] == pytest.approx(1, abs=1e-5) and result["abs_delta"] < 1e-5


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunked_logprobs_equal_autograd(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets, outer = torch.randint(0, 11, (7,)), torch.randn(7, dtype=torch.float64)
    full = (hidden @ weight.T / 0.7).log_softmax(-1)
    expected = torch.autograd.grad((full.gather(1, targets[:, None])[:, 0] * outer).sum(), (hidden, weight))
    lp, entropy = token_logprobs(hidden, weight, targets, temperature=0.7, chunk=chunk)
    got = torch.autograd.grad((lp * outer).sum(), (hidden, weight))
    torch.testing.assert_close(lp, full.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
