"""competition_math as an environment: settings, rows, and which comparison runs where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import field_validator, model_validator

from environments.competition_math import generator
from environments.competition_math.judge import MARKER, Judge
from environments.competition_math.verifier import boxed, decide, gold_problem, prepare, symbolic
from gym_servers.environment import Environment, Row, Settings, Split
from gym_servers.protocol import Item, Verdict, final_text, strip_reasoning


class MathSettings(Settings):
    """Settings of competition_math."""

    max_answer_chars: int = 2000
    """Only the end of the answer is read: that many characters."""
    require_box: bool = False
    """Whether an answer outside `\\boxed{}` counts as none."""
    judge_url: str = ""
    """Whole URL of a model server's `/v1/chat/completions` or `/v1/responses` that is asked about a "no"; "" for none."""
    judge_model: str = ""
    """The name that the judge's server knows its model by."""
    judge_token_variable: str = ""
    """Name of the environment variable that holds the judge's bearer token; "" for none."""
    judge_seconds: float = 120.0
    """Wall time of one question to the judge."""
    judge_max_tokens: int = 2048

    @model_validator(mode="after")
    def _judge_is_whole(self) -> MathSettings:
        if self.judge_url and not self.judge_url.endswith(("/chat/completions", "/responses")):
            raise ValueError(f"judge_url '{self.judge_url}' must end in /chat/completions or /responses")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError("judge_url and judge_model go together: set both or neither")
        return self


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
        if not self.settings.judge_url or verdict.reward == 1.0:
            return verdict
        given = str(verdict.parts.get("extracted_answer") or self._text(output)).strip()
        if not given or MARKER in given:
            return verdict
        settings = self.settings
        judge = Judge(
            settings.judge_url,
            settings.judge_model,
            settings.judge_token_variable,
            settings.judge_seconds,
            settings.judge_max_tokens,
        )
        equal, replies = await judge.equal(row.question, row.expected_answer, given)
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

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
