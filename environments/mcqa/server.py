"""The environment `mcqa`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from environments.mcqa import generator
from environments.mcqa.verifier import Mode, Options, all_quick, verdict
from gym_servers.environment import Environment, Row, Settings, Split
from gym_servers.patterns import check_pattern
from gym_servers.protocol import Item, Verdict, final_text, strip_reasoning

MAX_PATTERNS = 32


class McqaSettings(Settings):
    """Settings of mcqa."""

    grading_mode: Mode | None = None
    """How every row is graded; None: as the row says."""


class TemplateMetadata(BaseModel):
    """What a row says about its prompt's template."""

    model_config = ConfigDict(extra="allow")
    output_regex: str | list[str] | None = None

    @field_validator("output_regex")
    @classmethod
    def _can_be_used(cls, value: str | list[str] | None) -> str | list[str] | None:
        patterns = [value] if isinstance(value, str) else value or []
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"{len(patterns)} patterns, at most {MAX_PATTERNS}")
        for pattern in patterns:
            check_pattern(pattern)
        return value


class McqaRow(Row):
    """options: one letter and its text each; a null text is no option."""

    options: list[dict[str, str | None]] = []
    expected_answer: str
    grading_mode: Mode = "strict_single_letter_boxed"
    template_metadata: TemplateMetadata | None = None

    @field_validator("expected_answer")
    @classmethod
    def _one_letter(cls, value: str) -> str:
        value = value.strip().upper()
        if len(value) != 1 or not value.isalpha():
            raise ValueError("must be the letter of an option")
        return value

    @model_validator(mode="after")
    def _can_be_met(self) -> McqaRow:
        letters = [key for option in self.options for key, text in option.items() if text is not None]
        wrong = [key for key in letters if len(key) != 1 or not key.isalpha()]
        if wrong:
            raise ValueError(f"options: '{wrong[0][:20]}' is no letter")
        if len({key.upper() for key in letters}) != len(letters):
            raise ValueError(f"options: a letter is there twice, {letters}")
        if self.expected_answer not in {key.upper() for key in letters} and not self.patterns:
            raise ValueError(f"expected_answer '{self.expected_answer}' is none of the options {letters}")
        return self

    @property
    def patterns(self) -> list[str]:
        """The row's regular expressions, in their order."""
        value = self.template_metadata.output_regex if self.template_metadata else None
        return [value] if isinstance(value, str) else value or []

    @property
    def texts(self) -> Options:
        """Text of each option by letter."""
        return {key.upper(): text for option in self.options for key, text in option.items() if text is not None}


def said(text: str) -> list[Item]:
    """Output items of an assistant that answers `text`."""
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def _spelled(pattern: str, letter: str) -> str:
    """A text that `pattern` likely matches with `letter` in its first group, for patterns of the usual kind."""
    text = re.sub(r"\((?!\?)[^()]*\)", letter, pattern, count=1)
    text = re.sub(r"\\[sb][*+?]?|\(\?i\)|[\^$]", lambda match: " " if match.group().startswith("\\s") else "", text)
    return re.sub(r"\\(.)", r"\1", text).strip()


class Mcqa(Environment):
    """One question with lettered options."""

    name = "mcqa"
    settings_type: ClassVar[type[Settings]] = McqaSettings
    row_type: ClassVar[type[Row]] = McqaRow

    def _text(self, output: list[Item]) -> str:
        return strip_reasoning(final_text(output))[-self.settings.max_answer_chars :]

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        assert isinstance(row, McqaRow)
        return self.verify(row, output) if all_quick(self._text(output), row.patterns) else None

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        assert isinstance(row, McqaRow)
        mode = self.settings.grading_mode or row.grading_mode
        return verdict(self._text(output), row.expected_answer, row.texts, mode, row.patterns)

    def _form(self, row: McqaRow, letter: str) -> str | None:
        """A text that chooses `letter` in the form that the row asks for; None where its pattern is of no usual kind."""
        for text in [
            *(_spelled(pattern, letter) for pattern in row.patterns),
            f"\\boxed{{{letter}}}",
            f"Answer: {letter}",
        ]:
            if self.verify(row, said(text)).parts["extracted_answer"] == letter:
                return text
        return None

    def gold(self, row: Row) -> list[Item] | None:
        """The expected letter in the form that the row asks for; None where its pattern is of no usual kind."""
        assert isinstance(row, McqaRow)
        text = self._form(row, row.expected_answer)
        return said(text) if text is not None else None

    def probes(self, row: Row) -> dict[str, list[Item]]:
        assert isinstance(row, McqaRow)
        letter, letters = row.expected_answer, sorted(row.texts)
        form = self._form(row, letter)
        other = next((one for one in letters if one != letter), "")
        corrected = self._form(row, other) if other else None
        found = {
            "all letters in one box": f"\\boxed{{{', '.join(letters)}}}",
            "all letters run together": f"\\boxed{{{''.join(letters)}}}",
            "every option's text": f"\\boxed{{{' or '.join(row.texts.values())}}}",
            "all letters after Answer": f"Answer: {' or '.join(letters)}",
            "the options repeated": "\n".join(f"{key}: {text}" for key, text in row.texts.items()),
            "the letter in prose": f"I am sure that {letter} it is",
            "lower case in a box": f"\\boxed{{{letter.lower()}}}",
            "an unclosed box": f"\\boxed{{{letter}",
            "in another command": f"\\fbox{{{letter}}}",
        }
        if form is not None and corrected is not None:
            found["corrected to another"] = f"{form}\nNo, that is wrong. {corrected}"
            found["in reasoning only"] = f"<think>{form}</think> {corrected}"
        return {name: said(text) for name, text in found.items()}

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
