"""Masked importance sampling: algorithm.md section 1 [paper; bounds ours]. Pure functions, all detached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_trainer.options import ImportanceOptions


@dataclass(frozen=True)
class ImportanceWeights:
    """weight: float [M], 0 where masked. token_keep, sequence_keep: bool [M]. raw: exp(lp_old - lp_gen), [M]."""

    weight: Tensor
    token_keep: Tensor
    sequence_keep: Tensor
    raw: Tensor


def segment_mean(values: Tensor, segment: Tensor, segments: int, mask: Tensor | None = None) -> Tensor:
    """Mean of `values` [M] over the tokens of each segment -> [S]; a segment without tokens gives 0."""
    one = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    kept = values if mask is None else torch.where(mask, values, torch.zeros_like(values))
    total = torch.zeros(segments, dtype=values.dtype, device=values.device).index_add(0, segment, kept)
    count = torch.zeros_like(total).index_add(0, segment, one)
    return total / count.clamp(min=1)


@torch.no_grad()
def importance_weights(
    lp_old: Tensor, lp_gen: Tensor, segment: Tensor, segments: int, options: ImportanceOptions, mask: Tensor
) -> ImportanceWeights:
    """w = exp(lp_old - lp_gen) for sampled tokens [M]; `segment` [M] in 0..segments-1; `mask` [M] bool.

    mask: tokens with w outside [low, high] get weight 0 (if token_mask). truncate: w clamped to [low, high].
    none: w = 1 and no masks. A segment with mean_t exp(|lp_old - lp_gen|) > sequence_max is dropped whole
    (if sequence_mask). Slots where `mask` is False may hold anything, NaN included.
    """
    zero = torch.zeros_like(lp_old)
    delta = torch.where(mask, lp_old, zero) - torch.where(mask, lp_gen, zero)
    raw = delta.exp()
    everything = torch.ones_like(mask)
    token_keep, sequence_keep, weight = everything, everything, raw
    if options.mode == "none":
        weight = torch.ones_like(raw)
    else:
        if options.mode == "truncate":
            weight = raw.clamp(options.low, options.high)
        elif options.token_mask:
            token_keep = (raw >= options.low) & (raw <= options.high)
        if options.sequence_mask:
            spread = segment_mean(delta.abs().exp(), segment, segments, mask)
            sequence_keep = (spread <= options.sequence_max)[segment]
    weight = torch.where(mask & token_keep & sequence_keep, weight, zero)
    return ImportanceWeights(weight, mask & token_keep, mask & sequence_keep, raw)
