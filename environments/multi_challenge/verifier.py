"""A rubric's verdicts: how a judge's words become YES or NO, what code can answer by itself, and how items become a reward. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from environments.open_qa.verifier import content_text
from gym_servers.protocol import Verdict

Answer = Literal["YES", "NO"]
Aggregation = Literal["mean", "min", "max", "all", "any", "weighted"]
MAX_PHRASES = 64
_LABEL = re.compile(r"\[\[(YES|NO)\]\]", re.IGNORECASE)
# "no" within a sentence ("because there is no mention") and "no doubt" answer nothing.
_WORD = re.compile(r"^\W*(yes|no(?! doubt))\b|\b(yes|no)\W*$", re.IGNORECASE)
_TOKEN = re.compile(r"\w+(?:['’.:-]\w+)*")


def read_answer(reply: str) -> Answer | None:
    """The last of [[YES]] and [[NO]]; without any, the word yes or no that begins or ends the last line. None: no answer, or both."""
    if labels := _LABEL.findall(reply):
        return "YES" if labels[-1].upper() == "YES" else "NO"
    line = (reply.strip().splitlines() or [""])[-1]
    words = {(first or last).upper() for first, last in _WORD.findall(line)}
    return None if len(words) != 1 else "YES" if "YES" in words else "NO"


class Check(BaseModel):
    """What code can look for: the item's answer is YES exactly where all of it holds. Words and phrases are found whole, without case.

    includes: all of them. includes_any: one of them. excludes: none of them. max_words: at most so many words.
    """

    model_config = ConfigDict(extra="forbid")
    includes: list[str] = Field(default=[], max_length=MAX_PHRASES)
    includes_any: list[str] = Field(default=[], max_length=MAX_PHRASES)
    excludes: list[str] = Field(default=[], max_length=MAX_PHRASES)
    max_words: int | None = Field(default=None, ge=1)
    starts_with: str = ""
    ends_with: str = ""

    @field_validator("includes", "includes_any", "excludes")
    @classmethod
    def _have_words(cls, phrases: list[str]) -> list[str]:
        if blank := [phrase for phrase in phrases if not _spoken(phrase)[0]]:
            raise ValueError(f"the phrase '{blank[0][:80]}' has no word to be found")
        return phrases

    def answer(self, text: str) -> Answer:
        """YES or NO. Linear in the text for each phrase."""
        words, spoken = _spoken(text)

        def says(phrase: str) -> bool:
            return _spoken(phrase)[1] in spoken

        holds = (
            all(says(phrase) for phrase in self.includes)
            and (not self.includes_any or any(says(phrase) for phrase in self.includes_any))
            and not any(says(phrase) for phrase in self.excludes)
            and (self.max_words is None or words <= self.max_words)
            and text.strip().casefold().startswith(self.starts_with.casefold())
            and text.strip().casefold().endswith(self.ends_with.casefold())
        )
        return "YES" if holds else "NO"


@lru_cache(maxsize=256)
def _spoken(text: str) -> tuple[int, str]:
    """How many words `text` has, and those words, each between blanks: a rubric's items read one text."""
    words = _TOKEN.findall(text.casefold().replace("_", " "))
    return len(words), f" {' '.join(words)} "


class RubricItem(BaseModel):
    """One question about the response. check (*ours*): code answers it; without one, the judge does."""

    model_config = ConfigDict(extra="allow")
    question: str = Field(min_length=1)
    pass_criteria: Answer = "YES"
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    check: Check | None = None

    @field_validator("pass_criteria", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.strip().upper() if isinstance(value, str) else value


def _weighted(scores: Sequence[float], weights: Sequence[float]) -> float:
    return sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights)


AGGREGATIONS: dict[Aggregation, Callable[[Sequence[float], Sequence[float]], float]] = {
    "mean": lambda scores, _: sum(scores) / len(scores),
    "min": lambda scores, _: min(scores),
    "max": lambda scores, _: max(scores),
    "all": lambda scores, _: float(all(scores)),
    "any": lambda scores, _: float(any(scores)),
    "weighted": _weighted,
}


def graded(rubric: Sequence[RubricItem], answers: Sequence[Answer], mode: Aggregation) -> Verdict:
    """The verdict of the rubric's answers, in its order: an item passes where its answer is its pass_criteria."""
    scores = [float(answer == item.pass_criteria) for item, answer in zip(rubric, answers, strict=True)]
    passed = int(sum(scores))
    failed = next((item.question for item, score in zip(rubric, scores, strict=True) if not score), "")
    why = f"; the first that did not: {failed[:120]}" if failed else ""
    return Verdict(
        reward=AGGREGATIONS[mode](scores, [item.weight for item in rubric]),
        explanation=f"{passed} of {len(scores)} items of the rubric passed ({mode}){why}.",
        parts={"verdicts": list(answers), "scores": scores, "num_passed": passed, "num_total": len(scores)},
    )


def conversation_text(messages: Any) -> str:
    """A conversation as a judge reads it: `[USER]: ...`, a blank line between turns. What was only thought is left out."""
    if isinstance(messages, str):
        return f"[USER]: {messages}"
    turns = [
        (str(message.get("role")).upper(), content_text(message.get("content")))
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and message.get("role") and message.get("role") != "thinking"
    ]
    return "\n\n".join(f"[{role}]: {text}" for role, text in turns)
