"""competition_math as an environment: settings, rows, and which comparison runs where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import field_validator

from environments.competition_math import generator
from environments.competition_math.verifier import decide, prepare, symbolic
from gym_servers.environment import Environment, Row, Settings, Split
from gym_servers.protocol import Item, Verdict, final_text, strip_reasoning


class MathSettings(Settings):
    """Settings of competition_math."""

    max_answer_chars: int = 2000
    """Only the end of the answer is read: that many characters."""
    require_box: bool = False
    """Whether an answer outside `\\boxed{}` counts as none."""


class MathRow(Row):
    """`question` is for readers; only `expected_answer` decides."""

    question: str = ""
    expected_answer: str

    @field_validator("expected_answer", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class CompetitionMath(Environment):
    """One question, one final answer in a box."""

    name = "competition_math"
    settings_type = MathSettings
    row_type = MathRow

    def _text(self, output: list[Item]) -> str:
        return strip_reasoning(final_text(output))[-self.settings.max_answer_chars :]

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        assert isinstance(row, MathRow)
        return decide(self._text(output), row.expected_answer, require_box=self.settings.require_box)[0]

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        assert isinstance(row, MathRow)
        found, answer = decide(self._text(output), row.expected_answer, require_box=self.settings.require_box)
        if found is not None:
            return found
        assert answer is not None
        return symbolic(answer, row.expected_answer)

    def prepare(self) -> None:
        prepare()

    def gold(self, row: Row) -> list[Item]:
        assert isinstance(row, MathRow)
        text = (
            row.expected_answer if "\\boxed" in row.expected_answer else f"\\boxed{{{row.expected_answer.strip('$')}}}"
        )
        return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
