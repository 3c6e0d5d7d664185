"""From the rollouts of a step to what is trained on, and to the books. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gym_servers.protocol import Rollout
from rl_trainer.advantages import Advantage, Outcome
from rl_trainer.books import Books
from rl_trainer.metrics import sampled_tokens
from rl_trainer.packing import TrainSegment


def rollout_key(rollout: Rollout) -> str:
    """Name of a rollout within its step."""
    return f"{rollout.group}-a{rollout.attempt:03d}"


def outcome(rollout: Rollout) -> Outcome:
    """What the advantages need of a rollout."""
    return Outcome(
        rollout_key(rollout), rollout.group, rollout.reward, rollout.truncated, failed=rollout.failure is not None
    )


def make_batch(rollouts: Sequence[Rollout], advantages: Mapping[str, Advantage]) -> list[TrainSegment]:
    """Segments of the valid rollouts, each with its rollout's advantage."""
    return [
        TrainSegment(
            segment.token_ids,  # type: ignore[arg-type]  # TrainSegment turns lists into arrays
            segment.mask,  # type: ignore[arg-type]
            segment.lp_gen,  # type: ignore[arg-type]
            advantages[rollout_key(rollout)].value,
            rollout.environment,
            rollout_key(rollout),
            index,
        )
        for rollout in rollouts
        if advantages[rollout_key(rollout)].kind == "valid"
        for index, segment in enumerate(rollout.segments)
    ]


def keep_books(
    rollouts: Sequence[Rollout], advantages: Mapping[str, Advantage], trained: Mapping[str, Any]
) -> dict[str, int]:
    """Tokens per class, checked against the engine's usage. Raises BooksError that names the rollout."""
    books = Books()
    books.add_all(trained["books"])
    for rollout in rollouts:
        key, kind = rollout_key(rollout), advantages[rollout_key(rollout)].kind
        held = sum(segment.sampled for segment in rollout.segments)
        dropped = rollout.usage.get("dropped_tokens", 0)
        if kind == "failed":  # its ledger may be lost with the server: the engine's count is all there is
            books.add(key, "failed", sampled_tokens(rollout))
            continue
        if kind != "valid":
            books.add(key, kind, held)
        if dropped:
            books.add(key, "cancelled", dropped)
    books.check({rollout_key(r): sampled_tokens(r) for r in rollouts}, n=int(trained["n"]))
    return books.totals()
