"""The verdict: which of a row's instructions an answer follows, strictly and loosely (spec: instruction_following)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator, model_validator

from environments.instruction_following.registry import instruction
from gym_servers.environment import Row, Settings
from gym_servers.protocol import Item, Verdict, final_text, strip_reasoning

FIELDS = ("instruction_id_list", "kwargs", "prompt", "grading_mode")


class FollowingRow(Row):
    """A NeMo-Gym row. Its fields stand at the top level or in `verifier_metadata`; where both have one, the latter counts."""

    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]] = []
    prompt: str = ""
    grading_mode: Literal["binary", "fraction"] = "binary"

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        metadata = row.get("verifier_metadata")
        inner = metadata if isinstance(metadata, dict) else {}
        outer = {key: value for key, value in row.items() if key not in FIELDS or value is not None}
        return outer | {key: inner[key] for key in FIELDS if inner.get(key) is not None}

    @field_validator("kwargs", mode="before")
    @classmethod
    def _null_is_empty(cls, given: Any) -> Any:
        return [{} if item is None else item for item in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _instructions_fit(self) -> FollowingRow:
        if not self.instruction_id_list:
            raise ValueError("'instruction_id_list' is empty: nothing could be graded")
        if not self.kwargs:
            self.kwargs = [{} for _ in self.instruction_id_list]
        if len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError(
                f"'kwargs' has {len(self.kwargs)} entries, 'instruction_id_list' {len(self.instruction_id_list)}"
            )
        for identifier, given in zip(self.instruction_id_list, self.kwargs, strict=True):
            known = instruction(identifier)
            try:
                known.read(given)
            except ValueError as error:
                raise ValueError(f"kwargs of '{identifier}': {error}") from None
        return self

    @property
    def detects(self) -> bool:
        """Whether some instruction may ask the language detector."""
        return any(instruction(identifier).detects for identifier in self.instruction_id_list)


def loose_forms(text: str) -> Iterator[str]:
    """The text, then without its first line, its last line, both; each also without asterisks."""
    lines = text.split("\n")
    forms = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    for form in forms:
        yield form
    for form in forms:
        yield form.replace("*", "")


def follows(text: str, identifier: str, given: dict[str, Any]) -> bool:
    """Whether `text` follows the instruction. A text without a letter or a digit follows none."""
    known = instruction(identifier)
    return any(map(str.isalnum, text)) and bool(known.check(text, **known.read(given)))


def verdict(row: FollowingRow, output: list[Item], settings: Settings) -> Verdict:
    """Binary: 1 where all instructions are followed strictly, else 0. Fraction: the share that is followed."""
    text = strip_reasoning(final_text(output))[: settings.max_answer_chars]
    pairs = list(zip(row.instruction_id_list, row.kwargs, strict=True))
    strict = [follows(text, identifier, given) for identifier, given in pairs]
    forms = list(dict.fromkeys(loose_forms(text)))
    loose = [
        done or any(follows(form, identifier, given) for form in forms[1:])
        for done, (identifier, given) in zip(strict, pairs, strict=True)
    ]
    reward, reward_loose = (
        float(all(found)) if row.grading_mode == "binary" else sum(found) / len(found) for found in (strict, loose)
    )
    missed = [identifier for done, (identifier, _) in zip(strict, pairs, strict=True) if not done]
    return Verdict(
        reward=reward,
        explanation=f"not followed: {', '.join(missed)}" if missed else "all instructions are followed",
        parts={
            "follow_all_instructions": all(strict),
            "follow_instruction_list": strict,
            "follow_all_instructions_loose": all(loose),
            "follow_instruction_list_loose": loose,
            "reward_loose": reward_loose,
        },
    )
