"""competition_math as an environment: settings, rows, and which comparison runs where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import field_validator

from environments.competition_math import generator
from environments.competition_math.judge import MARKER, says_equal
from environments.competition_math.verifier import (
    NOT_COMPUTED,
    boxed,
    decide,
    gold_problem,
    is_number,
    plain,
    prepare,
    symbolic,
)
from gym_servers.environment import Environment, Row, Split
from gym_servers.judges import JudgeSettings, ModelClient, judge_client
from gym_servers.protocol import Failure, FailureError, Item, Verdict, final_text, strip_reasoning


class MathSettings(JudgeSettings):
    """Settings of competition_math. The judge, where one is set, is asked about a "no"."""

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

    @field_validator("expected_answer")
    @classmethod
    def _can_be_met(cls, value: str) -> str:
        if (problem := gold_problem(value)) is not None:
            raise ValueError(f"no answer can equal '{value[:80]}': {problem}")
        return value


class CompetitionMath(Environment):
    """One question, one final answer in a box."""

    name = "competition_math"
    settings_type: ClassVar[type[MathSettings]] = MathSettings
    row_type = MathRow
    _judge: ModelClient | None = None

    async def open(self) -> None:
        if self.settings.judge_url:
            judge = judge_client(self.name, self.settings)
            await judge.open()
            self._judge = judge

    async def close(self) -> None:
        if self._judge is not None:
            await self._judge.close()
            self._judge = None

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

    async def appeal(self, row: Row, output: list[Item], verdict: Verdict) -> Verdict:
        """A "no" goes to the judge, where one is set: the extracted answer, or the whole text where nothing was extracted."""
        assert isinstance(row, MathRow)
        if not self.settings.judge_url or verdict.reward == 1.0 or verdict.parts.get("how") == NOT_COMPUTED:
            return verdict
        given = str(verdict.parts.get("extracted_answer") or self._text(output)).strip()
        if not given or MARKER in given:
            return verdict
        if self._judge is None:
            message = f"environment '{self.name}': its judge is not open: see what the server said at its start"
            raise FailureError(Failure(kind="judge_failed", message=message, retryable=False))
        equal, replies = await says_equal(self._judge, row.question, row.expected_answer, given)
        parts = {
            **verdict.parts,
            "library_reward": verdict.reward,
            "judge_replies": [reply[-500:] for reply in replies],
        }
        how = "says equal in both orders" if equal else "says not equal"
        return Verdict(reward=float(equal), explanation=f"{verdict.explanation} The judge {how}.", parts=parts)

    def prepare(self) -> None:
        prepare()

    def gold(self, row: Row) -> list[Item]:
        assert isinstance(row, MathRow)
        content = [{"type": "output_text", "text": boxed(row.expected_answer)}]
        return [{"type": "message", "role": "assistant", "content": content}]

    def probes(self, row: Row) -> dict[str, list[Item]]:
        """Guesses among which is the right one, and arithmetic that says nothing."""
        assert isinstance(row, MathRow)
        right = row.expected_answer
        texts = {
            "two boxes, the right one first": f"\\boxed{{{right}}} \\boxed{{7777}}",
            "several in one box": f"\\boxed{{{right}, 7777}}",
            "side by side": f"\\boxed{{7777 {right}}}",
            "a chain": f"\\boxed{{{right} = 7777}}",
            "a choice": f"\\boxed{{{right} \\text{{ or }} 7777}}",
            "undefined": "\\boxed{0/0}",
            "infinity": "\\boxed{1e999}",
        }
        if is_number(right):
            texts["not computed"] = f"\\boxed{{{plain(right)} + 0}}"
        return {
            name: [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
            for name, text in texts.items()
        }

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
