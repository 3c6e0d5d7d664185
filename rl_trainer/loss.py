"""The policy loss: algorithm.md section 1. Pure functions on the sampled tokens of a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_trainer.importance import ImportanceWeights, importance_weights, segment_mean
from rl_trainer.options import AlgorithmOptions


def policy_loss(
    lp: Tensor,
    lp_old: Tensor,
    lp_gen: Tensor,
    advantage: Tensor,
    segment: Tensor,
    segments: int,
    divisor: float,
    options: AlgorithmOptions,
    *,
    mask: Tensor | None = None,
    lp_ref: Tensor | None = None,
) -> tuple[Tensor, ImportanceWeights, dict[str, float]]:
    """Loss (scalar), importance weights, and sums over tokens (not means: they add up over micro-batches).

    All arrays are [M], one entry per sampled token; `segment` says which of the `segments` each belongs to; slots
    where `mask` is False may hold anything. `divisor` is the same on every rank and micro-batch: N, or N0 (tokens
    before the sequence mask) where the gradient is multiplied by N0/N afterwards.

    token ratio:    rho_t = exp(lp_t - lp_old_t), clipped to [1 - clip_low, 1 + clip_high]
    sequence ratio: rho_t = exp(mean over the segment of (lp - lp_old)), with its own bounds (GSPO)
    objective:      o_t = min(rho_t A, clip(rho_t) A); dual clip c, only where A < 0: max(o_t, c A)
    loss:           -(1/N) sum_t w_t o_t, w_t = 0 where masked
    KL:             + (beta/N) sum_t keep_t r_t k3_t, k3 = exp(lp_ref - lp) - 1 - (lp_ref - lp), r = exp(lp - lp_gen),
                    with the gradient through r too
    """
    if not lp.shape == lp_old.shape == lp_gen.shape == advantage.shape == segment.shape or lp.dim() != 1:
        raise ValueError(
            f"per-token arrays differ in shape: lp {tuple(lp.shape)}, lp_old {tuple(lp_old.shape)}, "
            f"lp_gen {tuple(lp_gen.shape)}, advantage {tuple(advantage.shape)}, segment {tuple(segment.shape)}"
        )
    mask = torch.ones_like(lp, dtype=torch.bool) if mask is None else mask
    zero = torch.zeros_like(lp)
    lp, lp_old, lp_gen, advantage = (torch.where(mask, x, zero) for x in (lp, lp_old.detach(), lp_gen, advantage))
    weights = importance_weights(lp_old, lp_gen, segment, segments, options.importance, mask)
    keep = weights.token_keep & weights.sequence_keep
    # A masked token's difference may overflow exp: it is replaced before exp, so that no inf * 0 reaches backward.
    difference = torch.where(keep, lp - lp_old, zero)
    low, high = options.clip_low, options.clip_high
    if options.ratio == "sequence":
        low, high = options.sequence_clip_low, options.sequence_clip_high
        difference = segment_mean(lp - lp_old, segment, segments, mask)[segment]
    rho = difference.exp()
    clipped = rho.clamp(1 - low, 1 + high)
    objective = torch.minimum(rho * advantage, clipped * advantage)
    if options.dual_clip is not None:
        objective = torch.where(advantage < 0, torch.maximum(objective, options.dual_clip * advantage), objective)
    loss = -torch.where(keep, weights.weight * objective, zero).sum() / divisor
    sums = {"clipped": float((keep & (rho * advantage > clipped * advantage)).sum())}
    if options.kl_beta > 0:
        if lp_ref is None:
            raise ValueError("kl_beta > 0 needs the reference model's log-probabilities")
        gap = torch.where(keep, lp_ref.detach() - lp, zero)
        k3 = gap.exp() - 1 - gap
        ratio = torch.where(keep, lp - lp_gen, zero).exp()
        kl = torch.where(keep, ratio * k3, zero).sum()
        loss = loss + options.kl_beta * kl / divisor
        sums["kl_ref"] = float(kl.detach())
    return loss, weights, sums
