"""Packing segments into micro-batches by token budget, without padding, and attention that respects the packing.

Rollouts of one group begin with the same prompt. It is computed once: a trunk is the tokens before the first sampled one, its
branches are what follows in each segment, and a branch attends to its trunk and to itself. Log-probabilities and gradients are those
of the whole segments (the prompt's gradient is the sum over its branches). Not covered: sharing what was sampled itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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

    @property
    def prompt(self) -> int:
        """Number of tokens before the first sampled one (all of them where none was sampled)."""
        return int(self.mask.argmax()) if self.mask.any() else len(self.token_ids)


Trunks = tuple[tuple[int, tuple[int, ...]], ...]


def shared_prompts(batch: Sequence[TrainSegment], members: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(tokens of the trunk, the segments that begin with it), in order of appearance. A segment alone is all trunk."""
    found: dict[bytes, list[int]] = {}
    for index in members:
        segment = batch[index]
        found.setdefault(segment.token_ids[: segment.prompt].tobytes(), []).append(index)
    return [
        (batch[group[0]].prompt if len(group) > 1 else len(batch[group[0]].token_ids), group)
        for group in found.values()
    ]


@dataclass(frozen=True)
class Packed:
    """One micro-batch: trunks end to end, each followed by its branches.

    ids, position_ids: int64 [1, T]; a position is that in the token's own segment. trunks: (tokens of the trunk, tokens of each
    branch) in order; they sum to T. source: int64 [M], index of the hidden state that predicts each sampled token.
    targets [M]; segment [M] in 0..S-1; lp_gen, advantage [M] float32; members: index into the batch, [S].
    """

    ids: Tensor
    position_ids: Tensor
    trunks: Trunks
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


def plan_micro_batches(batch: Sequence[TrainSegment], indices: Sequence[int], budget: int) -> list[list[int]]:
    """Micro-batches of at most `budget` packed tokens; a segment longer than that has one of its own.

    Segments that share a prompt stay together as far as the budget allows, then the prompt is computed again.
    """
    pieces: list[tuple[int, list[int]]] = []
    for trunk, group in shared_prompts(batch, indices):
        size, piece = trunk, list[int]()
        for index in sorted(group, key=lambda i: (-len(batch[i].token_ids), i)):
            branch = len(batch[index].token_ids) - trunk
            if piece and size + branch > budget:
                pieces.append((size, piece))
                size, piece = trunk, []
            size += branch
            piece.append(index)
        pieces.append((size, piece))
    bins = plan_bins([size for size, _ in pieces], budget)
    return [[index for k in members for index in pieces[k][1]] for members in bins]


def pack(batch: Sequence[TrainSegment], members: Sequence[int], device: str | torch.device = "cpu") -> Packed:
    """The segments `members` of `batch` as one micro-batch; what belongs to sampled tokens is in the members' order."""
    ids: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    trunks: list[tuple[int, tuple[int, ...]]] = []
    index_of: dict[int, NDArray[np.int64]] = {}  # segment -> where each of its tokens lies
    at = 0
    for trunk, group in shared_prompts(batch, members):
        stem = np.arange(at, at + trunk)
        ids.append(batch[group[0]].token_ids[:trunk])
        places.append(np.arange(trunk))
        at += trunk
        branches = []
        for index in group:
            branch = batch[index].token_ids[trunk:]
            index_of[index] = np.concatenate([stem, np.arange(at, at + len(branch))])
            if len(branch):
                ids.append(branch)
                places.append(np.arange(trunk, trunk + len(branch)))
                branches.append(len(branch))
                at += len(branch)
        trunks.append((trunk, tuple(branches)))
    chosen = [batch[i] for i in members]
    positions = [np.flatnonzero(s.mask) for s in chosen]

    def tensor(parts: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(parts), dtype=dtype).to(device)

    return Packed(
        ids=tensor(ids, torch.int64)[None],
        position_ids=tensor(places, torch.int64)[None],
        trunks=tuple(trunks),
        source=tensor([index_of[i][where - 1] for i, where in zip(members, positions, strict=True)], torch.int64),
        targets=tensor([s.token_ids[where] for s, where in zip(chosen, positions, strict=True)], torch.int64),
        segment=tensor([np.full(len(where), k) for k, where in enumerate(positions)], torch.int64),
        lp_gen=tensor([s.lp_gen[where] for s, where in zip(chosen, positions, strict=True)], torch.float32),
        advantage=tensor(
            [np.full(len(where), s.advantage) for s, where in zip(chosen, positions, strict=True)], torch.float32
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
    trunks: Trunks | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment: [1, heads, T, D] -> [1, T, heads, D]; a branch sees its trunk and itself.

    Registered with transformers as ATTENTION; `trunks` comes through the model's keyword arguments.
    """
    if trunks is None:
        raise ValueError("packed attention was called without trunks")
    if dropout and module.training:
        raise ValueError("the policy's attention dropout must be 0: log-probabilities would be random")
    if softcap is not None or s_aux is not None:
        raise ValueError("attention with capped scores or sinks is not supported: log-probabilities would be wrong")
    longest = max(trunk + max(branches, default=0) for trunk, branches in trunks)
    window = getattr(module, "sliding_window", None)
    if window and longest > window:
        raise ValueError(f"a segment of {longest} tokens exceeds the model's sliding window")
    attend = partial(
        nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    outputs: list[Tensor] = []
    at = 0
    for trunk, branches in trunks:
        stem = slice(at, at + trunk)
        outputs.append(attend(query[:, :, stem], key[:, :, stem], value[:, :, stem], is_causal=True))
        at += trunk
        for length in branches:
            own = slice(at, at + length)
            keys = torch.cat([key[:, :, stem], key[:, :, own]], dim=2)
            values = torch.cat([value[:, :, stem], value[:, :, own]], dim=2)
            seen = torch.ones(length, trunk + length, dtype=torch.bool, device=query.device).tril(trunk)
            outputs.append(attend(query[:, :, own], keys, values, attn_mask=seen))
            at += length
    return torch.cat(outputs, dim=2).transpose(1, 2), None


ATTENTION = "omnigym_packed"


def register_attention() -> None:
    """Make ATTENTION known to transformers (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
