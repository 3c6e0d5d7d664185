"""What a training step observed: importance figures per environment, the classes of tokens, the worst tokens."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from rl_trainer.importance import ImportanceWeights
from rl_trainer.options import AlgorithmOptions
from rl_trainer.packing import Packed, TrainSegment

WORST = 10
CONTEXT = 8


class StepMetrics:
    """Sums over sampled tokens, kept per environment; `gather` adds the other ranks' sums."""

    def __init__(self, batch: Sequence[TrainSegment], options: AlgorithmOptions) -> None:
        self.batch, self.options = batch, options
        self.sums: dict[str, dict[str, float]] = {}
        self.books: dict[str, dict[str, int]] = {}
        self.worst: list[dict[str, Any]] = []

    def observe(
        self,
        packed: Packed,
        lp: Tensor,
        lp_old: Tensor,
        entropy: Tensor,
        weights: ImportanceWeights,
        sums: dict[str, float],
    ) -> None:
        """One micro-batch. The figures are over sampled tokens before any mask (algorithm.md, importance sampling)."""
        arrays = {
            name: value.detach().cpu().numpy().astype(np.float64)
            for name, value in (("lp", lp_old), ("gen", packed.lp_gen), ("entropy", entropy), ("w", weights.raw))
        }
        token_keep, sequence_keep = weights.token_keep.cpu().numpy(), weights.sequence_keep.cpu().numpy()
        places = packed.segment.cpu().numpy()
        delta = arrays["lp"] - arrays["gen"]
        # A runaway token must not turn a whole metric into inf.
        spread = np.exp(np.minimum(np.abs(delta), 80.0))
        weight = np.exp(np.clip(delta, -80.0, 80.0))
        for local, member in enumerate(packed.members):
            segment, at = self.batch[member], places == local
            count = int(at.sum())
            entry = self.sums.setdefault(segment.environment, {})
            kept, dropped = int((at & sequence_keep).sum()), int((at & ~sequence_keep).sum())
            masked = int((at & ~token_keep).sum())
            figures = {
                "tokens": count,
                "n": kept,
                "sequence_masked": dropped,
                "token_masked": masked,
                "w": float(weight[at].sum()),
                "kl": float((weight[at] - 1 - delta[at]).sum()),
                "exp_abs": float(spread[at].sum()),
                "abs": float(np.abs(delta[at]).sum()),
                "entropy": float(arrays["entropy"][at].sum()),
            }
            for name, value in figures.items():
                entry[name] = entry.get(name, 0.0) + value
            entry["w_max"] = max(entry.get("w_max", 0.0), float(weight[at].max()))
            self._book(segment, kept, dropped, int((at & sequence_keep & ~token_keep).sum()))
            self._worst(segment, at, delta, arrays)
        for name, value in sums.items():
            entry = self.sums.setdefault("", {})
            entry[name] = entry.get(name, 0.0) + value

    def _book(self, segment: TrainSegment, kept: int, dropped: int, masked: int) -> None:
        entry = self.books.setdefault(segment.rollout_id, {})
        counts = {"sequence_mask": dropped}
        if segment.advantage == 0:
            counts["zero_advantage"] = kept
        else:
            counts |= {"token_mask": masked, "trained": kept - masked}
        for kind, tokens in counts.items():
            if tokens:
                entry[kind] = entry.get(kind, 0) + tokens

    def _worst(self, segment: TrainSegment, at: Any, delta: Any, arrays: dict[str, Any]) -> None:
        positions = np.flatnonzero(segment.mask)
        for k in np.argsort(-np.abs(delta[at]), kind="stable")[:WORST]:
            position = int(positions[k])
            self.worst.append(
                {
                    "rollout_id": segment.rollout_id,
                    "environment": segment.environment,
                    "segment": segment.index,
                    "position": position,
                    "token_id": int(segment.token_ids[position]),
                    "lp": float(arrays["lp"][at][k]),
                    "lp_gen": float(arrays["gen"][at][k]),
                    "context_ids": segment.token_ids[max(0, position - CONTEXT) : position + CONTEXT + 1].tolist(),
                }
            )
        self.worst = heapq.nlargest(WORST, self.worst, key=lambda token: abs(token["lp"] - token["lp_gen"]))

    def gather(self, world_size: int) -> None:
        """Add up over ranks (a collective)."""
        if world_size == 1:
            return
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, (self.sums, self.books, self.worst))
        self.sums, self.books, self.worst = {}, {}, []
        for sums, books, worst in parts:
            for environment, figures in sums.items():
                entry = self.sums.setdefault(environment, {})
                for name, value in figures.items():
                    old = entry.get(name, 0.0)
                    entry[name] = max(old, value) if name == "w_max" else old + value
            for rollout_id, counts in books.items():
                book = self.books.setdefault(rollout_id, {})
                for kind, tokens in counts.items():
                    book[kind] = book.get(kind, 0) + tokens
            self.worst += worst
        self.worst = heapq.nlargest(WORST, self.worst, key=lambda token: abs(token["lp"] - token["lp_gen"]))

    def kept_tokens(self) -> int:
        """N: sampled tokens in segments that the sequence mask kept."""
        return int(sum(entry.get("n", 0.0) for entry in self.sums.values()))

    def clipped_tokens(self) -> float:
        """Tokens whose ratio to lp_old was clipped."""
        return self.sums.get("", {}).get("clipped", 0.0)

    def report(self) -> dict[str, Any]:
        """Flat figures over all, `per_environment`, `books`, `worst_tokens`, `warnings` past the configured fraction."""
        environments = {name: entry for name, entry in self.sums.items() if "tokens" in entry}
        total: dict[str, float] = {}
        for entry in environments.values():
            for name, value in entry.items():
                old = total.get(name, 0.0)
                total[name] = max(old, value) if name == "w_max" else old + value
        flat = _figures(total)
        n = max(flat["n"], 1.0)
        extra = self.sums.get("", {})
        if "kl_ref" in extra:
            flat["kl_ref"] = extra["kl_ref"] / n
        limit = self.options.importance.warn_fraction
        warnings = [
            f"{name} is {flat[name]:.1%} (limit {limit:.1%}): trainer and engine disagree"
            for name in ("token_masked_fraction", "sequence_masked_fraction")
            if flat[name] > limit
        ]
        per_environment = {name: _figures(entry) for name, entry in environments.items()}
        for name, entry in environments.items():
            per_environment[name]["loss_token_share"] = entry["n"] / n
        return {
            **flat,
            "per_environment": per_environment,
            "books": self.books,
            "worst_tokens": self.worst,
            "warnings": warnings,
        }


def _figures(entry: dict[str, float]) -> dict[str, float]:
    tokens = entry.get("tokens", 0.0)

    def mean(name: str) -> float:
        return entry.get(name, 0.0) / tokens if tokens else math.nan

    return {
        "tokens": tokens,
        "n": entry.get("n", 0.0),
        "token_masked_fraction": entry.get("token_masked", 0.0) / tokens if tokens else 0.0,
        "sequence_masked_fraction": entry.get("sequence_masked", 0.0) / tokens if tokens else 0.0,
        "w_mean": mean("w"),
        "w_max": entry.get("w_max", math.nan),
        "kl_gen_train": mean("kl"),
        "exp_abs_delta": mean("exp_abs"),
        "abs_delta": mean("abs"),
        "entropy": mean("entropy"),
    }
