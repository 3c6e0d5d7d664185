"""The environment `reasoning_gym`."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, field_validator

from environments.reasoning_gym import generator
from environments.reasoning_gym.datasets import EXCLUDED, PLAIN, SCORED, UNGENERATED
from environments.reasoning_gym.verifier import extract, package, package_score, text_score
from gym_servers.environment import Environment, Row, Settings, Split
from gym_servers.protocol import (
    Failure,
    FailureError,
    Item,
    OmnigymError,
    RowError,
    Verdict,
    final_text,
    strip_reasoning,
)


def _scored(name: str) -> str:
    """`name`, if that dataset is scored. Raises ValueError that says why not."""
    if name in EXCLUDED:
        raise ValueError(f"dataset '{name}' is not scored: {EXCLUDED[name]}")
    if name not in SCORED:
        near = difflib.get_close_matches(name, SCORED, n=1)
        raise ValueError(f"unknown dataset '{name[:60]}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    return name


class ReasoningGymSettings(Settings):
    """Settings of reasoning_gym."""

    verify_cpu_seconds: float = 5.0
    """Some scorers load word lists when they are first used."""
    datasets: list[str] = []
    """Which datasets `generate` takes tasks from; none: all that are scored and quick to generate."""

    @field_validator("datasets")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name in UNGENERATED:
                raise ValueError(f"dataset '{name}' is not generated: {UNGENERATED[name]}")
        return [_scored(name) for name in value]


class ReasoningGymRow(Row):
    """An entry of reasoning-gym; `metadata.source_dataset` says which scorer it belongs to."""

    question: str = ""
    answer: str | None = Field(max_length=200_000)
    metadata: dict[str, Any]

    @field_validator("metadata")
    @classmethod
    def _of_a_scored_dataset(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("source_dataset")
        if not isinstance(name, str):
            raise ValueError("source_dataset must name the dataset")
        _scored(name)
        return value

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.metadata["source_dataset"])

    @property
    def entry(self) -> dict[str, Any]:
        """What a scorer takes."""
        return {"question": self.question, "answer": self.answer, "metadata": self.metadata}


def said(text: str) -> list[Item]:
    """Output items of an assistant that answers `text`."""
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


class ReasoningGym(Environment):
    """Procedural reasoning tasks of the package reasoning-gym."""

    name = "reasoning_gym"
    settings_type: ClassVar[type[Settings]] = ReasoningGymSettings
    row_type: ClassVar[type[Row]] = ReasoningGymRow

    def check_row(self, row: dict[str, Any]) -> Row:
        parsed = super().check_row(row)
        assert isinstance(parsed, ReasoningGymRow)
        if parsed.dataset in PLAIN and parsed.answer is None:
            raise RowError(
                f"environment '{self.name}' task '{row.get('task_id') or '?'}': field 'answer': must not be null"
            )
        return parsed

    def _answer(self, output: list[Item]) -> str:
        return extract(strip_reasoning(final_text(output))[-self.settings.max_answer_chars :])

    def _verdict(self, row: ReasoningGymRow, answer: str, score: float, how: str) -> Verdict:
        shown = answer if len(answer) <= 60 else answer[:57] + "..."
        parts = {"task_name": row.dataset, "extracted_answer": answer[:500], "score": score}
        return Verdict(reward=score, explanation=f"'{shown}' scores {score:.3g} in {row.dataset} ({how}).", parts=parts)

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        assert isinstance(row, ReasoningGymRow)
        answer = self._answer(output)
        score = text_score(row.dataset, answer, row.entry)
        return None if score is None else self._verdict(row, answer, score, "compared as text")

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        assert isinstance(row, ReasoningGymRow)
        if (found := self.quick(row, output)) is not None:
            return found
        answer = self._answer(output)
        try:
            score, how = package_score(row.dataset, answer, row.entry)
        except RowError as error:
            raise RowError(f"environment '{self.name}' task '{row.task_id or '?'}': {error}") from None
        except OmnigymError as error:
            raise FailureError(Failure(kind="environment_down", message=str(error), retryable=False)) from None
        return self._verdict(row, answer, score, how)

    def prepare(self) -> None:
        with contextlib.suppress(OmnigymError):  # without the package, whoever needs it says so
            package()

    def gold(self, row: Row) -> list[Item] | None:
        assert isinstance(row, ReasoningGymRow)
        return said(f"<answer>{row.answer}</answer>") if row.answer else None

    def probes(self, row: Row) -> dict[str, list[Item]]:
        assert isinstance(row, ReasoningGymRow)
        answer = row.answer or ""
        found = {
            "not a number": "<answer>nan</answer>",
            "infinity": "<answer>inf</answer>",
            "an empty list": "<answer>[]</answer>",
            "code": f"<answer>__import__('builtins').str({answer!r})</answer>",
            "the answer among others": f"<answer>x {answer} y {answer[::-1]} z</answer>",
            "the question": f"<answer>{row.question}</answer>",
            "taken back": f"<answer>{answer}</answer> no, <answer>?</answer>",
            "in reasoning only": f"<think><answer>{answer}</answer></think> <answer>?</answer>",
        }
        return {name: said(text) for name, text in found.items()}

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split, self.settings.datasets)
