"""The environment `instruction_following`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from environments.instruction_following import generator, language
from environments.instruction_following.verifier import FollowingRow, verdict
from gym_servers.environment import Environment, Row, Split
from gym_servers.protocol import Item, Verdict, final_text

QUICK_CHARS = 8192
QUICK_INSTRUCTIONS = 8


class InstructionFollowing(Environment):
    """Answers that keep instructions a program can check: IFEval, its extended training set, IFBench."""

    name = "instruction_following"
    row_type: ClassVar[type[Row]] = FollowingRow

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        """Short answers to rows that need no language detector: linear code only, so the server's process may run it."""
        assert isinstance(row, FollowingRow)
        if len(row.instruction_id_list) > QUICK_INSTRUCTIONS or len(final_text(output)) > QUICK_CHARS or row.detects:
            return None
        return verdict(row, output, self.settings)

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        assert isinstance(row, FollowingRow)
        return verdict(row, output, self.settings)

    def prepare(self) -> None:
        language.load()

    def gold(self, row: Row) -> list[Item] | None:
        """An answer to a generated row, composed from its fields; None for other rows."""
        assert isinstance(row, FollowingRow)
        text = generator.gold(row.model_extra or {})
        if text is None:
            return None
        return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]

    def probes(self, row: Row) -> dict[str, list[Item]]:
        if "family" not in (row.model_extra or {}):
            return {}  # a published row may ask for less than the shortcuts give
        return {
            name: [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
            for name, text in generator.shortcuts(row.model_dump()).items()
        }

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
