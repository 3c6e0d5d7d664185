"""The loss against a float64 reference written here, token by token, for every option; NaN in masked slots."""

import math

import pytest
import torch

from rl_trainer.loss import policy_loss
from rl_trainer.options import AlgorithmOptions, ImportanceOptions

OPTIONS = {
    "default": {},
    "truncate": {"importance": {"mode": "truncate"}},
    "none": {"importance": {"mode": "none"}},
    "token_only": {"importance": {"sequence_mask": False}},
    "sequence_only": {"importance": {"token_mask": False}},
    "bounds": {"importance": {"low": 0.8, "high": 1.2, "sequence_max": 1.7}},
    "clip": {"clip_low": 0.05, "clip_high": 0.1},
    "dual": {"dual_clip": 1.1, "clip_low": 0.1},
    "gspo": {"ratio": "sequence"},
    "gspo_wide": {"ratio": "sequence", "sequence_clip_low": 0.2, "sequence_clip_high": 0.3, "dual_clip": 1.05},
    "kl": {"kl_beta": 0.3},
    "all": {"kl_beta": 0.2, "dual_clip": 1.2, "clip_low": 0.1, "importance": {"low": 0.7, "high": 1.5}},
}


def make(seed=0, spread=0.4):
    g = torch.Generator().manual_seed(seed)
    segment = torch.tensor([0] * 5 + [1] * 9 + [2] * 3 + [3] * 7)
    m = len(segment)

    def draw(scale):
        return torch.randn(m, generator=g, dtype=torch.float64) * scale

    lp = draw(1) - 2
    old, gen, ref = lp + draw(0.3), lp + draw(spread), lp + draw(0.3)
    gen[segment == 2] += 3.0  # a segment that the sequence mask drops
    advantage = torch.tensor([1.3, -0.7, 2.0, -1.6], dtype=torch.float64)[segment]
    return lp, old, gen, ref, advantage, segment


def reference(lp, old, gen, ref, advantage, segment, n, o):
    """Scalar loops over Python floats wrapped as 0-d tensors; nothing shared with the implementation."""
    total = torch.zeros((), dtype=torch.float64)
    for s in range(4):
        at = [t for t in range(len(segment)) if segment[t] == s]
        gap = sum(math.exp(abs(float(old[t] - gen[t]))) for t in at) / len(at)
        imp = o.importance
        if imp.mode != "none" and imp.sequence_mask and gap > imp.sequence_max:
            continue
        rho_segment = torch.exp(sum(lp[t] - old[t] for t in at) / len(at))
        for t in at:
            w = math.exp(float(old[t] - gen[t]))
            if imp.mode == "none":
                w = 1.0
            elif imp.mode == "truncate":
                w = min(max(w, imp.low), imp.high)
            elif imp.token_mask and not imp.low <= w <= imp.high:
                continue
            rho, low, high = torch.exp(lp[t] - old[t]), 1 - o.clip_low, 1 + o.clip_high
            if o.ratio == "sequence":
                rho, low, high = rho_segment, 1 - o.sequence_clip_low, 1 + o.sequence_clip_high
            a = float(advantage[t])
            bounded = (
                rho
                if low <= rho.item() <= high
                else torch.tensor(low if float(rho) < low else high, dtype=torch.float64)
            )
            value = rho * a if float(rho * a) <= float(bounded * a) else bounded * a
            if o.dual_clip and a < 0 and float(value) < o.dual_clip * a:
                value = torch.tensor(o.dual_clip * a, dtype=torch.float64)
            total = total - w * value / n
            if o.kl_beta:
                k3 = torch.exp(ref[t] - lp[t]) - 1 - (ref[t] - lp[t])
                total = total + o.kl_beta / n * torch.exp(lp[t] - gen[t]) * k3
    return total


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_the_reference(name, seed):
    options = AlgorithmOptions.model_validate(OPTIONS[name])
    lp, old, gen, ref, advantage, segment = make(seed)
    mine, theirs = lp.clone().requires_grad_(), lp.clone().requires_grad_()
    loss, _, _ = policy_loss(mine, old, gen, advantage, segment, 4, 24.0, options, lp_ref=ref)
    expected = reference(theirs, old, gen, ref, advantage, segment, 24.0, options)
    assert float(expected) != 0
    loss.backward()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", OPTIONS)
def test_masked_slots_may_hold_nan_and_inf(name):
    options = AlgorithmOptions.model_validate(OPTIONS[name])
    arrays = make()
    clean = [x.clone() for x in arrays[:5]]
    clean[0].requires_grad_()
    expected, weights, sums = policy_loss(*clean[:3], clean[4], arrays[5], 4, 24.0, options, lp_ref=clean[3])
    expected.backward()
    junk = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    dirty = [torch.cat([x.detach(), junk]) for x in arrays[:5]]
    dirty[0].requires_grad_()
    segment = torch.cat([arrays[5], torch.tensor([0, 1, 3])])
    mask = torch.arange(27) < 24
    loss, padded, padded_sums = policy_loss(*dirty[:3], dirty[4], segment, 4, 24.0, options, lp_ref=dirty[3], mask=mask)
    loss.backward()
    assert float(loss) == float(expected) and sums == padded_sums
    torch.testing.assert_close(dirty[0].grad, torch.cat([clean[0].grad, torch.zeros(3, dtype=torch.float64)]))
    assert torch.equal(padded.weight[:24], weights.weight) and not padded.weight[24:].any()


def test_a_far_off_masked_token_gives_no_nan():
    lp = torch.tensor([-1.0, -2000.0], requires_grad=True)
    gen, advantage = torch.tensor([-1.0, -0.5]), torch.ones(2)
    old = torch.tensor([-1.0, -2000.0])
    options = AlgorithmOptions(kl_beta=0.1, importance=ImportanceOptions(sequence_mask=False))
    loss, weights, _ = policy_loss(
        lp, old, gen, advantage, torch.zeros(2, dtype=torch.long), 1, 2.0, options, lp_ref=gen
    )
    loss.backward()
    assert weights.weight.tolist() == [1.0, 0.0] and lp.grad[1] == 0 and torch.isfinite(lp.grad).all()


def test_shapes_must_agree():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="differ in shape"):
        policy_loss(x, x, torch.zeros(1), x, torch.zeros(3, dtype=torch.long), 1, 1.0, AlgorithmOptions())
    with pytest.raises(ValueError, match="reference"):
        policy_loss(x, x, x, x, torch.zeros(3, dtype=torch.long), 1, 1.0, AlgorithmOptions(kl_beta=1))
