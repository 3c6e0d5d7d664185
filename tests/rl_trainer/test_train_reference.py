"""The worker's loss and its gradient for all parameters against a float64 model and formulas written here, for every option.

Batches are cut into micro-batches of 90 tokens, the reference is computed sequence by sequence without any.
"""

import math

import numpy as np
import pytest
import torch
from test_train_policy import broken
from transformers import AutoModelForCausalLM

from rl_trainer.advantages import Outcome, compute_advantages
from rl_trainer.options import AlgorithmOptions, OptimizerOptions, PolicyOptions
from rl_trainer.packing import TrainSegment, pack
from rl_trainer.policy import PolicyWorker, batch_loss
from rl_trainer.selfcheck import make_batch
from rl_trainer.tiny_model import make_tiny_model

OPTIONS = {
    "default": {},
    "truncate": {"importance": {"mode": "truncate", "low": 0.9, "high": 1.1}},
    "none": {"importance": {"mode": "none"}},
    "token_only": {"importance": {"sequence_mask": False, "low": 0.9, "high": 1.1}},
    "sequence_only": {"importance": {"token_mask": False}},
    "clip": {"clip_low": 0.03, "clip_high": 0.05},
    "dual": {"dual_clip": 1.03, "clip_low": 0.1},
    "gspo": {"ratio": "sequence", "sequence_clip_low": 0.3, "sequence_clip_high": 0.4},
    "kl": {"kl_beta": 0.3},
    "temperature": {"temperature": 0.7, "kl_beta": 0.1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [str(make_tiny_model(tmp_path_factory.mktemp("m"), seed=seed)) for seed in (0, 5)]


def mixed(worker):
    """Segments that the masks drop, one without advantage, and two more that share the first one's prompt."""
    batch, random = broken(make_batch(worker)), np.random.default_rng(1)
    first = batch[0]
    for k, n in enumerate((9, 20)):
        ids = np.concatenate([first.token_ids[: first.prompt], random.integers(3, 300, n)])
        mask = (np.arange(len(ids)) >= first.prompt) & (
            (np.arange(len(ids)) == first.prompt) | (random.random(len(ids)) > 0.3)
        )
        lp = np.concatenate([[0.0], worker.score([ids.tolist()])[0]]) + random.normal(0, 0.1, len(ids))
        batch.append(TrainSegment(ids, mask.astype(np.int64), lp * mask, 0.8 - 2.0 * k, "selfcheck", f"sibling-{k}"))
    assert len(pack(batch, [0, 6, 7]).trunks) == 1
    return batch


def make_worker(folders, algorithm, steps=1):
    return PolicyWorker(
        0,
        1,
        PolicyOptions(
            model=folders[0],
            reference=folders[1],
            dtype="float32",
            device="cpu",
            threads=1,
            micro_batch_tokens=90,
            algorithm=AlgorithmOptions.model_validate({**algorithm, "optimizer_steps_per_batch": steps}),
            optimizer=OptimizerOptions(lr=1e-3, warmup_steps=0, grad_clip=1e9),
        ),
    )


class Exact:
    """A float64 copy of a checkpoint: log-probabilities of one sequence's sampled tokens, with gradient."""

    def __init__(self, folder, weights=None):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        if weights is not None:
            self.model.load_state_dict({name: value.double() for name, value in weights.items()}, strict=False)

    def __call__(self, segment, temperature):
        ids = torch.as_tensor(segment.token_ids)
        at = torch.as_tensor(np.flatnonzero(segment.mask))
        table = (self.model(ids[None]).logits[0] / temperature).log_softmax(-1)
        return table[at - 1].gather(1, ids[at][:, None])[:, 0]

    def gradient(self):
        return {name: p.grad for name, p in self.model.named_parameters()}


def reference_loss(policy, old, other, batch, o):
    """-(1/N) sum keep w min(rho A, clip(rho) A) + (beta/N) sum keep r k3, token by token."""
    terms, n = [], 0
    for segment in batch:
        lp = policy(segment, o.temperature)
        with torch.no_grad():
            lp_old = lp.detach() if old is None else old(segment, o.temperature)
            lp_ref = other(segment, o.temperature)
        gen = segment.lp_gen[segment.mask == 1]
        delta = [float(x) - float(y) for x, y in zip(lp_old, gen, strict=True)]
        masks = o.importance.mode != "none"
        if masks and o.importance.sequence_mask:
            if sum(math.exp(abs(d)) for d in delta) / len(delta) > o.importance.sequence_max:
                continue
        n += len(delta)
        whole = torch.exp((lp - lp_old).mean())
        for t, d in enumerate(delta):
            w = math.exp(d)
            if not masks:
                w = 1.0
            elif o.importance.mode == "truncate":
                w = min(max(w, o.importance.low), o.importance.high)
            elif o.importance.token_mask and not o.importance.low <= w <= o.importance.high:
                continue
            if o.ratio == "sequence":
                rho, low, high = whole, 1 - o.sequence_clip_low, 1 + o.sequence_clip_high
            else:
                rho, low, high = torch.exp(lp[t] - lp_old[t]), 1 - o.clip_low, 1 + o.clip_high
            bounded = rho if low <= rho.item() <= high else torch.tensor(min(max(rho.item(), low), high)).double()
            a = segment.advantage
            value = rho * a if rho.item() * a <= bounded.item() * a else bounded * a
            if o.dual_clip is not None and a < 0 and value.item() < o.dual_clip * a:
                value = torch.tensor(o.dual_clip * a).double()
            terms.append(-w * value)
            if o.kl_beta:
                gap = lp_ref[t] - lp[t]
                terms.append(o.kl_beta * torch.exp(lp[t] - float(gen[t])) * (torch.exp(gap) - 1 - gap))
    return sum(terms) / n


def assert_same(worker, exact, loss, expected):
    assert loss == pytest.approx(float(expected), rel=1e-5)
    mine = {name: p.grad for name, p in worker.model.named_parameters() if p.grad is not None}
    theirs = exact.gradient()
    assert set(mine) == set(theirs)
    error = math.sqrt(sum(float((mine[k].double() - theirs[k]).square().sum()) for k in mine))
    assert error / math.sqrt(sum(float(g.square().sum()) for g in theirs.values())) < 1e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_of_one_step(folders, name):
    worker = make_worker(folders, OPTIONS[name])
    batch, exact = mixed(worker), Exact(folders[0])
    loss = batch_loss(worker, batch, backward=True)
    expected = reference_loss(exact, None, Exact(folders[1]), batch, worker.options.algorithm)
    expected.backward()
    assert_same(worker, exact, loss, expected)


@pytest.mark.parametrize("name", ["default", "clip", "dual", "gspo", "kl"])
def test_loss_and_gradient_of_the_second_of_two_steps(folders, name):
    """lp_old stays that of the batch's start: ratios are not 1, clips bite, and w still compares the start with the sampler."""
    once, twice = make_worker(folders, OPTIONS[name]), make_worker(folders, OPTIONS[name], steps=2)
    batch, start = mixed(once), Exact(folders[0])
    once.train_step(batch, 0)
    result = twice.train_step(batch, 0)
    exact = Exact(folders[0], once.weights())
    o = twice.options.algorithm
    expected = reference_loss(exact, start, Exact(folders[1]), batch, o)
    expected.backward()
    assert_same(twice, exact, result["loss"], expected)
    if name in ("clip", "dual", "gspo"):  # the option mattered
        wide = o.model_copy(update={"clip_low": 0.9, "clip_high": 9.0, "dual_clip": None, "ratio": "token"})
        assert abs(float(reference_loss(exact, start, Exact(folders[1]), batch, wide)) - float(expected)) > 1e-4


@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_from_rewards_to_gradient(folders, baseline, normalize_std):
    """The advantages' options, end to end: two groups of three, one rollout truncated, one failed."""
    worker = make_worker(folders, {"baseline": baseline, "normalize_std": normalize_std})
    rewards = [0.25, 1.0, 0.5, 0.0, 0.75, 0.0]
    outcomes = [
        Outcome(f"rollout-{k}", f"g{k // 3}", r, truncated=k == 2, failed=k == 5) for k, r in enumerate(rewards)
    ]
    found = compute_advantages(outcomes, worker.options.algorithm)
    by_hand = [None] * 6
    for pair in ((0, 1), (3, 4)):
        for me, other in (pair, pair[::-1]):
            base = rewards[other] if baseline == "leave_one_out" else (rewards[me] + rewards[other]) / 2
            spread = abs(rewards[me] - rewards[other]) / math.sqrt(2) + 1e-6 if normalize_std else 1.0
            by_hand[me] = (rewards[me] - base) / spread
    segments = make_batch(worker)

    def batch(values):
        return [
            TrainSegment(s.token_ids, s.mask, s.lp_gen, value, s.environment, s.rollout_id)
            for s, value in zip(segments, values, strict=True)
            if value is not None
        ]

    mine = batch([found[o.rollout_id].value if found[o.rollout_id].kind == "valid" else None for o in outcomes])
    exact = Exact(folders[0])
    loss = batch_loss(worker, mine, backward=True)
    expected = reference_loss(exact, None, exact, batch(by_hand), worker.options.algorithm)
    expected.backward()
    assert len(mine) == 4
    assert_same(worker, exact, loss, expected)
