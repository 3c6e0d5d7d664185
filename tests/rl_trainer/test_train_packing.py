"""Packing: budget, boundaries, neighbours, and chunked log-probabilities (pitfalls 2, 3, 9, 13, 17)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_trainer.logprobs import token_logprobs
from rl_trainer.options import AlgorithmOptions, PolicyOptions
from rl_trainer.packing import TrainSegment, pack, plan_bins, plan_micro_batches
from rl_trainer.policy import PolicyWorker, gradients
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


@st.composite
def groups(draw):
    """Segments of a few tasks: those of one task begin with the same tokens, up to the first sampled one."""
    batch = []
    for task in range(draw(st.integers(1, 4))):
        prompt = [1000 * (task + 1) + t for t in range(draw(st.integers(1, 6)))]
        for _ in range(draw(st.integers(1, 4))):
            k = len(batch)
            tail = draw(st.lists(st.booleans(), min_size=0, max_size=8))
            mask = [0] * len(prompt) + ([1, *map(int, tail)] if draw(st.booleans()) or tail else [])
            ids = prompt + [100 * (k + 1) + t for t in range(len(mask) - len(prompt))]
            batch.append(TrainSegment(ids, mask, [-1.0 * t for t in range(len(ids))], float(k), "e", f"r{k}"))
    order = draw(st.permutations(range(len(batch))))
    return batch, order


@given(groups())
def test_packed_targets_are_the_sampled_tokens_with_their_own_figures(made):
    batch, order = made
    packed = pack(batch, order)
    assert packed.ids.shape == packed.position_ids.shape
    assert packed.ids.shape[1] == sum(trunk + sum(branches) for trunk, branches in packed.trunks)
    expected = [(i, t) for i in order for t in np.flatnonzero(batch[i].mask)]
    assert packed.targets.tolist() == [batch[i].token_ids[t] for i, t in expected]
    assert packed.lp_gen.tolist() == [-float(t) for _, t in expected]
    assert packed.advantage.tolist() == [float(i) for i, _ in expected]
    assert [order[s] for s in packed.segment.tolist()] == [i for i, _ in expected]
    assert packed.ids[0, packed.source].tolist() == [batch[i].token_ids[t - 1] for i, t in expected]
    assert packed.position_ids[0, packed.source].tolist() == [t - 1 for _, t in expected]


@given(groups(), st.integers(1, 30))
def test_micro_batches_hold_every_segment_once_within_the_budget_and_a_prompt_once(made, budget):
    batch, order = made
    plan = plan_micro_batches(batch, order, budget)
    assert sorted(i for members in plan for i in members) == sorted(order)
    for members in plan:
        tokens = pack(batch, members).ids.shape[1]
        assert len(members) == 1 or tokens <= budget
    (whole,) = plan_micro_batches(batch, order, 10_000)
    prompts = {tuple(batch[i].token_ids[: batch[i].prompt]) for i in order}
    after = sum(len(batch[i].token_ids) - batch[i].prompt for i in order)
    assert pack(batch, whole).ids.shape[1] == sum(map(len, prompts)) + after


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


def test_a_shared_prompt_gives_the_log_probabilities_and_gradients_of_whole_segments(model):
    """Against transformers' own attention on one padded sequence after the other."""
    from transformers import AutoModelForCausalLM

    random = np.random.default_rng(3)
    batch = []
    for n, answers in ((11, (5, 1, 9)), (4, (7, 3)), (6, (8,))):
        prompt = random.integers(3, 300, n).tolist()
        for length in answers:
            ids = prompt + random.integers(3, 300, length + 2).tolist()
            mask = [0] * n + [1] * length + [0, 1]  # a tool's output stands between
            lp = random.normal(-3, 1, len(ids))
            batch.append(TrainSegment(ids, mask, lp, float(random.normal()), "e", f"r{len(batch)}"))
    worker = PolicyWorker(0, 1, options(model))
    packed = pack(batch, range(len(batch)))
    assert [len(branches) for _, branches in packed.trunks] == [3, 2, 0]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lp = worker.scorer(packed)[0]
    outer = torch.linspace(-1, 1, len(lp))
    expected = []
    for s in batch:
        ids = torch.as_tensor(s.token_ids)
        at = torch.as_tensor(np.flatnonzero(s.mask))
        expected.append(plain(ids[None]).logits[0].log_softmax(-1)[at - 1, ids[at]])
    torch.testing.assert_close(lp, torch.cat(expected), rtol=0, atol=3e-6)
    (torch.cat(expected) * outer).sum().backward()
    (lp * outer).sum().backward()
    for (name, mine), theirs in zip(worker.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    worker.optimizer.zero_grad(set_to_none=True)
    whole = gradients(worker, batch, 4096)
    for budget in (1, 16, 30):
        split = gradients(worker, batch, budget)
        assert float((split - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


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
