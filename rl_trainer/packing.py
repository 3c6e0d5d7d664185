"""Packing segments into micro-batches by token budget, without padding, and attention that respects the packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainSegment:
    """One segment of a valid rollout. token_ids int [T], mask [T] (1 = sampled here), lp_gen float [T]."""

    token_ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    lp_gen: NDArray[np.float64]
    advantage: float
    environment: str
    rollout_id: str
    index: int = 0

    def __post_init__(self) -> None:
        for name, dtype in (("token_ids", np.int64), ("mask", np.int64), ("lp_gen", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        where = f"rollout {self.rollout_id}, segment {self.index}"
        if not self.token_ids.shape == self.mask.shape == self.lp_gen.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"{where}: arrays differ in length: {self.token_ids.shape} ids, {self.mask.shape} mask, "
                f"{self.lp_gen.shape} lp_gen"
            )
        if not np.isin(self.mask, (0, 1)).all():
            raise ValueError(f"{where}: the mask holds values other than 0 and 1")
        if self.mask.size and self.mask[0]:
            raise ValueError(f"{where}: the first token is marked as sampled, but nothing stands before it")
        if not np.isfinite(self.lp_gen[self.mask == 1]).all():
            raise ValueError(f"{where}: a sampled token's lp_gen is not finite")
        if not np.isfinite(self.advantage):
            raise ValueError(f"{where}: advantage is {self.advantage}")

    @property
    def sampled(self) -> int:
        """Number of tokens that this segment sampled."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Packed:
    """One micro-batch: segments end to end.

    ids, position_ids: int64 [1, T]; positions restart at 0 in each segment. lengths: tokens per segment.
    source: int64 [M], index of the hidden state that predicts each sampled token (its position minus one).
    targets [M]; segment [M] in 0..S-1; lp_gen, advantage [M] float32; members: index into the batch, [S].
    """

    ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    source: Tensor
    targets: Tensor
    segment: Tensor
    lp_gen: Tensor
    advantage: Tensor
    members: tuple[int, ...]


def plan_bins(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing: indices per bin, at most `budget` tokens each; a longer segment has a bin of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[index]
        for place, free in enumerate(room):
            if size <= free:
                bins[place].append(index)
                room[place] -= size
                break
        else:
            bins.append([index])
            room.append(budget - size)
    return bins


def pack(batch: Sequence[TrainSegment], members: Sequence[int], device: str | torch.device = "cpu") -> Packed:
    """The segments `members` of `batch`, in that order, as one micro-batch."""
    chosen = [batch[i] for i in members]
    lengths = tuple(len(s.token_ids) for s in chosen)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    positions = [np.flatnonzero(s.mask) for s in chosen]

    def tensor(parts: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(parts), dtype=dtype).to(device)

    return Packed(
        ids=tensor([s.token_ids for s in chosen], torch.int64)[None],
        position_ids=tensor([np.arange(n) for n in lengths], torch.int64)[None],
        lengths=lengths,
        source=tensor([at + start - 1 for at, start in zip(positions, starts, strict=True)], torch.int64),
        targets=tensor([s.token_ids[at] for s, at in zip(chosen, positions, strict=True)], torch.int64),
        segment=tensor([np.full(len(at), k) for k, at in enumerate(positions)], torch.int64),
        lp_gen=tensor([s.lp_gen[at] for s, at in zip(chosen, positions, strict=True)], torch.float32),
        advantage=tensor(
            [np.full(len(at), s.advantage) for s, at in zip(chosen, positions, strict=True)], torch.float32
        ),
        members=tuple(members),
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_lengths: tuple[int, ...] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment: [1, heads, T, D] -> [1, T, heads, D]; cost sum of squares, no mask.

    Registered with transformers as ATTENTION; `segment_lengths` comes through the model's keyword arguments.
    """
    if segment_lengths is None:
        raise ValueError("packed attention was called without segment_lengths")
    if dropout and module.training:
        raise ValueError("the policy's attention dropout must be 0: log-probabilities would be random")
    if getattr(module, "sliding_window", None) and max(segment_lengths) > module.sliding_window:  # type: ignore[operator]
        raise ValueError(f"a segment of {max(segment_lengths)} tokens exceeds the model's sliding window")
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(torch.split(x, list(segment_lengths), dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


ATTENTION = "omnigym_packed"


def register_attention() -> None:
    """Make ATTENTION known to transformers (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
