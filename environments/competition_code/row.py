"""The rows of competition_code, in NeMo-Gym's form: `verifier_metadata.unit_tests {inputs[], outputs[], fn_name?}`."""

from __future__ import annotations

import keyword
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from environments.competition_code.verifier import read_json
from gym_servers.environment import Row


class UnitTests(BaseModel):
    """Tests of one task. Without fn_name: standard input and what is expected on standard output. With it: the arguments, one JSON
    value a line, and the value that the function must return, as JSON."""

    model_config = ConfigDict(extra="allow")
    inputs: list[str]
    outputs: list[str]
    fn_name: str | None = None

    @field_validator("inputs", "outputs")
    @classmethod
    def _encodable(cls, value: list[str]) -> list[str]:
        for number, text in enumerate(value):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"number {number} holds a lone surrogate, which no program can read or print"
                ) from None
        return value

    @field_validator("fn_name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value and (not value.isidentifier() or keyword.iskeyword(value)):
            raise ValueError(f"'{value[:80]}' is no name of a function")
        return value or None

    @model_validator(mode="after")
    def _can_be_graded(self) -> UnitTests:
        if not self.inputs:
            raise ValueError("there must be at least one test: every program would pass")
        if len(self.inputs) != len(self.outputs):
            raise ValueError(
                f"{len(self.inputs)} inputs and {len(self.outputs)} outputs: there must be as many of each"
            )
        if self.fn_name is None:
            if not any(text.strip() for text in self.outputs):
                raise ValueError("every expected output is blank: a program that does nothing would pass")
            return self
        values = []
        for number, (arguments, expected) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            try:
                for line in arguments.split("\n"):
                    if line.strip():
                        read_json(line)
                values.append(read_json(expected))
            except ValueError as error:
                raise ValueError(f"test {number} of function '{self.fn_name}' is not JSON: {error}") from None
        if all(value is None for value in values):
            raise ValueError("every expected value is null: a function that does nothing would pass")
        return self


class VerifierMetadata(BaseModel):
    """unit_tests: an object, or the JSON text of one."""

    model_config = ConfigDict(extra="allow")
    unit_tests: UnitTests

    @field_validator("unit_tests", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return read_json(value) if isinstance(value, str) else value


class CodeRow(Row):
    """A task is told in `responses_create_params`; `verifier_metadata` decides."""

    verifier_metadata: VerifierMetadata

    @property
    def tests(self) -> UnitTests:
        """The row's unit tests."""
        return self.verifier_metadata.unit_tests
