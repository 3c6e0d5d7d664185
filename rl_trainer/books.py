"""The books: every sampled token is in exactly one class, and the classes sum to the engine's own usage."""

from __future__ import annotations

from collections.abc import Mapping

from gym_servers.protocol import OmnigymError

CLASSES = (
    "trained",
    "zero_advantage",
    "token_mask",
    "sequence_mask",
    "overlong",
    "failed",
    "dropped_group",
    "cancelled",
)
IN_LOSS = ("trained", "zero_advantage", "token_mask")
"""These three sum to N."""


class BooksError(OmnigymError):
    """The books do not balance; the message names the rollouts."""


class Books:
    """Counts of sampled tokens per rollout and class (algorithm.md section 1, Books)."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def add(self, rollout_id: str, kind: str, tokens: int) -> None:
        """Enter `tokens` sampled tokens of a rollout; entries add up."""
        if kind not in CLASSES:
            raise ValueError(f"rollout {rollout_id}: unknown class '{kind}', expected one of {', '.join(CLASSES)}")
        if tokens < 0:
            raise ValueError(f"rollout {rollout_id}: {tokens} tokens of class '{kind}'")
        entry = self._counts.setdefault(rollout_id, {})
        entry[kind] = entry.get(kind, 0) + tokens

    def add_all(self, entries: Mapping[str, Mapping[str, int]]) -> None:
        """Enter what `PolicyWorker.train_step` returned under "books"."""
        for rollout_id, counts in entries.items():
            for kind, tokens in counts.items():
                self.add(rollout_id, kind, tokens)

    def totals(self) -> dict[str, int]:
        """Tokens per class over all rollouts."""
        return {kind: sum(entry.get(kind, 0) for entry in self._counts.values()) for kind in CLASSES}

    def check(self, usage: Mapping[str, int], n: int | None = None) -> None:
        """Compare with the engine's sampled tokens per rollout, and trained + zero_advantage + token_mask with N."""
        wrong = []
        for rollout_id in sorted(set(usage) | set(self._counts)):
            entry = self._counts.get(rollout_id, {})
            booked, sampled = sum(entry.values()), usage.get(rollout_id, 0)
            if booked != sampled:
                classes = ", ".join(f"{kind} {tokens}" for kind, tokens in entry.items() if tokens) or "nothing"
                wrong.append(
                    f"rollout {rollout_id}: the engine sampled {sampled} tokens, {booked} are booked ({classes})"
                )
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise BooksError("the books do not balance: " + "; ".join(wrong[:5]) + more)
        totals = self.totals()
        in_loss = sum(totals[kind] for kind in IN_LOSS)
        if n is not None and in_loss != n:
            raise BooksError(
                f"the books hold {in_loss} tokens of {' + '.join(IN_LOSS)}, but the loss was divided by {n}"
            )
